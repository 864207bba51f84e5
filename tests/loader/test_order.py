"""The order of samples: against a Philox written from its paper, and against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic.errors import InputError
from relic.loader import order as orders
from relic.loader.order import EpochOrder, Indices, epoch_order, eval_batches, train_batches

MASK = 2**64 - 1


def philox_words(key: tuple[int, int], stream: int, count: int) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011), counter (n, 0, 0, stream) for n = 1, 2, ..."""
    words: list[int] = []
    counter = 1
    while len(words) < count:
        x, (k0, k1) = [counter, 0, 0, stream], key
        for _ in range(10):
            p0, p1 = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
            x = [(p1 >> 64) ^ x[1] ^ k0, p1 & MASK, (p0 >> 64) ^ x[3] ^ k1, p0 & MASK]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
        words += x
        counter += 1
    return words[:count]


def test_order_sorts_the_words_of_philox() -> None:
    words = philox_words((7, 3), 0, 23)
    expected = sorted(range(23), key=lambda i: words[i])
    assert epoch_order([10, 13], seed=7, epoch=3)[:].tolist() == expected


def windowed(samples: list[int], seed: int, epoch: int, window: int) -> list[int]:
    """The order as its docstring tells it, whole and in plain Python."""
    numbers = itertools.count()
    shards = [[next(numbers) for _ in range(count)] for count in samples]
    words = philox_words((seed, epoch), 0, len(shards))
    shuffled = sorted(range(len(shards)), key=lambda i: words[i])
    order = []
    for first in range(0, len(shards), window):
        group = [sample for shard in shuffled[first : first + window] for sample in shards[shard]]
        words = philox_words((seed, epoch), first + 1, len(group))
        order += [group[place] for place in sorted(range(len(group)), key=lambda i: words[i])]
    return order


@given(st.lists(st.integers(0, 9), min_size=2, max_size=8), st.integers(0, 99), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=50)
def test_any_slice_is_that_of_the_whole_order(samples: list[int], seed: int, start: int, stop: int) -> None:
    for window in range(1, len(samples)):
        whole = windowed(samples, seed, 2, window)
        order = epoch_order(samples, seed, 2, window)
        assert len(order) == len(whole)
        assert order[start:stop].tolist() == whole[start:stop]


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 2**32), st.integers(0, 100), st.integers(0, 9)
)
def test_every_epoch_holds_every_sample_once(samples: list[int], seed: int, epoch: int, window: int) -> None:
    order = epoch_order(samples, seed, epoch, window)
    assert sorted(order[:].tolist()) == list(range(sum(samples)))


def test_epochs_differ_repeat_and_mix_the_whole_set() -> None:
    first, again, second = (epoch_order([500] * 8, 0, epoch)[:] for epoch in (0, 0, 1))
    assert first.tolist() == again.tolist() != second.tolist()
    assert np.abs(first - np.arange(4000)).mean() >= 1000
    assert np.abs(first - second).mean() > 0


def test_a_window_opens_no_more_shards_than_it_says() -> None:
    samples = [10] * 12
    order = epoch_order(samples, seed=1, epoch=0, window=3)[:]
    for group in order.reshape(4, 30):
        assert len({sample // 10 for sample in group}) == 3
    assert order.tolist() != sorted(order.tolist())


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("world", range(1, 9))
def test_global_batches_do_not_depend_on_the_world(world: int, window: int) -> None:
    """Also when an epoch is resumed in its middle. One rank alone has the rows in the order of the epoch."""
    samples, size = [400, 0, 900, 300, 560, 1000, 37], 840
    order = epoch_order(samples, 5, 1, window)
    whole = (
        windowed(samples, 5, 1, window)
        if window
        else sorted(range(sum(samples)), key=philox_words((5, 1), 0, sum(samples)).__getitem__)
    )
    for begun in (0, 2):
        ranks = [list(train_batches(order, size, rank, world, begun * size)) for rank in range(world)]
        assert {len(batches) for batches in ranks} == {len(whole) // size - begun}
        for number, parts in enumerate(zip(*ranks, strict=True), begun):
            expected = whole[number * size : (number + 1) * size]
            assert {len(part) for part in parts} == {size // world}
            shared = np.concatenate(parts).tolist()
            if world > 1:
                shared, expected = sorted(shared), sorted(expected)
            assert shared == expected


def shards_read(order: EpochOrder, size: int, reader: int, readers: int, starts: list[int]) -> int:
    """How many shards one of `readers` needs in an epoch."""
    return len(
        {
            shard
            for batch in train_batches(order, size, reader, readers)
            for shard in np.unique(np.searchsorted(starts, batch, "right")).tolist()
        }
    )


@pytest.mark.parametrize("window", [64, 0])
def test_eight_hosts_read_little_more_than_the_set(window: int) -> None:
    """Each reads what its ranks need: as torchrun numbers them, they are consecutive."""
    samples = [1000] * 256
    starts = np.cumsum(samples).tolist()
    order = epoch_order(samples, 0, 0, window)
    shards = [shards_read(order, 4096, host, 8, starts) for host in range(8)]
    assert 1 <= sum(shards) / len(samples) <= 1.4  # 8.0 when each takes rows as they are in the order
    ranks = [list(train_batches(order, 4096, rank, 32)) for rank in range(32)]
    for host in (0, 5):
        alone = train_batches(order, 4096, host, 8)
        of_ranks = zip(*ranks[host * 4 : host * 4 + 4], strict=True)
        assert all(np.array_equal(np.concatenate(parts), one) for parts, one in zip(of_ranks, alone, strict=True))


def test_a_window_costs_the_memory_of_one_group_and_no_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A billion samples, from the middle on: what is shuffled is the shards, and the groups of the batches."""
    shuffled: list[int] = []
    shuffle = orders._shuffled

    def counted(count: int, seed: int, epoch: int, stream: int) -> Indices:
        shuffled.append(count)
        return shuffle(count, seed, epoch, stream)

    monkeypatch.setattr(orders, "_shuffled", counted)
    order = epoch_order([1000] * 1_000_000, 0, 0, window=64)
    assert (len(order), shuffled) == (10**9, [10**6])
    batches = train_batches(order, 4096, 3, 8, start_images=499_998_720)
    assert len(next(batches)) == 512
    for _ in range(20):
        next(batches)
    assert shuffled == [10**6, 64_000, 64_000]


@pytest.mark.parametrize(
    ("size", "world", "ways"),
    [
        (128, 7, "use --batch_size 126 or 133, or 4 or 8 processes"),
        (5, 2, "use --batch_size 4 or 6, or 1 or 5 processes"),
        (3, 8, "use --batch_size 8, or at most 3 processes"),
    ],
)
def test_a_batch_that_cannot_be_shared_names_the_nearest_numbers(size: int, world: int, ways: str) -> None:
    with pytest.raises(InputError) as refused:
        train_batches(epoch_order([2000], 0, 0), size, 0, world)
    assert str(refused.value) == f"--batch_size {size}: not divisible by the {world} processes that share it; {ways}"


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(InputError, match=r"--batch_size 21.*20 samples"):
        train_batches(epoch_order([20], 0, 0), 21, 0, 1)


@given(st.integers(0, 40), st.integers(1, 7), st.integers(1, 6))
def test_evaluation_takes_every_sample_once(samples: int, batch_size: int, world: int) -> None:
    ranks = [list(eval_batches(samples, batch_size, rank, world)) for rank in range(world)]
    taken = [sample for rank in ranks for batch in rank for sample in batch.tolist()]
    assert taken == list(range(samples))
    assert all(0 < len(batch) <= batch_size for rank in ranks for batch in rank)
