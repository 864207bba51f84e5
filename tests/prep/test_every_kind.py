"""A folder with every kind of source, packed by the command and read back by three readers."""

import io
import json
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import webdataset
from numpy.typing import NDArray
from PIL import Image

from prep.make_shards import main
from prep.verify_shards import main as verify
from relic.loader.loader import ShardLoader
from relic.loader.order import eval_batches
from relic.shards.manifest import read_manifest
from relic.shards.shard_set import open_shard_set

SIDE = 32
COLOUR = (180, 90, 40)
GREY = (120, 120, 120)


def file(mode: str, colour: object, kind: str, size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def jpeg(**options: Any) -> bytes:
    return file("RGB", COLOUR, "JPEG", quality=95, **options)


def cmyk(*, marker: bool) -> bytes:
    data = file("CMYK", (*(255 - level for level in COLOUR), 0), "JPEG", quality=95)
    place = data.index(b"\xff\xee")
    return data if marker else data[:place] + data[place + 2 + struct.unpack_from(">H", data, place + 2)[0] :]


def ycck() -> bytes:
    inks = np.empty((40, 60, 4), np.uint8)
    inks[:] = (*COLOUR, 255)  # stored inverted
    encoded: bytes = simplejpeg.encode_jpeg(inks, quality=95, colorspace="CMYK", colorsubsampling="444")
    return encoded


def palette() -> bytes:
    image = Image.new("P", (60, 40), 1)
    image.putpalette(bytes((0, 0, 0, *COLOUR)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


def animation() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), COLOUR).save(
        buffer, "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40), "blue")]
    )
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif.tobytes())


def deep_grey() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 60), 120 * 257, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


GOOD: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "progressive.jpg": (jpeg(progressive=True), COLOUR),
    "cmyk.JPG": (cmyk(marker=True), COLOUR),
    "cmyk without marker.jpeg": (cmyk(marker=False), COLOUR),
    "ycck.jpg": (ycck(), COLOUR),
    "grey.jpg": (file("L", 120, "JPEG"), GREY),
    "deep.png": (deep_grey(), GREY),
    "palette.png": (palette(), COLOUR),
    "alpha.png": (file("RGBA", (*COLOUR, 255), "PNG"), COLOUR),
    "clear.png": (file("RGBA", (*COLOUR, 0), "PNG"), (255, 255, 255)),
    "animated.gif": (animation(), COLOUR),
    "bitmap.BMP": (file("RGB", COLOUR, "BMP"), COLOUR),
    "tagged.Tiff": (file("RGB", COLOUR, "TIFF"), COLOUR),
    "thin.png": (file("RGB", COLOUR, "PNG", (1, 300)), COLOUR),
    "flat.jpg": (file("RGB", COLOUR, "JPEG", (300, 1), quality=95), COLOUR),
    "a b.c.d.jpg": (jpeg(), COLOUR),
    "a/b\nc.jpg": (jpeg(), COLOUR),
    "b/b\nc.jpg": (jpeg(), COLOUR),
    "größe 写真.jpg": (jpeg(), COLOUR),
    **{f"turned{number}.jpg": (turned(number), COLOUR) for number in range(1, 9)},
}
BAD = {
    "truncated.jpg": jpeg()[:-200],
    "empty.jpg": b"",
    "text.jpg": b"not an image",
    "page.png": b"<html></html>",
    "bomb.jpg": jpeg().replace(struct.pack(">HH", 40, 60), struct.pack(">HH", 60_000, 60_000)),
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack these files into shards."""
    coco, out = tmp_path_factory.mktemp("coco"), tmp_path_factory.mktemp("out")
    for name, data in {**{name: data for name, (data, _) in GOOD.items()}, **BAD}.items():
        path = coco / "train2017" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (coco / "train2017" / "dangling.jpg").symlink_to("nowhere")
    flags = ("--include_val", "false", "--size", str(SIDE), "--samples_per_shard", "7", "--max_bad", "0.3")
    assert main(["--coco_dir", str(coco), "--out_dir", str(out), *flags]) == 0
    return out


def sources_by_key(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for path in sorted(out.glob("train-*.jsonl")) for line in path.read_text().splitlines()]
    return {line["key"]: line["source"] for line in lines}


def test_every_source_is_packed_or_rejected_with_a_reason(packed: Path) -> None:
    manifest = read_manifest(packed, "train")
    assert manifest is not None
    assert (manifest.accepted, manifest.rejected) == (len(GOOD), len(BAD) + 1)
    assert sorted(sources_by_key(packed).values()) == sorted(GOOD)
    entries = [json.loads(line) for line in (packed / "train.rejected.jsonl").read_text().splitlines()]
    assert {entry["source"] for entry in entries} == {*BAD, "dangling.jpg"}
    assert all(entry["reason"] for entry in entries)
    assert verify(["--shards", str(packed)]) == 0


def test_webdataset_reads_the_right_colours(packed: Path) -> None:
    tars = [str(tar) for tar in sorted(packed.glob("train-*.tar"))]
    sources, seen = sources_by_key(packed), set()
    for sample in webdataset.WebDataset(tars, shardshuffle=False).decode():
        source = sources[sample["__key__"]]
        seen.add(source)
        assert sample["npy"].shape == (SIDE, SIDE, 3)
        assert np.abs(sample["npy"].astype(int) - GOOD[source][1]).max() <= 4, source
    assert seen == set(GOOD)


def test_the_loader_reads_what_webdataset_does(packed: Path) -> None:
    shards = open_shard_set(packed, "train")
    tars = [str(tar) for tar in shards.tars]
    expected = {s["__key__"]: s["npy"] for s in webdataset.WebDataset(tars, shardshuffle=False).decode()}
    found: dict[str, NDArray[Any]] = {}
    with ShardLoader(shards, batch_size=5) as loader:
        for batch in loader.batches(eval_batches(shards.num_samples, 5, 0, 1)):
            found |= {key: np.array(image) for key, image in zip(batch.keys, batch.images, strict=True)}
    assert found.keys() == expected.keys()
    for key, pixels in expected.items():
        np.testing.assert_array_equal(found[key], pixels)


def test_tar_lists_and_unpacks_it(packed: Path, tmp_path: Path) -> None:
    for tar in sorted(packed.glob("train-*.tar")):
        subprocess.run(["tar", "-xf", tar, "-C", tmp_path], check=True)
        with tarfile.open(tar) as archive:
            assert all(member.mtime == 0 and member.isfile() for member in archive)
            assert archive.format == tarfile.USTAR_FORMAT or not archive.pax_headers
    assert {path.stem for path in tmp_path.iterdir()} == set(sources_by_key(packed))
    assert all(np.load(path).shape == (SIDE, SIDE, 3) for path in tmp_path.iterdir())
