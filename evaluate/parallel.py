"""Work on several images at a time, one core per image. Results come in the order of the images."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from evaluate.sources import SourceImage

T = TypeVar("T")

_LARGE_PIXELS = 1 << 22
"""Images of this size or larger are processed one at a time, with all cores: several could fill the memory."""


def map_images(function: Callable[[SourceImage], T], images: Iterable[SourceImage], workers: int) -> Iterator[T]:
    """Yield `function` of each image, in order, computed `workers` at a time. The first error ends it.

    Only a few images are in memory at once. A caller that stops early waits until the images in work are done.
    """
    if workers == 1:
        yield from map(function, images)
        return
    all_threads = torch.get_num_threads()
    with ThreadPoolExecutor(workers, "image", torch.set_num_threads, (1,)) as pool:
        begun: deque[Future[T]] = deque()
        try:
            # torch's thread count must be set in the main thread and in each worker.
            torch.set_num_threads(1)
            for image in images:
                is_large = image.pixels_BHWC[..., 0].numel() >= _LARGE_PIXELS
                while begun and (is_large or len(begun) > workers):
                    yield begun.popleft().result()
                if is_large:
                    torch.set_num_threads(all_threads)
                    yield function(image)
                    torch.set_num_threads(1)
                else:
                    # The source will overwrite the pixels.
                    kept = image._replace(pixels_BHWC=image.pixels_BHWC.clone())
                    begun.append(pool.submit(function, kept))
            while begun:
                yield begun.popleft().result()
        finally:
            torch.set_num_threads(all_threads)
            pool.shutdown(cancel_futures=True)
