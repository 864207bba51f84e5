"""Random coding tables, and symbols for them."""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from relic.arrays import Symbols
from relic.bitstream.contexts import NEVER, Contexts
from relic.bitstream.rans import OFFSET_LIMIT, SYMBOL_LIMIT
from relic.bitstream.tables import Tables


def make_tables(rows: list[list[int]], offsets: list[int], stride: int = 16) -> Tables:
    lengths = [len(row) for row in rows]
    cdf = np.zeros((len(rows), max(lengths)), dtype=np.int32)
    for index, row in enumerate(rows):
        cdf[index, : len(row)] = row
    medians = np.linspace(-0.4, 0.4, len(rows), dtype=np.float32)
    return Tables(cdf, np.array(lengths, np.int32), np.array(offsets, np.int32), medians, stride)


def photo_like(channels: int = 6, values: int = 21, seed: int = 0) -> Tables:
    """Two-sided exponential densities of several widths, similar to trained channels."""
    rng = np.random.default_rng(seed)
    rows = []
    for scale in rng.uniform(0.3, 5.0, channels):
        weights = np.exp(-np.abs(np.arange(values) - values // 2) / scale)
        widths = np.maximum(1, np.floor(weights / weights.sum() * 65000)).astype(int)
        rows.append([0, *np.cumsum(widths).tolist(), 65536])
    return make_tables(rows, [-(values // 2)] * channels)


def typical_symbols(tables: Tables, height: int, width: int, seed: int = 0) -> Symbols:
    """Symbols drawn from the densities of the tables, without escapes."""
    rng = np.random.default_rng(seed)
    channels = [
        np.searchsorted(row, rng.integers(0, row[-2], (height, width)), side="right") - 1 + offset
        for row, offset in zip(tables.rows, tables.offsets, strict=True)
    ]
    result: Symbols = np.stack(channels).astype(np.int32)
    return result


@st.composite
def tables_of_any_kind(draw: st.DrawFn) -> Tables:
    """1 to 4 channels, each with one to dozens of values. The rarest value has width 1."""
    cuts = draw(st.lists(st.sets(st.integers(1, 65535), min_size=1, max_size=40), min_size=1, max_size=4))
    offset = st.one_of(st.integers(-30, 30), st.integers(-OFFSET_LIMIT, OFFSET_LIMIT))
    return make_tables([[0, *sorted(cut), 65536] for cut in cuts], [draw(offset) for _ in cuts])


@st.composite
def tables_and_symbols(draw: st.DrawFn) -> tuple[Tables, Symbols]:
    """Symbols inside the tables, just outside, and anywhere within the limit, positive and negative."""
    tables = draw(tables_of_any_kind())
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    share_outside = draw(st.sampled_from([0.0, 0.05, 1.0]))
    reach = draw(st.sampled_from([3, 1000, SYMBOL_LIMIT]))
    symbols = typical_symbols(tables, height, width, seed=int(rng.integers(2**32)))
    outside = rng.random(symbols.shape) < share_outside
    anywhere = np.clip(symbols + rng.integers(-reach, reach, symbols.shape), -SYMBOL_LIMIT, SYMBOL_LIMIT)
    return tables, np.where(outside, anywhere, symbols).astype(np.int32)


@st.composite
def contexts_of_any_kind(draw: st.DrawFn) -> Tables:
    return with_contexts(draw(st.integers(2, 5)), draw(st.integers(0, 2**32)))


def with_contexts(channels: int, seed: int) -> Tables:
    """Some channels have contexts: 2 to 4 rows of a few values, and any weights and thresholds."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(channels)[: rng.integers(1, channels + 1)]
    weights = rng.integers(-127, 128, (len(chosen), channels)) * (rng.random((len(chosen), channels)) < 0.7)
    for number in range(len(chosen)):
        weights[number, chosen[number + 1 :]] = 0
    num_rows = rng.integers(2, 5, len(chosen))
    thresholds = np.sort(rng.integers(-2000, 2000, (len(chosen), 2, num_rows.max() - 1)), axis=2)
    thresholds[(np.arange(num_rows.max() - 1) >= num_rows[:, None, None] - 1).repeat(2, 1)] = NEVER
    rows = [np.sort(rng.choice(np.arange(1, 65536), rng.integers(1, 9), replace=False)) for _ in range(num_rows.sum())]
    contexts = Contexts(
        channel=chosen,
        signed=rng.integers(0, 2, len(chosen)),
        weights=weights,
        thresholds=thresholds,
        num_rows=num_rows,
        row_length=np.array([len(row) + 1 for row in rows]),
        row_offset=rng.integers(-4, 2, len(rows)),
        width=np.concatenate([np.diff([0, *row, 65536]) for row in rows]),
    )
    return replace(photo_like(channels, values=9, seed=int(rng.integers(2**32))), contexts=contexts)
