"""The runtimes of an exchange: torch, onnxruntime and the simulators of toolchains."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from export.crops import fit_to_size
from export.exchange.plan import ExchangePlan
from export.exchange.streams import CodecRuntime, Exchange, exchange_streams
from export.source import load_source
from export.toolchains.part import compile_part
from export.toolchains.registry import TOOLCHAINS
from relic.arrays import Floats
from relic.bitstream.tables import Tables
from relic.errors import InputError
from relic.files import temporary_folder
from relic.onnx.layout import FLOAT
from relic.onnx.sessions import PartName, load_tables, open_decoder, open_encoder, run_each
from relic.options import ToolchainName
from relic.pictures.decoding import read_pixels
from relic.pictures.reasons import Unreadable


def exchange_all(plan: ExchangePlan) -> Exchange:
    """Exchange the streams of all runtimes. Raises InputError for an image or a part that a runtime does not take."""
    tables = load_tables(plan.config.export)
    x_N3HW = np.stack([_read(file, plan.manifest.height, plan.manifest.width) for file in plan.images])
    with temporary_folder() as work:
        runtimes = [*_torch(plan), *_onnxruntime(plan, tables)]
        runtimes += [_simulator(name, plan, tables, work / name) for name in plan.pythons]
        return exchange_streams(runtimes, x_N3HW)


def _torch(plan: ExchangePlan) -> list[CodecRuntime]:
    if plan.config.ckpt is None:
        return []
    source = load_source(plan.config.ckpt, None)
    if source.origin["decoder_sha256"] != plan.manifest.checkpoint.get("decoder_sha256"):
        raise InputError(f"--ckpt {plan.config.ckpt}: --export {plan.config.export} was made from another checkpoint")

    def each(layers: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Floats], Floats]:
        @torch.inference_mode()
        def run(inputs: Floats) -> Floats:
            return torch.cat([layers(torch.from_numpy(one[None])) for one in inputs]).numpy()

        return run

    return [
        CodecRuntime(
            "torch", source.tables, each(source.model.g_a), each(lambda y_hat: source.model.g_s(y_hat).clamp(0, 1))
        )
    ]


def _onnxruntime(plan: ExchangePlan, tables: Tables) -> list[CodecRuntime]:
    folder = plan.config.export
    folders = {"float32": folder / FLOAT, "int8": folder} if plan.manifest.precision == "int8" else {"float32": folder}
    return [
        CodecRuntime(
            name,
            tables,
            functools.partial(run_each, open_encoder(folder, tables)),
            functools.partial(run_each, open_decoder(folder, tables)),
        )
        for name, folder in folders.items()
    ]


def _simulator(name: ToolchainName, plan: ExchangePlan, tables: Tables, out: Path) -> CodecRuntime:
    out.mkdir()

    def run(part: PartName) -> Callable[[Floats], Floats]:
        device = TOOLCHAINS[name].devices[0]
        return lambda inputs: compile_part(name, plan.pythons[name], device, plan.config.export, part, inputs, out)[1]

    return CodecRuntime(name, tables, run("encoder"), run("decoder"))


def _read(file: Path, height: int, width: int) -> Floats:
    try:
        return fit_to_size(read_pixels(file), height, width)
    except Unreadable as error:
        raise InputError(f"{file}: not a readable image ({error}); remove it from the folder") from error
