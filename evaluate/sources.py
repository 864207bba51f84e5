"""The images to evaluate on: a split of shards or a folder. Over all ranks each image is read once."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from evaluate.folder import read_image, read_image_size
from evaluate.plan import ImageFolder
from relic.distributed import World
from relic.files import shown_path
from relic.loader.loader import ShardLoader
from relic.loader.order import eval_batches
from relic.loader.reading import Reading, plan_reading
from relic.machine import share_of_cores
from relic.options import Direct
from relic.pictures.decoding import Size
from relic.shards.shard_set import ShardSet


class SourceImage(NamedTuple):
    """One image of a source. Its pixels are valid until the next image is read."""

    number: int
    """Its number in the source, from 0."""
    name: str
    """Key in the shards, or path relative to the folder."""
    pixels_BHWC: Tensor
    """uint8 (1, H, W, 3) on the CPU."""


class ImageSource(Protocol):
    """Images in a fixed order."""

    @property
    def num_images(self) -> int: ...

    def describe(self) -> dict[str, str]:
        """What the images are, for the report."""
        ...

    def read(self, numbers: Sequence[int]) -> Iterator[SourceImage]:
        """The images with these numbers, in this order."""
        ...

    def sizes(self) -> Iterator[tuple[str, Size]]:
        """Name and size of the images, where they are known without the pixels. Crops have one size."""
        ...


@dataclass(frozen=True)
class ShardSource:
    """A split of packed crops. `io_threads` and `direct` are the loader's."""

    shards: ShardSet
    io_threads: int = 0
    direct: Direct = "auto"

    @property
    def num_images(self) -> int:
        return self.shards.num_samples

    @property
    def reading(self) -> Reading:
        """How the shards are read."""
        return plan_reading(self.shards, self.direct, self.io_threads, share_of_cores())

    def describe(self) -> dict[str, str]:
        return {
            "shards": shown_path(self.shards.folder),
            "split": self.shards.split,
            "fingerprint": self.shards.fingerprint,
        }

    def read(self, numbers: Sequence[int]) -> Iterator[SourceImage]:
        plan = [np.array([number]) for number in numbers]
        with ShardLoader(self.shards, batch_size=1, io_threads=self.io_threads, direct=self.direct) as loader:
            for number, batch in zip(numbers, loader.batches(plan), strict=True):
                yield SourceImage(number, batch.keys[0], batch.images)

    def sizes(self) -> Iterator[tuple[str, Size]]:
        yield f"the crops of {self.shards.folder}", Size(self.shards.width, self.shards.height)


@dataclass(frozen=True)
class FolderSource:
    """Image files of any sizes."""

    images: ImageFolder

    @property
    def num_images(self) -> int:
        return len(self.images.names)

    def describe(self) -> dict[str, str]:
        return {"images": shown_path(self.images.folder)}

    def read(self, numbers: Sequence[int]) -> Iterator[SourceImage]:
        for number in numbers:
            name = self.images.names[number]
            pixels = torch.from_numpy(read_image(self.images.folder / name))[None]
            yield SourceImage(number, _shown(name), pixels)

    def sizes(self) -> Iterator[tuple[str, Size]]:
        for name in self.images.names:
            if size := read_image_size(self.images.folder / name):
                yield _shown(name), size


def _shown(name: str) -> str:
    """A file name that is not UTF-8 can be opened, but not written into a report."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def numbers_of_rank(source: ImageSource, world: World) -> list[int]:
    """The numbers of this rank's images, in order. Over all ranks every image is there exactly once."""
    return [int(number) for (number,) in eval_batches(source.num_images, 1, world.rank, world.size)]


def source_of(images: ShardSet | ImageFolder, *, io_threads: int = 0, direct: Direct = "auto") -> ImageSource:
    """The images of a plan, ready to be read."""
    return FolderSource(images) if isinstance(images, ImageFolder) else ShardSource(images, io_threads, direct)
