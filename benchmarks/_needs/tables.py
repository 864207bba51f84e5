"""What a training needs, as rows with their arithmetic, and the tables of docs/scale.md."""

import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

from benchmarks._needs import figures
from benchmarks._needs.figures import STORED, Gpu
from relic.columns import markdown_table
from relic.options import Encoding

_CARDS: dict[Gpu, str] = {"rtx4090": "RTX 4090", "a100": "A100", "h100": "H100, H200", "b200": "B200"}
_COUNTS = (1, 8, 64, 1024)
_SETS = ((10**6, 1000), (10**8, 10_000), (10**9, 10_000))
"""Images, and samples per shard."""
_ENCODINGS: Sequence[Encoding] = ("raw", "jpg", "png")


class Training(NamedTuple):
    """One training of `gpus` GPUs."""

    gpus: int
    gpu_images_per_second: float
    encoding: Encoding
    images: int
    samples_per_shard: int
    cached: float
    """Part of the set in the cache of each machine."""
    batch_per_gpu: int

    @property
    def images_per_second(self) -> float:
        return self.gpus * self.gpu_images_per_second

    @property
    def machines(self) -> int:
        return math.ceil(self.gpus / figures.GPUS_PER_MACHINE)

    @property
    def shards(self) -> int:
        return math.ceil(self.images / self.samples_per_shard)

    @property
    def store_us(self) -> float:
        """Core microseconds per image, some of them from the cache and the others from a store."""
        stored = STORED[self.encoding]
        return self.cached * stored.disk_us + (1 - self.cached) * stored.store_us

    def cores(self, microseconds: float) -> float:
        """For a loading that takes so long per image, and for the processes that launch the GPUs' work."""
        return self.gpus * figures.CORES_PER_GPU + self.images_per_second * microseconds / 1e6

    @property
    def bytes_per_second(self) -> float:
        return self.images_per_second * STORED[self.encoding].bytes

    @property
    def epoch_hours(self) -> float:
        return self.images / self.images_per_second / 3600

    @property
    def requests_per_second(self) -> float:
        return self.images_per_second * (1 - self.cached)

    @property
    def gradient_bytes_per_second(self) -> float:
        """Sent by a machine, and received: an all-reduce passes each gradient on twice."""
        return 2 * 4 * figures.PARAMETERS * self.gpu_images_per_second / self.batch_per_gpu

    def process_bytes(self, *, window: bool) -> float:
        """Memory of one process beside torch: ring, manifest, and the order while it is made."""
        order = figures.ORDER_BYTES * self.images
        if window:
            order = figures.WINDOW_BYTES * min(self.images, figures.WINDOW_SHARDS * self.samples_per_shard)
        return figures.RING_BYTES + figures.SHARD_BYTES_IN_MEMORY * self.shards + order


