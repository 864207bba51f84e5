"""Convert the parts of an export to INT8, and measure what that costs on crops that calibration has not seen."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from compressai.models import FactorizedPrior

from export.config import ExportConfig
from export.crops import evenly_spread, fit_to_size, random_samples, read_crops
from export.int8.inputs import Calibration, write_calibration
from export.int8.learned import Learned, learn
from export.int8.overrides import KnownSteps, prefix_of
from export.int8.quality import LayerNoise, layer_noise, measure_quality
from export.int8.quantization import grid_of, join_parts, quantize_part
from export.onnx_files import InputSize, export_part
from export.parts import Part
from export.plan import Int8Crops
from export.source import ExportSource
from relic.arrays import Floats
from relic.bitstream.tables import dequantize
from relic.codec.coding import analyse
from relic.codec.constants import STRIDE
from relic.codec.scores import MeanScore
from relic.errors import InputError
from relic.options import Method, Upsample
from relic.quantization.fake import stages_of
from relic.shards.shard_set import ShardSet

_VAL_CROPS = 200
_NOISE_CROPS = 16
_LEARNING_CROPS = 200
_TOLERABLE_DB, _TOLERABLE_RATE = 1.0, 0.05

log = logging.getLogger(__name__)


class Cost(NamedTuple):
    """Quality and rate of the same crops before and after."""

    num_crops: int
    before: MeanScore
    """With the float parts."""
    after: MeanScore
    """With the INT8 parts in their place."""
    noise: list[LayerNoise]

    @property
    def psnr_loss_db(self) -> float | None:
        """None where all crops came back exactly, before or after: their PSNR is infinite."""
        before, after = self.before.psnr_db, self.after.psnr_db
        return None if before is None or after is None else before - after

    @property
    def rate_change(self) -> float:
        """The relative change of the real rate."""
        return self.after.bpp_real / self.before.bpp_real - 1


class Int8(NamedTuple):
    """INT8 parts, by name, and what they cost."""

    models: dict[Part, onnx.ModelProto]
    cost: Cost
    facts: dict[str, Any]
    """Plain values, for export.json."""


def convert_to_int8(
    config: ExportConfig,
    upsample: Upsample,
    crops: Int8Crops,
    source: ExportSource,
    size: InputSize,
    floats: Mapping[Part, onnx.ModelProto],
    folder: Path,
) -> Int8:
    """Calibrate on train crops, quantize the parts in `floats`, and measure the cost on val crops.

    The calibration inputs stay in `folder`. If only one half is exported, the other is measured in float. Raises
    InputError for crops that cannot be read.
    """
    log.info("calibrating on %d train crops of %s", crops.calib_images, crops.train.folder)
    calibration = write_calibration(folder, source, size, crops.train, crops.calib_images)
    halves: dict[Part, onnx.ModelProto] = {}
    quantized: dict[Part, onnx.ModelProto] = {}
    methods = []
    learned = _learn(config, upsample, crops, source, calibration) if config.calib_method == "learned" else None
    for part in ("encoder", "decoder"):
        halves[part] = floats.get(part) or export_part(part, source, size, config.opset, upsample)
        if (part in floats or "full" in floats) and config.int8_parts in (part, "all"):
            model, method = halves[part], _method(config, upsample, source, part, learned)
            methods.append(method)
            if learned is not None:
                changed = source._replace(model=learned.model)
                model = export_part(part, changed, size, config.opset, upsample)
            quantized[part] = quantize_part(
                part, model, calibration, source.tables.medians, method, keep_last=config.int8_keep_last
            )
    log.info("measuring the cost on val crops of %s", crops.val.folder)
    cost = _measure(source, size, crops.val, halves, quantized)
    models = {part: model for part, model in quantized.items() if part in floats}
    if "full" in floats:
        both = halves | quantized
        models["full"] = join_parts(both["encoder"], both["decoder"], source.tables.medians)
    return Int8(models, cost, _facts(config, methods, crops, cost))


def _method(
    config: ExportConfig, upsample: Upsample, source: ExportSource, part: Part, learned: Learned | None
) -> Method | KnownSteps:
    if learned is not None:
        return _known(learned.known, part)
    if config.calib_method is not None or source.quantization is None:
        return config.calib_method or "percentile"
    trained_for = source.quantization["upsample"]
    if part == "decoder" and upsample.startswith("subpixel") != trained_for.startswith("subpixel"):
        log.warning(
            "the checkpoint was trained with --qat_upsample %s; --upsample %s rounds its weights otherwise",
            trained_for,
            upsample,
        )
    return _known(KnownSteps(source.quantization["activation_steps"], {}), part)


def _known(known: KnownSteps, part: Part) -> Method | KnownSteps:
    """`known`, or percentile for a part that it says nothing about: one with GDN."""
    return known if any(name.startswith(prefix_of(part)) for name in known.activations) else "percentile"


def check_learnable(config: ExportConfig, source: ExportSource) -> None:
    """Raise InputError if --calib_method learned cannot work with this checkpoint."""
    if config.calib_method == "learned" and config.int8:
        if not _transforms(config, source.model):
            raise InputError(
                f"--calib_method learned: --int8_parts {config.int8_parts} has GDN, which has no 8-bit form; "
                "use percentile"
            )
        _lambda_bpp(config, source)


def _transforms(config: ExportConfig, model: FactorizedPrior) -> list[str]:
    """The transforms that can be learned: of the parts in INT8, those with ReLU."""
    prefixes: dict[str, Part] = {"g_a": "encoder", "g_s": "decoder"}
    wanted = [name for name, part in prefixes.items() if config.int8_parts in (part, "all")]
    return [name for name in wanted if stages_of(model, name)]


def _lambda_bpp(config: ExportConfig, source: ExportSource) -> float:
    if config.calib_lambda is not None:
        return config.calib_lambda
    trained = source.origin["config"]
    lambda_bpp = trained.get("lambda_bpp")
    if source.origin["loss_type"] == "rd" and trained.get("distortion") == "mse" and type(lambda_bpp) is float:
        return lambda_bpp
    raise InputError(
        "--calib_method learned: the checkpoint was not trained with --loss_type rd --distortion mse, so it has no "
        "weight of the rate; give --calib_lambda"
    )


def _learn(
    config: ExportConfig, upsample: Upsample, crops: Int8Crops, source: ExportSource, calibration: Calibration
) -> Learned:
    samples = random_samples(crops.train, min(crops.calib_images, _LEARNING_CROPS))
    log.info("learning ranges and rounding on %d crops", len(samples))
    images = torch.from_numpy(np.stack(list(read_crops(crops.train, samples))))
    height, width = (side // STRIDE * STRIDE for side in images.shape[1:3])
    return learn(
        source.model,
        images[:, :height, :width],
        lambda_bpp=_lambda_bpp(config, source),
        by_phase=upsample.startswith("subpixel"),
        grid=grid_of(calibration),
        transforms=_transforms(config, source.model),
    )


def _measure(
    source: ExportSource,
    size: InputSize,
    val: ShardSet,
    halves: dict[Part, onnx.ModelProto],
    quantized: dict[Part, onnx.ModelProto],
) -> Cost:
    num_crops = min(_VAL_CROPS, val.num_samples)
    before, after = (
        measure_quality(parts["encoder"], parts["decoder"], source.tables, _images(val, num_crops, size))
        for parts in (halves, halves | quantized)
    )
    noise: list[LayerNoise] = []
    for part, model in quantized.items():
        inputs = _images(val, min(_NOISE_CROPS, num_crops), size)
        if part == "decoder":
            inputs = (dequantize(analyse(source.model, torch.from_numpy(x)), source.tables) for x in inputs)
        noise += layer_noise(part, halves[part], model, inputs)
    cost = Cost(num_crops, before, after, noise)
    if (cost.psnr_loss_db or 0) > _TOLERABLE_DB or abs(cost.rate_change) > _TOLERABLE_RATE:
        log.warning(
            "INT8 costs more than %g dB or %g %% of rate: try another --calib_method, --int8_keep_last, or "
            "--calib_shards with crops like the images to be coded",
            _TOLERABLE_DB,
            100 * _TOLERABLE_RATE,
        )
    return cost


def _images(shards: ShardSet, count: int, size: InputSize) -> Iterator[Floats]:
    """x (1, 3, H, W) of crops spread over the split."""
    for crop_HWC in read_crops(shards, evenly_spread(shards, count)):
        yield fit_to_size(crop_HWC, size.height, size.width)[None]


def _facts(
    config: ExportConfig, methods: Sequence[Method | KnownSteps], crops: Int8Crops, cost: Cost
) -> dict[str, Any]:
    default = "qat" if any(isinstance(method, KnownSteps) for method in methods) else "percentile"
    return {
        "calibration": {
            "method": config.calib_method or default,
            "crops": crops.calib_images,
            "fingerprint": crops.train.fingerprint,
        },
        "parts": config.int8_parts,
        "encoder_last_layer": "float32" if config.int8_keep_last else "int8",
        "quality": {
            "val_crops": cost.num_crops,
            "fingerprint": crops.val.fingerprint,
            "float32": cost.before._asdict(),
            "int8": cost.after._asdict(),
            "psnr_loss_db": cost.psnr_loss_db,
            "rate_change": cost.rate_change,
        },
        "layers": [one._asdict() for one in cost.noise],
    }
