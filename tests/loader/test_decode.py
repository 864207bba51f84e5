"""Tars of other tools with odd and damaged images: the loader's pixels, and its one line that names the sample."""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from relic.errors import InputError
from relic.loader.loader import ShardLoader
from relic.shards.shard_set import open_shard_set
from tests.pictures.odd_files import PHOTO, chunk, in_header, jpeg, progressive_jpeg, save


def read(folder: Path, ending: str, *images: bytes) -> list[npt.NDArray[np.uint8]]:
    with tarfile.open(folder / "train-000.tar", "w") as tar:
        for number, data in enumerate(images):
            member = tarfile.TarInfo(f"{number}.{ending}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    shards = open_shard_set(folder, "train")
    with ShardLoader(shards, batch_size=len(images)) as loader:
        return [np.array(image) for batch in loader.batches([np.arange(len(images))]) for image in batch.images]


def test_harmless_oddities_end_no_training(tmp_path: Path) -> None:
    plain = jpeg()
    odd = [in_header(plain, bytes(3)), plain[:-2] + bytes(64) + plain[-2:], plain[:11] + b"\2\0" + plain[13:]]
    first, *others = read(tmp_path, "jpg", plain, *odd)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_side_chunks_of_a_png_end_no_training(tmp_path: Path) -> None:
    plain = save("PNG")
    for pixels in read(tmp_path, "png", plain, plain[:33] + chunk(b"tEXt", b"a\0b", 1) + plain[33:]):
        np.testing.assert_array_equal(pixels, PHOTO)


@pytest.mark.parametrize(
    ("ending", "good", "bad"),
    [
        ("jpg", jpeg(), jpeg()[:-100]),
        ("jpg", jpeg(), jpeg().replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 65500, 65500))),
        ("jpg", jpeg(), progressive_jpeg(1000)),
        ("png", save("PNG"), save("PNG").replace(struct.pack(">II", 16, 16), struct.pack(">II", 60000, 60000))),
        ("png", save("PNG"), save("PNG")[:20]),
        ("png", save("PNG"), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%BeginBinary: -19\n" + bytes(20)),
    ],
)
def test_damage_is_one_line_with_the_sample(tmp_path: Path, ending: str, good: bytes, bad: bytes) -> None:
    with pytest.raises(InputError, match=r"train-000\.tar.*\b1\b"):
        read(tmp_path, ending, good, bad)