def need_rows(training: Training, rate: str) -> list[list[str]]:
    """What is needed, how much, and from what. `rate` tells where the images per second of a GPU come from."""
    one, stored = training, STORED[training.encoding]
    images, missing = f"{one.images_per_second:,.0f}", 1 - one.cached
    processes = min(one.gpus, figures.GPUS_PER_MACHINE)
    launching = one.gpus * figures.CORES_PER_GPU
    reads, in_flight = one.images * missing, one.requests_per_second * figures.LATENCY_MS / 1000
    memory = [processes * (one.process_bytes(window=window) + figures.TORCH_BYTES) for window in (True, False)]
    rows = [
        ["machines", f"{one.machines}", f"of {figures.GPUS_PER_MACHINE} GPUs"],
        ["images/s", images, f"{one.gpus} x {one.gpu_images_per_second:,.0f}, {rate}"],
        ["an epoch", f"{one.epoch_hours:,.3g} h", f"{one.images:,} images"],
        ["the set", _bytes(one.images * stored.bytes), f"{one.images:,} x {stored.bytes:,} bytes"],
        ["read", f"{_bytes(one.bytes_per_second)}/s", f"{images} x {stored.bytes:,} bytes"],
        ["cores, set on disks", f"{one.cores(stored.disk_us):,.0f}", f"{launching} + {images} x {stored.disk_us:g} us"],
        ["cores, set in a store", f"{one.cores(one.store_us):,.0f}", f"{launching} + {images} x {one.store_us:g} us"],
        ["from a store", f"{_bytes(one.bytes_per_second * missing)}/s", f"{missing:.0%} of what is read"],
        ["requests", f"{one.requests_per_second:,.0f}/s", f"one for each of {missing:.0%} of the images"],
        ["requests in flight", f"{in_flight:,.0f}",
         f"at {figures.LATENCY_MS} ms (assumed): --io_threads {math.ceil(in_flight / one.gpus)}"],
        ["partitions of a bucket", f"{math.ceil(one.requests_per_second / figures.PREFIX_REQUESTS_PER_SECOND):,}",
         f"of {figures.PREFIX_REQUESTS_PER_SECOND:,} requests/s"],
        ["requests of an epoch", _dollars(reads), f"{reads:,.0f} at {figures.READS_USD_PER_MILLION} USD per million"],
        ["or all shards, once", _dollars(2 * one.shards * one.machines),
         f"{one.machines} x {one.shards:,} shards, as many indexes"],
        ["memory of a machine", _bytes(memory[0]), f"{processes} processes, --shuffle_window {figures.WINDOW_SHARDS}"],
        ["the same, no window", _bytes(memory[1]), f"{figures.ORDER_BYTES} bytes per sample and process"],
    ]  # fmt: skip
    if one.machines > 1:
        rows.append(
            ["gradients, a machine", f"{_bytes(one.gradient_bytes_per_second)}/s",
             f"{figures.PARAMETERS:,} x 4 bytes, twice, per {one.batch_per_gpu} images of a GPU"]
        )  # fmt: skip
    return rows


def rate_table(images: int = 10**9) -> str:
    """Per kind and number of GPUs: what grows with the images per second."""
    rows = [
        ["GPUs", "images/s", "hours per epoch", "cores, set on disks: raw / jpg / png",
         "cores, set in a store: raw / jpg / png", "GB/s: raw / jpg / png"]
    ]  # fmt: skip
    for gpu in get_args(Gpu):
        for gpus in _COUNTS:
            each = [
                Training(gpus, figures.assumed_images_per_second(gpu), encoding, images, 10_000, 0, 64)
                for encoding in _ENCODINGS
            ]
            rate = f"{each[0].images_per_second:,.0f}"
            rows.append([
                f"{gpus:,} {_CARDS[gpu]}", rate, f"{each[0].epoch_hours:,.3g}",
                " / ".join(f"{one.cores(STORED[one.encoding].disk_us):,.0f}" for one in each),
                " / ".join(f"{one.cores(one.store_us):,.0f}" for one in each),
                " / ".join(f"{one.bytes_per_second / 1e9:,.2f}" for one in each),
            ])  # fmt: skip
    return markdown_table(rows)


def set_table() -> str:
    """Per size of the set: what does not depend on the GPUs."""
    rows = [
        ["images", "samples per shard", "TB: raw / jpg / png", "memory of a process, `--shuffle_window 64` / none",
         "shards fetched whole, per machine", "an epoch, image by image"]
    ]  # fmt: skip
    for images, samples_per_shard in _SETS:
        one = Training(1, 1, "raw", images, samples_per_shard, 0, 64)
        sizes = " / ".join(f"{images * STORED[encoding].bytes / 1e12:,.3g}" for encoding in _ENCODINGS)
        memory = " / ".join(_bytes(one.process_bytes(window=window)) for window in (True, False))
        rows.append([
            f"{images:,}", f"{samples_per_shard:,}", sizes, memory,
            f"{2 * one.shards:,} requests, {_dollars(2 * one.shards)}", f"{images:,} requests, {_dollars(images)}",
        ])  # fmt: skip
    return markdown_table(rows)


def _bytes(number: float) -> str:
    unit, name = next(((u, n) for u, n in ((1e12, "TB"), (1e9, "GB")) if number >= u), (1e6, "MB"))
    return f"{number / unit:,.4g} {name}"


def _dollars(reads: float) -> str:
    return f"{reads * figures.READS_USD_PER_MILLION / 1e6:,.2f} USD"
