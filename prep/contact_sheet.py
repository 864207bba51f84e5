"""The contact sheet: one PNG that shows 64 crops of a split, for a visual check."""

import io
import random
from pathlib import Path

from PIL import Image

from prep.split_folder import SplitFolder
from relic.files import atomic_write
from relic.shards.index import index_path, read_records
from relic.shards.manifest import Manifest
from relic.shards.npy import read_npy
from relic.storage.objects import read_range
from relic.storage.urls import in_folder

_SIDE = 8
_CELL_PIXELS = 128
_PNG_LEVEL = 1
"""Level 6 is 10 % smaller but 3 times slower, and all workers wait for it."""


def write_contact_sheet(folder: SplitFolder, manifest: Manifest, out_url: str | None = None) -> None:
    """Write `SPLIT.contact.png`: 8 x 8 crops, chosen with the packing's seed, in the order of the shards.

    Crops of a tar that is not here are read from the folder `out_url`.
    """
    packing = manifest.packing
    chosen = sorted(random.Random(packing.seed).sample(range(manifest.accepted), min(_SIDE**2, manifest.accepted)))
    scale = min(1.0, _CELL_PIXELS / max(packing.width, packing.height))
    cell = max(1, round(packing.width * scale)), max(1, round(packing.height * scale))
    sheet = Image.new("RGB", (_SIDE * cell[0], _SIDE * cell[1]), "white")
    places = iter(range(_SIDE**2))
    first = 0
    for info in manifest.shards:
        wanted = [number - first for number in chosen if first <= number < first + info.samples]
        first += info.samples
        if not wanted:
            continue
        tar = folder.folder / info.name
        records = read_records(index_path(tar))
        for number in wanted:
            payload = _read(tar, out_url, int(records[number]["offset"]), int(records[number]["size"]))
            place = next(places)
            crop = open_payload(payload, packing.encoding)
            sheet.paste(crop.resize(cell, Image.Resampling.BOX), (place % _SIDE * cell[0], place // _SIDE * cell[1]))
    with atomic_write(folder.contact_path) as out:
        sheet.save(out, "PNG", compress_level=_PNG_LEVEL)


def _read(tar: Path, out_url: str | None, offset: int, size: int) -> bytes:
    if out_url is not None and not tar.exists():
        return bytes(read_range(in_folder(out_url, tar.name), offset, size))
    with tar.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def open_payload(payload: bytes, encoding: str) -> Image.Image:
    """Decode the payload of one sample to an RGB image."""
    if encoding == "raw":
        return Image.fromarray(read_npy(memoryview(payload)))
    return Image.open(io.BytesIO(payload)).convert("RGB")
