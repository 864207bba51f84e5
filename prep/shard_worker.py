"""Pack one shard in a worker: read, decode, crop, encode, write, publish, record."""

import signal
from collections.abc import Callable
from typing import NamedTuple

from prep.cropping import Window, centre_window, cut, least_decode_size, random_window
from prep.encoding import encode_crop
from prep.images import Readable
from prep.listing import crop_key
from prep.split_folder import Rejection, ShardRecord, SplitFolder
from prep.tasks import KeyedSource, ShardTask
from prep.uploading import upload_shard
from relic.errors import InputError
from relic.pictures.decoding import Size, decode, read_header
from relic.pictures.reasons import Unreadable
from relic.shards.manifest import MEMBER_SUFFIX, Packing
from relic.shards.writer import ShardWriter

_MOST_SECONDS = 600
"""An image that takes longer ends its worker (SIGALRM): no decoder has a time limit of its own."""


class PackedCrop(NamedTuple):
    """One sample: its key, its payload, and its line of the .jsonl."""

    key: str
    payload: bytes
    listing: dict[str, object]


def pack_shard(task: ShardTask, report: Callable[[int], None]) -> ShardRecord:
    """Pack a shard and record it. Calls `report(n)` before it reads source n."""
    folder = SplitFolder(task.out_dir, task.packing.split)
    rejected = []
    sources = [keyed.source for keyed in task.sources]
    with ShardWriter(folder.tar(task.shard)) as writer, task.images.ahead(sources) as images:
        for number, keyed in enumerate(task.sources):
            report(number)
            try:
                crops = make_crops(images, keyed, task.packing)
            except Unreadable as reason:
                rejected.append(Rejection(keyed.source.path, str(reason)))
                continue
            for crop in crops:
                writer.add(crop.key, MEMBER_SUFFIX[task.packing.encoding], crop.payload, crop.listing)
    if writer.info is not None and task.out_url is not None:
        upload_shard(folder, writer.info, task.out_url)
    return folder.finish_shard(task.shard, ShardRecord(writer.info, tuple(rejected)))


def make_crops(images: Readable, keyed: KeyedSource, packing: Packing) -> list[PackedCrop]:
    """Make the crops of one image. Raises as `Readable.read` does, and InputError if the memory is not enough.

    An image that takes longer than 10 minutes ends the process.
    """
    signal.alarm(_MOST_SECONDS)
    try:
        return _make_crops(images, keyed, packing)
    except MemoryError as error:
        name = images.name_of(keyed.source.path)
        raise InputError(f"{name!r}: out of memory while its crops were made; try fewer --workers") from error
    finally:
        signal.alarm(0)


def _make_crops(images: Readable, keyed: KeyedSource, packing: Packing) -> list[PackedCrop]:
    shape = Size(packing.width, packing.height)
    header = read_header(images.read(keyed.source))
    windows = _windows(header.full, keyed.key, shape, packing)
    least = least_decode_size(header.full, windows, shape) if packing.decode == "fast" else None
    image, pixels = decode(header, least)
    crops = []
    for number, window in enumerate(windows):
        crop = cut(image, header.full, window, shape, pixels)
        listing: dict[str, object] = {"source": keyed.source.path, "source_size": header.full, "crop_box": window}
        key = crop_key(keyed.key, number, packing.crops_per_image)
        crops.append(PackedCrop(key, encode_crop(crop, packing.encoding, packing.jpeg_quality), listing))
    return crops


def _windows(full: Size, key: str, shape: Size, packing: Packing) -> list[Window]:
    if packing.crop == "center":
        return [centre_window(full, shape)]
    return [
        random_window(full, shape, seed=packing.seed, key=key, crop_number=number)
        for number in range(packing.crops_per_image)
    ]
