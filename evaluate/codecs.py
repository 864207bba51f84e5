"""The codecs to evaluate, with the same methods: torch models, and export sets in onnxruntime.

Shapes: x_BCHW, x_hat_BCHW float32, x in [0, 1]; y_BMhw, y_hat_BMhw float32; B = 1; h = ceil(H / 16), w = ceil(W / 16).
"""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from compressai.models import FactorizedPrior
from torch import Tensor

from evaluate.relu_inputs import ReluCounts, ReluInputs
from relic.bitstream.container import latent_shape
from relic.bitstream.contexts import Contexts
from relic.bitstream.runs import code_length_bits
from relic.bitstream.tables import Tables, dequantize, quantize
from relic.codec.coding import pad_to_stride, tables_of
from relic.codec.model import Architecture
from relic.codec.pretrained import codec_path, finished_model, read_codec
from relic.errors import InputError, naming
from relic.onnx.layout import MANIFEST, TABLES
from relic.onnx.manifest import read_export_manifest
from relic.onnx.sessions import check_input_size, load_tables, open_decoder, open_encoder, run_part
from relic.storage.remote_file import local_name
from relic.storage.urls import without_secrets

Runtime = Literal["torch", "onnxruntime"]


class Quantised(NamedTuple):
    """The codec's own rounding of a latent."""

    y_hat_BMhw: Tensor
    """On the CPU."""
    estimated_bits: float


class Codec(Protocol):
    """A codec ready to be evaluated. Its methods may be called from several threads at once."""

    checkpoint: str
    """As given on the command line."""
    label: str
    """A short name, unique among the codecs of a run."""
    architecture: Architecture
    swap_init: str
    """How the weights around ReLU started: calibrated, naive, none (nothing is swapped) or unknown."""
    qat: bool
    """Whether it was trained with --qat, for INT8."""
    precision: Literal["float32", "int8"]
    """Of its convolutions here."""
    tables: Tables
    runtime: Runtime
    device: torch.device
    """Of the images, and of their reconstructions."""

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of the only images that the codec takes, padded; None: it takes any."""
        ...

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError if the codec is for images of another size."""
        ...

    def analyse(self, x_BCHW: Tensor) -> Tensor:
        """The latent y, not rounded. Images of any size are padded by repeating their edges."""
        ...

    def quantise(self, y_BMhw: Tensor) -> Quantised:
        """The latent rounded about the medians, and the estimated bits."""
        ...

    def synthesise(self, y_hat_BMhw: Tensor, height: int, width: int) -> Tensor:
        """The reconstruction, cut to height x width."""
        ...

    def reconstruct(self, x_BCHW: Tensor) -> Tensor:
        """The codec's own x_hat, by one forward pass, without a bitstream."""
        ...

    def relu_counts(self) -> ReluCounts:
        """Counts over all calls of `analyse` and `synthesise`; (0, 0) for export sets."""
        ...


