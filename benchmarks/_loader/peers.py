"""The loaders to compare, each as a function from an epoch to its batches, in the main process.

All give shuffled batches of the same size, with one thread or worker process per core. The batches are uint8, except
`torch_folder`, which makes float images in its workers, as code with torchvision does. webdataset and torch are used as
in their documentation. Their workers are started again in each epoch, which is their default.
"""

from collections.abc import Callable, Iterable, Sized
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch import Tensor

from benchmarks._loader.ceilings import block_ceiling, copy_ceiling, decode_ceiling, mapped_members, read_ceiling
from benchmarks._shared.crops import Crops
from relic.loader.loader import LoaderTimes, ShardLoader
from relic.loader.order import epoch_order, train_batches
from relic.shards.shard_set import ShardSet


class Peer(NamedTuple):
    """A loader of the comparison."""

    name: str
    epoch: Callable[[int], Iterable[Sized]]
    """Number of an epoch, from 0 -> its batches."""
    times: LoaderTimes | None = None
    """The seconds that relic's loader measures itself."""


def all_peers(crops: Crops, batch_size: int, threads: int, stack: ExitStack) -> list[Peer]:
    """Every loader of the comparison, and the ceilings. `stack` closes their resources."""
    raw, jpg, png = crops.raw, crops.jpg, crops.png
    assert png is not None
    return [
        relic_peer("relic_raw", raw, batch_size, stack),
        relic_peer("relic_jpg", jpg, batch_size, stack),
        relic_peer("relic_png", png, batch_size, stack),
        *other_peers(crops, batch_size, threads),
        Peer("block_ceiling", block_ceiling(raw, threads, stack)),
        Peer("block_ceiling_1", block_ceiling(raw, 1, stack)),
        Peer("copy_ceiling", copy_ceiling(raw, mapped_members(raw), batch_size, threads, stack)),
        Peer("read_ceiling", read_ceiling(raw, batch_size, threads, stack)),
        Peer("decode_ceiling", decode_ceiling(jpg, mapped_members(jpg), batch_size, threads, stack)),
        Peer("decode_ceiling_png", decode_ceiling(png, mapped_members(png), batch_size, threads, stack)),
    ]


def other_peers(crops: Crops, batch_size: int, workers: int) -> list[Peer]:
    """webdataset and torch on the same crops."""
    return [
        Peer("webdataset_npy", _webdataset(crops.raw, "npy", None, batch_size, workers)),
        Peer("webdataset_jpg", _webdataset(crops.jpg, "jpg", "torchrgb8", batch_size, workers)),
        Peer("torch_folder", _torch_folder(crops.loose, batch_size, workers)),
    ]


def relic_peer(name: str, shards: ShardSet, batch_size: int, stack: ExitStack, **options: Any) -> Peer:
    """relic's loader as the trainer uses it: one for all epochs, hashes checked on the first read, pinned for a GPU.

    `options`: further arguments of `ShardLoader`.
    """
    pinned = torch.cuda.is_available()
    loader = stack.enter_context(ShardLoader(shards, batch_size=batch_size, pin_memory=pinned, **options))

    def epoch(number: int) -> Iterable[Sized]:
        plan = train_batches(epoch_order(shards.samples, 0, number), batch_size, 0, 1)
        return (batch.images for batch in loader.batches(plan))

    return Peer(name, epoch, loader.times)


def _webdataset(
    shards: ShardSet, suffix: str, image_format: str | None, batch_size: int, workers: int
) -> Callable[[int], Iterable[Sized]]:
    """webdataset: shards and a buffer of 1,000 samples are shuffled, decoded and batched in the workers."""
    tars = [str(tar) for tar in shards.tars]
    data = wds.WebDataset(tars, shardshuffle=100, empty_check=False).shuffle(1000)
    decoded = data.decode(image_format) if image_format else data.decode()
    loader = wds.WebLoader(decoded.to_tuple(suffix).batched(batch_size), batch_size=None, num_workers=workers)
    return lambda number: (batch[0] for batch in loader)


class _LooseFiles(torch.utils.data.Dataset[Tensor]):
    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Tensor:
        with Image.open(self._paths[number]) as image:
            pixels = np.array(image.convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255)


def _torch_folder(folder: Path, batch_size: int, workers: int) -> Callable[[int], Iterable[Sized]]:
    loader: Any = torch.utils.data.DataLoader(_LooseFiles(folder), batch_size, shuffle=True, num_workers=workers)
    return lambda number: loader
