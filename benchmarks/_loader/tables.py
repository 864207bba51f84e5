"""The results of the loader benchmark as tables."""

from collections.abc import Mapping, Sequence

from benchmarks._loader.measure import Pass, Shares
from benchmarks._loader.own_set import OwnSet
from benchmarks._shared.ratios import ratio_table
from relic.columns import counted, in_columns
from relic.shards.shard_set import ShardSet


def comparison_table(
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


def own_set_table(shards: ShardSet, measured: OwnSet, gpu_images_per_second: float) -> str:
    """A user's set: two rates, their bottlenecks, and the number of GPUs they feed."""
    read, decode, wait = measured.shares
    first, later = measured.first_images_per_second, measured.images_per_second
    lines = [
        f"{shards.folder}: {shards.num_samples:,} {shards.split} crops of {shards.width}x{shards.height}, "
        f"{shards.encoding}, {counted(len(shards.tars), 'shard')}",
        f"first epoch, from storage and checking hashes: {first:,.0f} images/s, bound by {measured.first_bound_by}",
        f"later epochs: {later:,.0f} images/s, bound by {measured.bound_by} "
        f"(read {read:.0%} and decode {decode:.0%} of the threads' time, the consumer waits {wait:.0%} of the run)",
    ]
    if gpu_images_per_second:
        lines.append(
            f"at {gpu_images_per_second:,.0f} images/s per GPU this feeds {int(later / gpu_images_per_second)} GPUs "
            f"({later / gpu_images_per_second:.2f}), in the first epoch {first / gpu_images_per_second:.2f}"
        )
    return "\n".join(lines)


def wait_table(waits: Mapping[str, tuple[float, float]], batches: int) -> str:
    """One line per loader: the milliseconds that the consumer takes per batch, and its wait as a share of the run."""
    return "\n".join(
        f"{name}: a consumer of {milliseconds:g} ms per batch waits {share:.2%} of the run over {batches} batches"
        for name, (milliseconds, share) in waits.items()
    )
