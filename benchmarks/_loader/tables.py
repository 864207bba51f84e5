"""The results of the loader benchmark as tables: for the screen, and as docs/performance.md holds them."""

from collections.abc import Mapping, Sequence

from benchmarks._loader.cold import LATER, Cold
from benchmarks._loader.fio import IN_FLIGHT
from benchmarks._loader.measure import Pass, Shares
from benchmarks._loader.own_set import OwnSet
from benchmarks._shared.ratios import ratio_table
from relic.columns import counted, in_columns, markdown_table
from relic.shards.shard_set import ShardSet

_NEAR = 0.8
"""From this share of the memory's bandwidth on, it is said to be the limit of copying."""
_GB = 1e9


def comparison_details(
    figures: Mapping[str, float],
    passes: Mapping[str, Sequence[Pass]],
    quotients: Mapping[str, float],
    shares: Mapping[str, Shares],
) -> str:
    """Images per second of every loader, in all and per epoch; the ratios; and how relic's loader spends its time."""
    epochs = max(map(len, passes.values()))
    speeds = [("", "images/s", *(f"epoch {number}" for number in range(epochs)))]
    for name, figure in figures.items():
        speeds.append((name, f"{figure:,.0f}", *(f"{one.images_per_second:,.0f}" for one in passes[name])))
    times = [("after the first epoch", "read", "decode", "wait")]
    times += [(name, f"{one.read:.1%}", f"{one.decode:.1%}", f"{one.wait:.1%}") for name, one in shares.items()]
    tables = [in_columns(speeds), ratio_table(quotients), in_columns(times)]
    about = "(read, decode: share of the time of all threads; wait: share of the run, for a consumer that does nothing)"
    return "\n\n".join(tables) + f"\n{about}"


def comparison_table(
    what: str, figures: Mapping[str, float], quotients: Mapping[str, float], raw: ShardSet, threads: int
) -> str:
    """relic's loader against ceilings and other loaders, as Markdown, and what bounds the copying."""
    rows = [("", "images/s", "relative to the ceiling", "to webdataset", "to a torch folder loader")]
    for name, ceilings, webdataset in (
        ("raw", {"copy_ceiling": "copying", "read_ceiling": "reading"}, "webdataset_npy"),
        ("jpg", {"decode_ceiling": "decoding"}, "webdataset_jpg"),
        ("png", {"decode_ceiling_png": "decoding"}, ""),
    ):
        ours = f"relic_{name}"
        shares = ", ".join(f"{quotients[f'{ours}/{ceiling}']:.2f} of {doing}" for ceiling, doing in ceilings.items())
        beside = f"{quotients[f'{ours}/{webdataset}']:.1f}" if webdataset else ""
        rows.append((name, f"{figures[ours]:,.0f}", shares, beside, f"{quotients[f'{ours}/torch_folder']:.1f}"))
    return f"{what}, shuffled:\n\n{markdown_table(rows)}\n\n{_copy_bound(figures, quotients, raw, threads)}"


def _copy_bound(figures: Mapping[str, float], quotients: Mapping[str, float], raw: ShardSet, threads: int) -> str:
    """What limits copying and reading."""
    moved = quotients["copy_ceiling/block_ceiling"]
    cause = "the bandwidth of the memory" if moved >= _NEAR else "the calls for each crop"
    more = quotients["block_ceiling/block_ceiling_1"]
    gigabytes = figures["block_ceiling"] * raw.height * raw.width * 3 / _GB
    call_us = 1e6 * threads * (1 / figures["read_ceiling"] - 1 / figures["copy_ceiling"])
    return "\n".join(
        [
            f"- Copying is bound by {cause}: crops are copied at {moved:.2f} of the rate of blocks of 64 MiB "
            f"({gigabytes:.1f} GB/s with all threads, {more:.2f} times that of one thread).",
            f"- Reading from the page cache is {quotients['read_ceiling/copy_ceiling']:.2f} of copying: with its "
            f"system call, a crop takes a thread {call_us:.1f} us more.",
        ]
    )


_MODES = {LATER: "after a whole epoch, not dropped"}
_COLD_NAMES = {
    "fio": "fio, random reads of {kib:.0f} KiB, {in_flight} in flight",
    "direct": "bare reads of samples, {in_flight} threads",
    "relic": "relic, {suffix}",
    "webdataset": "webdataset, {suffix}",
    "torch": "torch folder loader, jpg",
}


