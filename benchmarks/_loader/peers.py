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

from benchmarks._loader.ceilings import copy_ceiling, decode_ceiling
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


def all_peers(crops: Crops, batch_size: int, cores: int, stack: ExitStack) -> list[Peer]:
    """Every loader of the comparison. `stack` closes their resources."""
    return [
        relic_peer("relic_raw", crops.raw, batch_size, stack),
        relic_peer("relic_jpg", crops.jpg, batch_size, stack),
        relic_peer("relic_png", crops.png, batch_size, stack),
        Peer("webdataset_jpg", _webdataset(crops.jpg, "jpg", "torchrgb8", batch_size, cores)),
        Peer("webdataset_npy", _webdataset(crops.raw, "npy", None, batch_size, cores)),
        Peer("torch_folder", _torch_folder(crops.loose, batch_size, cores)),
        Peer("copy_ceiling", copy_ceiling(crops.raw, batch_size)),
        Peer("decode_ceiling", decode_ceiling(crops.jpg, batch_size, cores, stack)),
    ]


def relic_peer(name: str, shards: ShardSet, batch_size: int, stack: ExitStack) -> Peer:
    """relic's loader as the trainer uses it: one for all epochs, hashes checked on the first read, pinned for a GPU."""
    loader = stack.enter_context(ShardLoader(shards, batch_size=batch_size, pin_memory=torch.cuda.is_available()))

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
