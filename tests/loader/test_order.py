"""The order of samples: against a Philox written from its paper, and against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic.errors import InputError
from relic.loader.order import epoch_order, eval_batches, train_batches

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
    assert epoch_order([10, 13], seed=7, epoch=3).tolist() == expected


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 2**32), st.integers(0, 100), st.integers(0, 9)
)
def test_every_epoch_holds_every_sample_once(samples: list[int], seed: int, epoch: int, window: int) -> None:
    order = epoch_order(samples, seed, epoch, window)
    assert sorted(order.tolist()) == list(range(sum(samples)))


def test_epochs_differ_repeat_and_mix_the_whole_set() -> None:
    first, again, second = (epoch_order([500] * 8, 0, epoch) for epoch in (0, 0, 1))
    assert first.tolist() == again.tolist() != second.tolist()
    assert np.abs(first - np.arange(4000)).mean() >= 1000
    assert np.abs(first - second).mean() > 0


def test_a_window_opens_no_more_shards_than_it_says() -> None:
    samples = [10] * 12
    order = epoch_order(samples, seed=1, epoch=0, window=3)
    for group in order.reshape(4, 30):
        assert len({sample // 10 for sample in group}) == 3
    assert order.tolist() != sorted(order.tolist())


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 60), st.integers(0, 5))
@settings(max_examples=50)
def test_global_batches_do_not_depend_on_the_world(per_rank: int, world: int, extra: int, begun: int) -> None:
    size = per_rank * world
    order = epoch_order([size * 3 + extra], 5, 0)
    batches = len(order) // size
    alone = train_batches(order, size, 0, 1)
    ranks = [train_batches(order, size, rank, world) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {batches}
    for number in range(batches):
        shared = np.concatenate([rank[number] for rank in ranks])
        assert shared.tolist() == alone[number].tolist() == order[number * size : (number + 1) * size].tolist()
    resumed = train_batches(order, size, 0, 1, start_images=begun * size)
    assert resumed.tolist() == alone[begun:].tolist()


def test_batches_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match=r"--batch_size 5.*2 processes"):
        train_batches(np.arange(20), 5, 0, 2)
    with pytest.raises(InputError, match=r"--batch_size 21.*20 samples"):
        train_batches(np.arange(20), 21, 0, 1)


@given(st.integers(0, 40), st.integers(1, 7), st.integers(1, 6))
def test_evaluation_takes_every_sample_once(samples: int, batch_size: int, world: int) -> None:
    ranks = [list(eval_batches(samples, batch_size, rank, world)) for rank in range(world)]
    taken = [sample for rank in ranks for batch in rank for sample in batch.tolist()]
    assert taken == list(range(samples))
    assert all(0 < len(batch) <= batch_size for rank in ranks for batch in rank)
