"""The inputs of calibration: crops for the encoder, and the rounded latents of the same crops for the decoder.

They are files of one array each: vendors' tools expect that, and at 1280x720 they would not fit into memory.
Shapes: x_1CHW float32 in [0, 1]; y_hat_1Mhw float32.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from export.crops import fit_to_size, random_samples, read_crops
from export.onnx_files import InputSize
from export.source import ExportSource
from relic.bitstream.tables import dequantize
from relic.codec.coding import analyse
from relic.shards.shard_set import ShardSet

_README = """\
What the INT8 files were calibrated on, for a vendor's quantizer: {count} train crops, one array a file, float32.

encoder/NNN.npy  x, shape {x}: RGB in [0, 1], channels first. No mean is taken off, nothing is divided by.
decoder/NNN.npy  y_hat, shape {y_hat}: the latents of encoder/NNN.npy, rounded about the medians of tables.npz.
encoder.txt, decoder.txt  these files, one path per line, relative to this folder: RKNN-Toolkit2's build(dataset=).
"""


class Calibration(NamedTuple):
    """Files of one array each. The decoder's latents are those of the encoder's crops, in the same order."""

    encoder: list[Path]
    decoder: list[Path]


def write_calibration(
    folder: Path, source: ExportSource, size: InputSize, shards: ShardSet, num_crops: int
) -> Calibration:
    """Draw crops from the split by a fixed seed, and write them to `folder`, which must not exist yet."""
    written = Calibration([], [])
    for part in Calibration._fields:
        (folder / part).mkdir(parents=True)
    for crop_HWC in read_crops(shards, random_samples(shards, num_crops)):
        x_1CHW = fit_to_size(crop_HWC, size.height, size.width)[None]
        y_hat_1Mhw = dequantize(analyse(source.model, torch.from_numpy(x_1CHW)), source.tables)
        for part, array in zip(Calibration._fields, (x_1CHW, y_hat_1Mhw), strict=True):
            files: list[Path] = getattr(written, part)
            files.append(folder / part / f"{len(files):03}.npy")
            np.save(files[-1], np.ascontiguousarray(array, np.float32))
    shapes = {"x": x_1CHW.shape, "y_hat": y_hat_1Mhw.shape}
    for part in Calibration._fields:
        (folder / f"{part}.txt").write_text("".join(f"{part}/{file.name}\n" for file in getattr(written, part)))
    (folder / "README.txt").write_text(_README.format(count=len(written.encoder), **shapes))
    return written


def range_of(files: list[Path]) -> tuple[float, float]:
    """The smallest and the largest value of all files."""
    arrays = (load(file) for file in files)
    low, high = zip(*((array.min(), array.max()) for array in arrays), strict=True)
    return float(min(low)), float(max(high))


def load(file: Path) -> npt.NDArray[np.float32]:
    """The array of a file."""
    values: npt.NDArray[np.float32] = np.load(file, allow_pickle=False)
    return values
