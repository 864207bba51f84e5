"""Measurements as text: a line a loader, its ratios, where the time goes."""

from collections.abc import Mapping, Sequence

from benchmarks._loader.measure import Pass, Shares
from benchmarks._loader.own_set import OwnSet
from relic.shards.shard_set import ShardSet


def comparison_table(
    figures: Mapping[str, float],
    passes: Mapping[str, Sequence[Pass]],
    quotients: Mapping[str, float],
    shares: Mapping[str, Shares],
) -> str:
    """Images per second of every loader with each epoch's, the ratios, and relic's shares."""
    lines = [f"{'':16}{'images/s':>10}   by epoch"]
    for name, figure in figures.items():
        by_epoch = "".join(f"{one.images_per_second:9,.0f}" for one in passes[name])
        lines.append(f"{name:16}{figure:10,.0f}   {by_epoch}")
    lines += ["", *(f"{name:28}{quotient:8.2f}" for name, quotient in quotients.items())]
    lines += ["", f"{'after the first epoch':28}{'read':>8}{'decode':>8}{'wait':>8}"]
    lines += [f"{name:28}{one.read:8.1%}{one.decode:8.1%}{one.wait:8.1%}" for name, one in shares.items()]
    return "\n".join(
        [*lines, "(read, decode: of all threads' time; wait: of the run, by a consumer that does nothing)"]
    )


def own_set_table(shards: ShardSet, measured: OwnSet, gpu_images_per_second: float) -> str:
    """A user's set: two rates, what bounds them, and the GPUs they feed."""
    read, decode, wait = measured.shares
    first, later = measured.first_images_per_second, measured.images_per_second
    lines = [
        f"{shards.folder}: {shards.num_samples:,} {shards.split} crops of {shards.width}x{shards.height}, "
        f"{shards.encoding}, {len(shards.tars)} shards",
        f"first epoch, from storage and checking hashes: {first:,.0f} images/s, bound by {measured.first_bound_by}",
        f"later epochs: {later:,.0f} images/s, bound by {measured.bound_by} "
        f"(read {read:.0%} and decode {decode:.0%} of the threads' time, the consumer waits {wait:.0%} of the run)",
    ]
    if gpu_images_per_second:
        lines.append(
            f"at {gpu_images_per_second:,.0f} images/s a GPU this feeds {int(later / gpu_images_per_second)} GPUs "
            f"({later / gpu_images_per_second:.2f}), in the first epoch {first / gpu_images_per_second:.2f}"
        )
    return "\n".join(lines)


def wait_table(waits: Mapping[str, tuple[float, float]], batches: int) -> str:
    """Of each loader: milliseconds the consumer takes a batch, and its wait as a share of the run."""
    return "\n".join(
        f"{name}: a consumer of {milliseconds:g} ms a batch waits {share:.2%} of the run over {batches} batches"
        for name, (milliseconds, share) in waits.items()
    )
