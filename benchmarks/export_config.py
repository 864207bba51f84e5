"""The flags of the export's benchmark, checked before anything is exported."""

import dataclasses
import re
from pathlib import Path

from relic.codec.constants import STRIDE
from relic.errors import InputError
from relic.options import Upsample


@dataclasses.dataclass(frozen=True)
class ExportBenchmarkConfig:
    """Milliseconds of encoder and decoder in onnxruntime on this CPU: GDN and ReLU, fp32 and INT8, one thread and all.

    Weights are random: they do not change the time.
    """

    channels: str = "128,192"
    """Channels N,M of the codec; those of CompressAI's quality 1 to 5 by default."""
    sizes: str = "224x224,1280x720"
    """Sizes of the image, as WIDTHxHEIGHT, multiples of 16."""
    upsample: Upsample = "deconv5"
    """The decoder's upsampling, as of `export/onnx_parts.py`."""
    rounds: int = 3
    """Turns that each model gets; a figure is the median of all its runs."""
    json: Path | None = None
    """File for the figures."""
    plot: Path | None = None
    """PNG file for a bar chart."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[1-9]\d{0,3},[1-9]\d{0,3}", self.channels):
            raise InputError(f"--channels {self.channels}: expected two whole numbers N,M, as 128,192")
        for size in self.sizes.split(","):
            sides = size.split("x")
            if len(sides) != 2 or not all(side.isdecimal() and int(side) and int(side) % STRIDE == 0 for side in sides):
                raise InputError(f"--sizes {size}: expected WIDTHxHEIGHT, multiples of {STRIDE}, as 1280x720")
        if self.rounds < 1:
            raise InputError(f"--rounds {self.rounds}: must be 1 or more")
        for flag, path in (("--json", self.json), ("--plot", self.plot)):
            if path is not None and not path.parent.is_dir():
                raise InputError(f"{flag} {path}: no folder {path.parent}")

    @property
    def channel_pair(self) -> tuple[int, int]:
        """(N, M)."""
        n, m = self.channels.split(",")
        return int(n), int(m)

    @property
    def width_height_pairs(self) -> list[tuple[int, int]]:
        """(width, height) of each size."""
        return [(int(width), int(height)) for width, height in (size.split("x") for size in self.sizes.split(","))]
