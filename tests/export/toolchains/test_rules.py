"""The rules of --target against the compilers: every form of the decoder, two widths, in float and in INT8.

What the rules call supported compiles, with no operator on the host, and computes rightly. What they say fails is
refused, or computed wrongly. A compiler takes seconds per file, and compiles 24 to 48.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import onnx
import pytest

from export.devices.lint import lint
from export.devices.rules import TARGETS, Status
from export.toolchains.environment import find_python
from export.toolchains.part import compile_part
from relic.codec.checkpoint import save_checkpoint
from relic.errors import InputError
from relic.files import temporary_folder
from relic.onnx.layout import CALIBRATION, FLOAT
from relic.onnx.sessions import PartName, open_session
from relic.options import Parts, ToolchainName, Upsample
from tests.conftest import write_shards
from tests.export.conftest import tiny_codec
from tests.export.toolchains.conftest import export_int8

log = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SIDE = 64
PARTS: list[PartName] = ["encoder", "decoder"]
WIDTHS = [(32, 48), (128, 192)]
DEVICES: dict[ToolchainName, list[str]] = {
    "openvino": ["cpu"],
    "qnn": ["htp"],
    "ethos-u": ["ethos-u55-256", "ethos-u65-512", "ethos-u85-512"],
    "rknn": ["rk3588", "rk3576"],
}
"""The first one is the device that the rules are for: others may take more."""
RIGHT = 0.01
"""Difference from onnxruntime in float, relative to the largest output. Devices compute in fp16."""


class File(NamedTuple):
    folder: Path
    """Holds the part."""
    part: PartName
    precision: str
    predicted: set[Status]
    """What the rules say about its nodes."""
    name: str


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function from width, form and parts with ReLU to an INT8 export."""
    work = tmp_path_factory.mktemp("rules")
    write_shards(work / "shards", "train", (8,), side=SIDE)
    write_shards(work / "shards", "val", (1,), side=SIDE)

    @functools.cache
    def make(width: tuple[int, int], upsample: Upsample, replaced: Parts = "all") -> Path:
        name = f"{width[0]}-{upsample}-{replaced}"
        save_checkpoint(work / f"{name}.pt", tiny_codec(replaced, width))
        return export_int8(work / f"{name}.pt", work / "shards", work / name, upsample, SIDE)

    return make


def files_for(name: ToolchainName, exports: Callable[..., Path]) -> Iterator[File]:
    for width in WIDTHS:
        for upsample in get_args(Upsample):
            for part in PARTS if upsample == "subpixel" else PARTS[1:]:
                yield from both_precisions(name, exports(width, upsample), part, f"N={width[0]} {upsample}")
    for part in PARTS:
        for file in both_precisions(name, exports(WIDTHS[0], "subpixel", "none"), part, "GDN"):
            yield file._replace(predicted={TARGETS[name].gdn.status})


def both_precisions(name: ToolchainName, export: Path, part: PartName, what: str) -> Iterator[File]:
    model = onnx.load(export / FLOAT / f"{part}.onnx")
    for precision, folder in (("int8", export), ("float32", export / FLOAT)):
        if name != "ethos-u" or precision == "int8":  # Vela takes nothing else
            predicted = {one.status for one in lint(part, model, name, precision)}
            yield File(folder, part, precision, predicted, f"{what} {part} {precision}")


def what_happens(name: ToolchainName, device: str, file: File) -> str:
    export = file.folder if file.precision == "int8" else file.folder.parent
    inputs = np.load(export / CALIBRATION / file.part / "000.npy")
    try:
        with temporary_folder() as out:  # a new one, because a file that is there is refused by some compilers
            compiled, found = compile_part(name, find_python(name), device, file.folder, file.part, inputs, out)
    except InputError as error:
        return f"refused: {error}"
    if compiled.host_operators:
        return f"{compiled.on_host} on the host"
    session = open_session(file.folder / f"{file.part}.onnx")
    expected: Any = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    difference = np.abs(found - expected).max() / max(1, np.abs(expected).max())
    return f"wrong by {difference:.2g}" if file.precision == "float32" and difference > RIGHT else "compiles"


@pytest.mark.parametrize("name", DEVICES)
def test_compilers_do_what_the_rules_say(
    name: ToolchainName, installed: Callable[[ToolchainName], None], exports: Callable[..., Path]
) -> None:
    installed(name)
    surprises = []
    for file in files_for(name, exports):
        for device in DEVICES[name]:
            happens = what_happens(name, device, file)
            log.info("%s: %s: %s, %.200s", device, file.name, sorted(file.predicted), happens)
            supported = file.predicted == {"supported"}
            fails = "fails" in file.predicted
            if (supported and happens != "compiles") or (not supported and not fails and "refused" in happens):
                surprises.append((device, file.name, file.predicted, happens))
            if fails and happens == "compiles" and device == DEVICES[name][0]:
                surprises.append((device, file.name, file.predicted, happens))
    assert not surprises
