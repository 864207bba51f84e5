"""Read one sample into its row of a batch: raw straight from the file, JPEG by simplejpeg, PNG by Pillow."""

import io
import threading
import time
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
import xxhash
from PIL import Image

from relic.errors import InputError
from relic.loader.shard_files import OpenShard, ShardFiles
from relic.shards.npy import HEADER_BYTES, npy_header
from relic.shards.shard_set import ShardSet

Verify = Literal["first", "always", "off"]


class Seconds(NamedTuple):
    """Thread time spent by stage."""

    read: float
    decode: float


class SampleDecoder:
    """Fill rows (height, width, 3) uint8 with samples of a shard set; safe to call from several threads.

    `verify`: compare a sample's xxh3-64 on its `first` read in this process, `always`, or never (`off`).
    """

    def __init__(self, shards: ShardSet, verify: Verify) -> None:
        self._files = ShardFiles(shards.tars)
        self._starts = np.cumsum([0, *shards.samples])
        self._shape = (shards.height, shards.width, 3)
        self._decode_into = {"raw": self._raw, "jpg": self._jpg, "png": self._png}[shards.encoding]
        self._npy_header = npy_header(shards.height, shards.width)
        self._verify = verify
        self._verified = np.zeros(shards.num_samples, bool)
        self._scratch = threading.local()

    def fill(self, rows: npt.NDArray[np.uint8], samples: npt.NDArray[np.int64]) -> tuple[list[str], Seconds]:
        """Decode `samples` (n,) into `rows` (n, H, W, 3); return their keys and the seconds taken.

        Raises InputError naming shard and sample for a cut shard, a wrong hash or an undecodable image.
        """
        shard_numbers = np.searchsorted(self._starts, samples, "right") - 1
        places = samples - self._starts[shard_numbers]
        keys, reading, decoding = [], 0.0, 0.0
        for row, sample, number, place in zip(
            rows, samples.tolist(), shard_numbers.tolist(), places.tolist(), strict=True
        ):
            shard = self._files[number]
            offset, size, digest, key = shard.record(place)
            expected = digest if self._verify == "always" or not self._verified[sample] else None
            read, decoded = self._decode_into(
                shard, offset, size, expected if self._verify != "off" else None, key, row
            )
            self._verified[sample] = True
            keys.append(key)
            reading += read
            decoding += decoded
        return keys, Seconds(reading, decoding)

    def _raw(
        self, shard: OpenShard, offset: int, size: int, digest: int | None, key: str, row: npt.NDArray[np.uint8]
    ) -> tuple[float, float]:
        began = time.perf_counter()
        header = self._buffer(HEADER_BYTES)
        if size != HEADER_BYTES + row.nbytes:
            raise InputError(f"{shard.tar}: sample {key}: not a uint8 array of shape {self._shape}")
        pixels = row.data.cast("B")
        shard.read_into([header, pixels], offset, size, key)
        if digest is not None:
            state = xxhash.xxh3_64(header)
            state.update(pixels)
            _check(state.intdigest(), digest, shard, key)
        if header != self._npy_header:
            raise InputError(f"{shard.tar}: sample {key}: not a uint8 array of shape {self._shape}")
        return time.perf_counter() - began, 0.0

    def _jpg(
        self, shard: OpenShard, offset: int, size: int, digest: int | None, key: str, row: npt.NDArray[np.uint8]
    ) -> tuple[float, float]:
        began = time.perf_counter()
        data = self._payload(shard, offset, size, digest, key)
        read = time.perf_counter()
        try:
            decoded = simplejpeg.decode_jpeg(data, "RGB", buffer=row)
        except ValueError as error:
            raise InputError(f"{shard.tar}: sample {key}: {error}") from error
        if decoded.shape != self._shape:
            raise InputError(f"{shard.tar}: sample {key}: is {decoded.shape}, the set's crops are {self._shape}")
        return read - began, time.perf_counter() - read

    def _png(
        self, shard: OpenShard, offset: int, size: int, digest: int | None, key: str, row: npt.NDArray[np.uint8]
    ) -> tuple[float, float]:
        began = time.perf_counter()
        data = self._payload(shard, offset, size, digest, key)
        read = time.perf_counter()
        try:
            with Image.open(io.BytesIO(data)) as image:
                row[:] = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{shard.tar}: sample {key}: {error}") from error
        return read - began, time.perf_counter() - read

    def _payload(self, shard: OpenShard, offset: int, size: int, digest: int | None, key: str) -> memoryview:
        data = self._buffer(size)
        shard.read_into([data], offset, size, key)
        if digest is not None:
            _check(xxhash.xxh3_64_intdigest(data), digest, shard, key)
        return data

    def _buffer(self, size: int) -> memoryview:
        """This thread's reused scratch memory: fresh memory for every sample would cost page faults."""
        scratch = getattr(self._scratch, "data", None)
        if scratch is None or len(scratch) < size:
            scratch = self._scratch.data = bytearray(max(size, 1 << 16))
        return memoryview(scratch)[:size]


def _check(found: int, expected: int, shard: OpenShard, key: str) -> None:
    if found != expected:
        raise InputError(
            f"{shard.tar}: sample {key}: its bytes changed since it was packed (xxh3); pack the shards again"
        )