class TorchCodec:
    """A checkpoint in fp32. Its CDF tables are made anew from its density; rates are estimated by its likelihoods."""

    runtime: Runtime = "torch"
    precision: Literal["float32", "int8"] = "float32"
    fixed_size = None

    def __init__(
        self,
        checkpoint: str,
        label: str,
        architecture: Architecture,
        model: FactorizedPrior,
        device: torch.device,
        swap_init: str = "unknown",
        *,
        qat: bool = False,
        contexts: Contexts | None = None,
    ) -> None:
        self.checkpoint, self.label, self.architecture = checkpoint, label, architecture
        self.swap_init, self.qat = swap_init, qat
        self.tables = tables_of(model, contexts)
        self._model = model.to(device, memory_format=torch.channels_last)
        self._relu_inputs = ReluInputs(self._model)
        self.device = device

    def check_size(self, height: int, width: int) -> None:
        """Any size is padded."""

    def analyse(self, x_BCHW: Tensor) -> Tensor:
        with self._relu_inputs.counted():
            output: Tensor = self._model.g_a(pad_to_stride(x_BCHW))
            return output

    def quantise(self, y_BMhw: Tensor) -> Quantised:
        y_hat_BMhw, likelihoods = self._model.entropy_bottleneck(y_BMhw)
        return Quantised(y_hat_BMhw.cpu(), -torch.log2(likelihoods).sum(dtype=torch.float64).item())

    def synthesise(self, y_hat_BMhw: Tensor, height: int, width: int) -> Tensor:
        y_hat_BMhw = y_hat_BMhw.to(self.device, memory_format=torch.channels_last)
        with self._relu_inputs.counted():
            output: Tensor = self._model.g_s(y_hat_BMhw)[:, :, :height, :width]
            return output

    def reconstruct(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        output: Tensor = self._model(pad_to_stride(x_BCHW))["x_hat"][:, :, :height, :width]
        return output

    def relu_counts(self) -> ReluCounts:
        return self._relu_inputs.counts


class OnnxCodec:
    """An export set: encoder and decoder in onnxruntime on the CPU. Rates are estimated by its own rows."""

    runtime: Runtime = "onnxruntime"
    device = torch.device("cpu")

    def __init__(self, folder: Path, label: str, threads: int, *, contexts: bool) -> None:
        self.checkpoint, self.label = str(folder), label
        manifest = read_export_manifest(folder)
        self.architecture = Architecture(**dataclasses.asdict(manifest.architecture))
        self.swap_init = manifest.swap_init
        self.qat = manifest.checkpoint.get("quantization") is not None
        self.precision = manifest.precision
        stored = load_tables(folder)
        self._plain = stored.plain()
        self.tables = stored if contexts else self._plain
        self._encoder = open_encoder(folder, self.tables, threads)
        self._decoder = open_decoder(folder, self.tables, threads)
        if (manifest.tables.digest, manifest.architecture.channels[1]) != (
            self.tables.digest,
            self.tables.num_channels,
        ):
            raise InputError(f"its {MANIFEST} describes other tables than its {TABLES}; take both from one export")

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        return self._encoder.fixed_size or self._decoder.fixed_size

    def check_size(self, height: int, width: int) -> None:
        _, rows, columns = latent_shape(width, height, self.tables)
        stride = self.tables.stride
        for part in (self._encoder, self._decoder):
            check_input_size(part, (rows * stride, columns * stride), (height, width), stride)

    def analyse(self, x_BCHW: Tensor) -> Tensor:
        padded = pad_to_stride(x_BCHW)
        self.check_size(*x_BCHW.shape[2:])
        return torch.from_numpy(run_part(self._encoder, padded.contiguous().numpy()))

    def quantise(self, y_BMhw: Tensor) -> Quantised:
        symbols = quantize(y_BMhw[0].numpy(), self.tables)
        y_hat_1Mhw = torch.from_numpy(dequantize(symbols, self.tables))[None]
        return Quantised(y_hat_1Mhw, code_length_bits(symbols, self._plain))

    def synthesise(self, y_hat_BMhw: Tensor, height: int, width: int) -> Tensor:
        self.check_size(height, width)
        x_hat = run_part(self._decoder, y_hat_BMhw.contiguous().numpy())
        return torch.from_numpy(x_hat)[:, :, :height, :width]

    def reconstruct(self, x_BCHW: Tensor) -> Tensor:
        return self.synthesise(self.quantise(self.analyse(x_BCHW)).y_hat_BMhw, *x_BCHW.shape[2:])

    def relu_counts(self) -> ReluCounts:
        return ReluCounts(0, 0)


def open_labelled(checkpoint: str, label: str, device: torch.device, *, contexts: bool = True) -> TorchCodec:
    """The codec of a checkpoint of relic or a state dict of CompressAI, with its contexts or without.

    Raises InputError naming the file.
    """
    path = codec_path(local_name(checkpoint))
    codec = read_codec(path, flag="--checkpoint")
    model = finished_model(codec, f"--checkpoint {path}")
    qat = codec.quantization is not None
    found = codec.contexts if contexts else None
    shown = without_secrets(checkpoint)
    return TorchCodec(shown, label, codec.architecture, model, device, codec.swap_init, qat=qat, contexts=found)


def open_onnx(folder: Path, label: str, *, threads: int, contexts: bool = True) -> OnnxCodec:
    """Open a folder that `export/onnx_parts.py --part all` wrote. Raises InputError naming the file at fault."""
    with naming(f"--onnx {folder}"):
        return OnnxCodec(folder, label, threads, contexts=contexts)
