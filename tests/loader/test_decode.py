"""Tars of other tools with odd and damaged images: the loader's pixels, and its one line that names the sample."""

import io
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import PngImagePlugin

from relic.errors import InputError
from relic.loader import decode
from relic.loader.loader import ShardLoader
from relic.pictures.crop_png import encode_crop_png
from relic.shards.manifest import Manifest, write_manifest
from relic.shards.shard_set import open_shard_set
from relic.shards.writer import ShardWriter
from tests.conftest import a_packing
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


def test_pngs_of_prep_and_of_other_programs_have_the_same_pixels(tmp_path: Path) -> None:
    for pixels in read(tmp_path, "png", save("PNG"), encode_crop_png(PHOTO), save("PNG"), encode_crop_png(PHOTO)):
        np.testing.assert_array_equal(pixels, PHOTO)


def test_pngs_of_prep_do_not_go_through_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PngImagePlugin, "PngImageFile", None)
    packed = encode_crop_png(PHOTO)
    np.testing.assert_array_equal(read(tmp_path, "png", packed, packed), [PHOTO, PHOTO])
    with pytest.raises(InputError, match="sample 1: TypeError"):
        read(tmp_path, "png", packed, save("PNG"))


def outcomes(folder: Path, samples: Sequence[bytes]) -> list[str | bytes]:
    """The pixels of each sample of a packed set, or the reason why it cannot be read. Hashes are not checked."""
    folder.mkdir()
    with ShardWriter(folder / "train-000000.tar") as writer:
        for number, data in enumerate(samples):
            writer.add(str(number), ".png", data, {})
    assert writer.info is not None
    packing = a_packing(width=16, height=16, encoding="png")
    write_manifest(folder, Manifest(packing, (writer.info,), len(samples), 0))
    found: list[str | bytes] = []
    with ShardLoader(open_shard_set(folder, "train"), batch_size=1000, threads=1, verify="off") as loader:
        for number in range(len(samples)):
            try:
                found += [batch.images.numpy().tobytes() for batch in loader.batches([np.array([number])])]
            except InputError as error:
                found.append(str(error).removeprefix(f"{folder}/"))
    return found


def test_a_damaged_png_of_prep_is_judged_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = encode_crop_png(PHOTO)
    damaged = [good[:place] + bytes([good[place] ^ 64]) + good[place + 1 :] for place in range(len(good))]
    damaged += [good[:length] for length in range(8, len(good), 5)]
    found = outcomes(tmp_path / "a", damaged)
    monkeypatch.setattr(decode, "decode_crop_png", lambda data, memory: False)  # all go through Pillow
    assert found == outcomes(tmp_path / "b", damaged)
    assert "train-000000.tar: sample 50: PNG whose pixels are damaged or cut (wrong checksum)" in found
    assert sum(isinstance(outcome, str) for outcome in found) > len(good) - 12


def test_compressed_pixels_that_end_between_two_rows_are_noticed(tmp_path: Path) -> None:
    """All checksums are right: a broken writer's file. Pillow would leave the missing rows black."""
    good = encode_crop_png(PHOTO)
    rows = zlib.decompress(good[41:-16])[: -2 * (1 + PHOTO[0].size)]
    short = good[:33] + chunk(b"IDAT", zlib.compress(rows)) + good[-12:]
    with pytest.raises(InputError, match=r"sample 1: PNG whose compressed pixels end before its last row"):
        read(tmp_path, "png", good, short)