def cold_table(shards: ShardSet, batch_size: int, cold: Cold, limit: int | None) -> str:
    """Cold loaders as Markdown, grouped by the size of their reads, and under which conditions they were measured."""
    reference = "fio" if cold.engine else "bare reads"
    rows = [("", "images/s", f"relative to {reference}", "CPU us per image")]
    order = sorted(cold.rates, key=lambda name: (_suffix(name) != "raw", not name.startswith(("fio", "direct"))))
    for name in order:
        ratio = next((f"{ratio:.2f}" for pair, ratio in cold.ratios.items() if pair.startswith(f"{name}/")), "")
        rows.append((_cold_name(name, cold), f"{cold.rates[name]:,.0f}", ratio, f"{cold.cpu_us[name]:,.0f}"))
    reads = cold.rates["fio_raw" if cold.engine else "direct_raw"]
    set_bytes = sum(shards.tar_bytes)
    stayed = "unknown" if cold.still_cached is None else f"{cold.still_cached:.1%}"
    lines = [
        f"{shards.num_samples:,} crops of 224x224 ({set_bytes / _GB:.3g} GB raw), batches of {batch_size}, "
        "not in memory:",
        "",
        markdown_table(rows),
        "",
        f"- The files were dropped from the page cache before each turn ({stayed} of the pages stayed). "
        + _limit_told(limit, set_bytes),
        *(
            [f"- fio used {cold.engine}."]
            if cold.engine
            else ["- fio is not installed, or reads no file here past the page cache."]
        ),
        *([] if cold.direct else ["- The file system refuses reads past the page cache (O_DIRECT)."]),
    ]
    for mode, one in cold.consumers.items():
        asked = one.asked_images_per_second
        lines.append(
            f"- relic, raw{_mode_told(mode)}: a consumer of {one.consumer_ms:g} ms per batch asks for {asked:,.0f} "
            f"images/s, {asked / reads:.2f} of {reference}, and waits {one.wait:.2%} of its time. Resident memory: "
            f"{one.before_mib:,.0f} MiB before, {one.peak_mib:,.0f} MiB at most, with a ring of {one.ring_mib:,.0f} "
            f"MiB: {one.beyond_ring_mib:,.0f} MiB beyond it."
        )
    return "\n".join(lines)


def _suffix(name: str) -> str:
    return "raw" if name.partition("_")[2].startswith(("raw", "npy")) else "jpg"


def _cold_name(name: str, cold: Cold) -> str:
    program, _, rest = name.partition("_")
    mode = rest.partition("_")[2] if program == "relic" else ""
    kib = cold.block_bytes[_suffix(name)] / 1024
    return _COLD_NAMES[program].format(suffix=_suffix(name), kib=kib, in_flight=IN_FLIGHT) + _mode_told(mode)


def _mode_told(mode: str) -> str:
    return f" ({_MODES.get(mode, mode)})" if mode else ""


def _limit_told(limit: int | None, set_bytes: int) -> str:
    if limit is None:
        return (
            "The memory had no limit, so a loader may find pages that were read ahead for it. systemd-run, or a "
            "container with a limit of its memory, gives one."
        )
    return f"The memory was limited to {limit / _GB:.3g} GB: the set is {set_bytes / limit:.1f} times as large."


def own_set_table(shards: ShardSet, measured: OwnSet, gpu_images_per_second: float) -> str:
    """Each part of the way alone, the loader as a whole, and one sentence about the limit."""
    first, later = measured.first_images_per_second, measured.images_per_second
    does = "copying" if shards.encoding == "raw" else "decoding"
    feed = "copies to the GPU" if measured.device == "cuda" else "copies in memory"
    reads = "past the page cache" if measured.direct else "after dropping the page cache; O_DIRECT is refused"
    rows = [("", "images/s")]
    if measured.network is not None:
        rows.append(("network: fetching shards", f"{measured.network:,.0f}"))
    parts = {"disk": f"disk: reads alone, {reads}", "cores": f"cores: {does} alone", "feed": f"feed: {feed} alone"}
    rows += [(told, f"{measured.ceilings[name]:,.0f}") for name, told in parts.items()]
    rows.append(("loader, first epoch: from disk, checking hashes", f"{first:,.0f}"))
    if later is not None:
        rows.append(("loader, later epochs: from memory", f"{later:,.0f}"))
    holds = "fits in" if later is not None else "does not fit in"
    lines = [
        f"{shards.folder}: {shards.num_samples:,} {shards.split} crops of {shards.width}x{shards.height}, "
        f"{shards.encoding}, {counted(len(shards.tars), 'shard')}; {measured.set_bytes / _GB:.3g} GB, which {holds} "
        f"the available memory of {measured.available_bytes / _GB:.3g} GB",
        "",
        markdown_table(rows),
        "",
        f"The loader: {measured.reading}.",
        _limit_sentence(measured, measured.first_bound_by, first),
    ]
    if measured.network is not None:
        then = "is the limit" if measured.network < first else "is not the limit"
        lines.append(f"While shards are fetched, the network {then}: {measured.network:,.0f} images/s.")
    if later is not None:
        lines.append(f"Later epochs come from memory. {_limit_sentence(measured, measured.bound_by, later)}")
    if gpu_images_per_second:
        steady = first if later is None else later
        gpus, first_gpus = steady / gpu_images_per_second, first / gpu_images_per_second
        lines.append(
            f"At {gpu_images_per_second:,.0f} images/s per GPU this feeds {counted(int(gpus), 'GPU')} ({gpus:.2f}), "
            f"in the first epoch {first_gpus:.2f}."
        )
    return "\n".join(lines)


def _limit_sentence(measured: OwnSet, bound_by: str, rate: float) -> str:
    subject = {"disk": "The disk is", "cores": "The cores are"}.get(bound_by)
    if subject is None:
        subject = "The copy to the GPU is" if measured.device == "cuda" else "The memory is"
    ceiling = measured.ceilings[bound_by]
    return f"{subject} the limit: {ceiling:,.0f} images/s; the loader reaches {rate / ceiling:.2f} of it."


def wait_table(waits: Mapping[str, tuple[float, float]], batches: int) -> str:
    """One line per loader: the milliseconds that the consumer takes per batch, and its wait as a share of the run."""
    return "\n".join(
        f"{name}: a consumer of {milliseconds:g} ms per batch waits {share:.2%} of the run over {batches} batches"
        for name, (milliseconds, share) in waits.items()
    )
