"""Bare loops to compare packing with: the same work on the same files, without writing anything."""

import io
import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from relic.arrays import Pixels
from relic.errors import InputError
from relic.pictures.crop_png import encode_crop_png

SIDE = 224
JPEG_QUALITY = 95
_WARM_UP_IMAGES = 20
PrepareImage = Callable[[Path], object]


def _square(width: int, height: int) -> tuple[int, int, int, int]:
    """The largest centred square."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _crop(path: Path) -> Image.Image:
    """Decode with libjpeg-turbo to 4 bytes per pixel, the fastest form that Pillow uses without a copy, and resize."""
    pixels = simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGBX")
    height, width, _ = pixels.shape
    image = Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=_square(width, height))


def bare_raw(path: Path) -> bytes:
    """The centre crop of a JPEG as RGB bytes."""
    return _crop(path).tobytes("raw", "RGB")


def bare_jpg(path: Path) -> bytes:
    """The centre crop of a JPEG as a JPEG."""
    pixels = np.asarray(_crop(path))
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorspace="RGBX", colorsubsampling="444")
    return encoded


def bare_png(path: Path) -> bytes:
    """The centre crop of a JPEG as a PNG, by the encoder of prep."""
    return encode_crop_png(np.frombuffer(bare_raw(path), np.uint8).reshape(SIDE, SIDE, 3))


def decode_alone(path: Path) -> Pixels:
    """Decode all pixels of a JPEG."""
    result: Pixels = simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGBX")
    return result


def decode_half(path: Path) -> Pixels:
    """Decode a JPEG at half its size, as `--decode fast` does for COCO's images and crops of 224."""
    data = path.read_bytes()
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, colorspace="RGBX", min_height=-(-height // 2), min_width=-(-width // 2)
    )
    return pixels


def decode_eighth(path: Path) -> Pixels:
    """Decode a JPEG at an eighth of its size. This is mostly the reading of Huffman codes, which no decoder skips."""
    pixels: Pixels = simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGBX", min_height=1, min_width=1)
    return pixels


def pillow_jpg(path: Path) -> bytes:
    """The centre crop as a JPEG, made with Pillow alone."""
    with Image.open(path) as source:
        image = source.convert("RGB")
    crop = image.crop(_square(*image.size)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


class _Span(NamedTuple):
    began: float
    ended: float


def images_per_second(step: PrepareImage, paths: Sequence[Path], processes: int) -> float:
    """Images per second of `processes` processes that start together and run `step` on their share of the files."""
    context = multiprocessing.get_context("spawn")
    barrier: Barrier = context.Barrier(processes)
    spans: SimpleQueue[_Span] = context.SimpleQueue()
    team = [
        context.Process(target=_work, args=(step, paths[number::processes], barrier, spans), daemon=True)
        for number in range(processes)
    ]
    for process in team:
        process.start()
    for process in team:
        process.join()
    measured = [spans.get() for process in team if process.exitcode == 0]
    if len(measured) < processes:
        raise InputError(
            "--images: the bare loop cannot read all of these JPEGs (the error is above); remove the bad ones"
        )
    return len(paths) / (max(span.ended for span in measured) - min(span.began for span in measured))


def _work(step: PrepareImage, paths: Sequence[Path], barrier: Barrier, spans: "SimpleQueue[_Span]") -> None:
    for path in paths[:_WARM_UP_IMAGES]:
        step(path)
    barrier.wait(timeout=60)
    began = time.monotonic()
    for path in paths:
        step(path)
    spans.put(_Span(began, time.monotonic()))
