"""Read samples into rows of a batch: raw ones as they are, JPEG by simplejpeg, PNG by ISA-L or Pillow."""

import io
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import xxhash
from PIL import PngImagePlugin

from relic.arrays import Pixels
from relic.loader.open_shard import OpenShard, Scratch, Waits
from relic.loader.order import Indices
from relic.loader.reading import Reading
from relic.loader.shard_files import ShardFiles
from relic.options import Verify
from relic.pictures.crop_png import decode_crop_png
from relic.pictures.png import check_rows, read_png
from relic.pictures.reasons import unreadable
from relic.pictures.turbo import decode_jpeg
from relic.shards.image_header import Geometry, read_geometry
from relic.shards.npy import PAGE_BYTES, npy_header, read_npy
from relic.shards.plain_webdataset import PACK
from relic.shards.shard_set import ShardSet


class Seconds(NamedTuple):
    """Time of one thread, per stage."""

    read: float
    """Reading and hashing."""
    decode: float


_Sample = tuple[OpenShard, int, bool]
"""Shard, place in it, whether to check its hash. A plain tuple is fast to make, and every sample needs one."""


class SampleDecoder:
    """Fill rows (height, width, 3) uint8 with samples of a shard set. Several threads may call it at once.

    `verify`: when to compare a sample's xxh3-64: at its `first` read in this process, `always`, or never (`off`).
    """

    def __init__(self, shards: ShardSet, verify: Verify, reading: Reading, waits: Waits) -> None:
        self._files = ShardFiles(shards, reading, waits)
        self._waits = waits
        self._starts = np.cumsum([0, *shards.samples])
        self._shape = (shards.height, shards.width, 3)
        self._encoding = shards.encoding
        self._verify = verify
        # A bit per sample. The kernel gives memory only to the pages that are written to.
        self._verified = np.zeros(-(-shards.num_samples // 8) if verify == "first" else 0, np.uint8)
        self._verified_lock = threading.Lock()
        self._plain_headers = True
        """Whether each raw sample read so far had a header as relic writes it."""
        self._scratch = Scratch()

    def fill(self, rows: Pixels, samples: Indices) -> tuple[list[str], Seconds]:
        """Decode `samples` (n,) into `rows` (n, H, W, 3), contiguous. Return their keys and the time taken.

        Raises InputError naming shard and sample for a cut shard, a wrong hash, or an image that cannot be decoded.
        """
        located = self._locate(samples)
        if self._encoding == "raw":
            seconds = self._fill_raw(rows, located)
        else:
            seconds = self._fill_decoded(rows, located, _jpg if self._encoding == "jpg" else _png)
        if self._verify == "first":
            with self._verified_lock:
                np.bitwise_or.at(self._verified, samples >> 3, (1 << (samples & 7)).astype(np.uint8))
        return [shard.key(place) for shard, place, _ in located], seconds

    def _locate(self, samples: Indices) -> list[_Sample]:
        numbers = np.searchsorted(self._starts, samples, "right") - 1
        places = (samples - self._starts[numbers]).tolist()
        checks = [self._verify == "always"] * len(places)
        if self._verify == "first":
            checks = (self._verified[samples >> 3] >> (samples & 7) & 1 == 0).tolist()
        shards = self._files.open(set(numbers.tolist()))
        return list(zip(map(shards.__getitem__, numbers.tolist()), places, checks, strict=True))

    def _fill_raw(self, rows: Pixels, located: Sequence[_Sample]) -> Seconds:
        """Read pixels from the file directly into the rows.

        The .npy header before them is read at the first read of a sample, and not again while all were as relic writes
        them.
        """
        began = time.perf_counter()
        row_bytes, pixels, address, start = rows[0].nbytes, rows.data.cast("B"), rows.ctypes.data, 0
        memory = self._scratch.view(row_bytes + 3 * PAGE_BYTES)
        only_pixels = self._verify == "first" and self._plain_headers
        for number, sample in enumerate(located):
            shard, place, check = sample
            row = pixels[start : start + row_bytes]
            if only_pixels and not check:
                shard.read_end(row, address + start, place, memory)
            elif not self._read_npy(row, address + start, sample, memory):
                self._plain_headers = False
                self._fill_decoded(rows[number : number + 1], [sample], _npy)
            start += row_bytes
        return Seconds(time.perf_counter() - began, 0.0)

    def _read_npy(self, row: memoryview, address: int, sample: _Sample, memory: memoryview) -> bool:
        """Fill `row` with a sample whose header is as relic writes it. False: it has another header."""
        shard, place, check = sample
        header_bytes = shard.sizes[place] - len(row)
        if not 0 < header_bytes <= PAGE_BYTES:
            return False
        header = shard.read_into(row, address, place, memory)
        if check:
            digest = xxhash.xxh3_64(header)
            digest.update(row)
            _compare(digest.intdigest(), shard, place)
        height, width, _ = self._shape
        return bytes(header) == npy_header(height, width, header_bytes)  # a memoryview compares byte by byte

    def _fill_decoded(
        self, rows: Pixels, located: Sequence[_Sample], decode: Callable[[memoryview, Pixels], tuple[int, ...]]
    ) -> Seconds:
        began = time.perf_counter()
        payloads = self._read(located)
        read = time.perf_counter()
        self._waits.take_core()
        for row, (shard, place, _), data in zip(rows, located, payloads, strict=True):
            try:
                shape = decode(data, row)
            except Exception as error:  # decoders raise many types for damaged bytes
                raise shard.fault(place, self._mismatch(data) or str(unreadable(error))) from error
            if shape != self._shape:
                raise shard.fault(place, self._mismatch(data) or f"is of shape {shape}, the set of {self._shape}")
        return Seconds(read - began, time.perf_counter() - read)

    def _read(self, located: Sequence[_Sample]) -> list[memoryview]:
        """The payloads, in memory of this thread. All are read before one is decoded: it waits for a core once."""
        starts = [0, *itertools.accumulate(shard.room(place) for shard, place, _ in located)]
        memory = self._scratch.view(starts[-1])
        payloads = []
        for (shard, place, check), start, end in zip(located, starts, starts[1:], strict=False):
            data = shard.read(place, memory[start:end])
            if check:
                _compare(xxhash.xxh3_64_intdigest(data), shard, place)
            payloads.append(data)
        return payloads

    def _mismatch(self, data: memoryview) -> str:
        """How a sample differs from the set's encoding and size; empty when it does not."""
        found = read_geometry(data)
        expected = Geometry(self._encoding, *self._shape[:2])
        return "" if found in (None, expected) else f"is {found}, the set's crops are {expected}; {PACK}"


def _npy(data: memoryview, row: Pixels) -> tuple[int, ...]:
    """Copy an array whose header has another length than relic's, or whose pixels are in Fortran order."""
    pixels = read_npy(data)
    if pixels.shape == row.shape:
        row[:] = pixels
    return pixels.shape


def _jpg(data: memoryview, row: Pixels) -> tuple[int, ...]:
    shape: tuple[int, ...] = decode_jpeg(data, "RGB", row).shape
    return shape


def _png(data: memoryview, row: Pixels) -> tuple[int, ...]:
    """PNGs that other programs wrote go through Pillow, and so do damaged ones: their reasons are the same for all."""
    if decode_crop_png(data, row):
        return row.shape
    plain = read_png(bytes(data)).data
    with PngImagePlugin.PngImageFile(io.BytesIO(plain)) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"a PNG of mode {image.mode} has more than 8 bits per channel; {PACK}")
        image.load()
        check_rows(image, plain)
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape == row.shape:
        row[:] = pixels
    return pixels.shape


def _compare(found: int, shard: OpenShard, place: int) -> None:
    if found != shard.digests[place]:
        raise shard.fault(place, "its bytes changed since it was packed (xxh3 differs); pack the shards again")
