"""Several images at a time, one core per image, delivered in their order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from evaluate.sources import Picture

T = TypeVar("T")

_LARGE_PIXELS = 1 << 22
"""Images from this size on are taken one at a time, with all cores inside: side by side they could fill the memory."""


def map_pictures(function: Callable[[Picture], T], pictures: Iterable[Picture], workers: int) -> Iterator[T]:
    """`function` of each picture, in order, `workers` at a time; the first error ends it.

    A few pictures are held at once, however many there are. Ending early waits for those begun.
    """
    if workers == 1:
        yield from map(function, pictures)
        return
    all_threads = torch.get_num_threads()
    with ThreadPoolExecutor(workers, "picture", torch.set_num_threads, (1,)) as pool:
        begun: deque[Future[T]] = deque()
        try:
            # Said in each thread and here: only then torch leaves the other cores alone.
            torch.set_num_threads(1)
            for picture in pictures:
                is_large = picture.image_BHWC[..., 0].numel() >= _LARGE_PIXELS
                while begun and (is_large or len(begun) > workers):
                    yield begun.popleft().result()
                if is_large:
                    torch.set_num_threads(all_threads)
                    yield function(picture)
                    torch.set_num_threads(1)
                else:  # the source will write over its pixels
                    kept = picture._replace(image_BHWC=picture.image_BHWC.clone())
                    begun.append(pool.submit(function, kept))
            while begun:
                yield begun.popleft().result()
        finally:
            torch.set_num_threads(all_threads)
            pool.shutdown(cancel_futures=True)
