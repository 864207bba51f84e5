"""Counted contexts against the entropy of what they were counted on."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from relic.arrays import Symbols
from relic.bitstream.coder import encode_symbols
from relic.bitstream.counting import count_contexts
from relic.bitstream.runs import code_length_bits, coding_runs
from relic.bitstream.tables import Tables
from tests.bitstream.strategies import photo_like

TABLES = photo_like(channels=4)


def images(count: int, seed: int) -> Symbols:
    """(count, 4, 10, 12): channels 0 and 1 are busy in the same places, 2 is a smooth plane, 3 has no neighbours."""
    rng = np.random.default_rng(seed)
    shape = (count, 4, 10, 12)
    busy = np.repeat(np.repeat(rng.random((count, 3, 3)) < 0.4, 4, axis=1), 4, axis=2)[:, :10, :12]
    symbols = np.rint(rng.laplace(0, np.where(busy, 3.0, 0.2)[:, None], shape)).astype(np.int32)
    symbols[:, 2] = np.rint(rng.normal(0, 5, (count, 1, 1)) + rng.normal(0, 0.5, (count, 10, 12)))
    symbols[:, 3] = np.rint(rng.laplace(0, 1, (count, 10, 12)))
    clipped: Symbols = np.clip(symbols, -10, 10)
    return clipped


def bits_and_entropy(symbols: Symbols, tables: Tables) -> tuple[float, float]:
    """Of the channels with contexts: the cost of these symbols, and the least that fixed rows can cost for them."""
    bits, counts = 0.0, Counter[tuple[int, int, int]]()
    for image in symbols:
        for run in coding_runs(tables, image):
            if isinstance(run.channels, int):
                values = run.take(image)
                bits += run.rows.bits(values, run.indexes)
                counts.update((run.channels, *pair) for pair in zip(run.indexes.tolist(), values.tolist(), strict=True))
    totals: Counter[tuple[int, int]] = Counter()
    for (channel, index, _), number in counts.items():
        totals[channel, index] += number
    return bits, sum(-number * math.log2(number / totals[key[:2]]) for key, number in counts.items())


def test_contexts_save_bytes_on_other_images_and_cost_little_more_than_their_entropy() -> None:
    counted, others = images(60, seed=0), images(20, seed=1)
    contexts = count_contexts(counted, TABLES)
    assert contexts is not None
    assert {0, 1, 2} <= set(contexts.channel.tolist())
    assert [bool(contexts.signed[contexts.channel.tolist().index(channel)]) for channel in (0, 2)] == [False, True]
    tables = replace(TABLES, contexts=contexts)
    bits, entropy = bits_and_entropy(counted, tables)
    assert entropy <= bits <= 1.05 * entropy
    plain, real = (sum(len(encode_symbols(image, one)) for image in others) for one in (TABLES, tables))
    assert real < 0.8 * plain


def test_symbols_that_depend_on_nothing_get_no_contexts() -> None:
    rng = np.random.default_rng(0)
    rows = [np.diff(row)[:-1] / row[-2] for row in TABLES.rows]
    drawn = [rng.choice(len(row), (40, 10, 12), p=row) + TABLES.offsets[0] for row in rows]
    assert count_contexts(np.stack(drawn, axis=1).astype(np.int32), TABLES) is None


@pytest.mark.parametrize("fill", [0, 3, 2**26, -(2**26)])
def test_symbols_of_any_size_can_be_counted(fill: int) -> None:
    symbols = images(3, seed=0)
    symbols[:, 1] = fill
    symbols[0, 0, 0, 0] = fill
    contexts = count_contexts(symbols, TABLES)
    tables = replace(TABLES, contexts=contexts)
    assert code_length_bits(symbols[0], tables) > 0
    assert count_contexts(symbols[:, :, :1, :1], TABLES) is None


def test_the_same_symbols_give_the_same_contexts() -> None:
    one, other = (count_contexts(images(20, seed=0), TABLES) for _ in range(2))
    assert one is not None and other is not None
    assert one.digest == other.digest
