"""Count context tables on the symbols of a training set. See `relic.bitstream.contexts` for what they mean.

Channels are taken by falling mean magnitude. For each, the weights are a least squares fit of its magnitude (of its
symbols, in a signed channel) to what was coded before. The levels are cut into small bins, and neighbouring bins are
joined as long as a row costs more bytes than it is worth.

Shapes: symbols int32 (B, M, h, w); N = B h w positions.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from relic.arrays import Floats
from relic.bitstream.contexts import CLIP, MAX_LEVEL, NEVER, Contexts, blended, is_even, neighbours
from relic.bitstream.rans import CDF_END
from relic.bitstream.tables import Tables

MOST_ROWS = 16
"""Rows per channel at most."""
LEAST_SAVING = 3e-5
"""Bits per latent position that a byte of a row has to save on the counted symbols."""
_CHANCE_BITS = 24.0
"""More than a row saves by chance on the counted symbols."""
_SIGNED_TRIED = 16
"""Only the strongest channels gain from signs: those that resemble a small image."""
_BINS = 48
_MAX_WEIGHT = 15
_RIDGE = 1e-3
_SWEEPS = 30
_SMOOTHING, _SMOOTHING_SHARE = 20.0, 1e-3
"""Symbols of the channel's own distribution that are added to the count of a context."""
_BEYOND, _BEYOND_SHARE = 2, 8
"""Values beyond the counted ones that rows have on each side: 2, and an eighth of the counted range."""
_BYTES_PER_ROW, _BYTES_PER_INTERVAL = 16, 2
"""Length, offset and two thresholds of a row."""

Counts = npt.NDArray[np.float64]


class _Channel(NamedTuple):
    """The contexts of one channel, and their cost on the counted symbols."""

    bits: float
    signed: bool
    weights: npt.NDArray[np.int64]
    """Of the channels before it in the order, then its own."""
    thresholds: list[list[int]]
    """Of the two phases."""
    first: int
    """The first value of the rows, as a place in the channel's own row."""
    probabilities: Counts
    """(rows, values)"""


def count_contexts(symbols: npt.NDArray[np.int32], tables: Tables) -> Contexts | None:
    """The context tables for symbols of these tables. None if no channel gains from them."""
    symbols_MN = symbols.transpose(1, 0, 2, 3).reshape(len(symbols[0]), -1)
    order = np.argsort(-np.abs(np.clip(symbols_MN, -CLIP, CLIP)).mean(1), kind="stable")
    counter = _Counter(symbols, order)
    found: dict[int, _Channel] = {}
    for place, channel in enumerate(order.tolist()):
        own = _own_probabilities(tables, channel)
        values = symbols_MN[channel] - tables.offset[channel]
        inside = (values >= 0) & (values < len(own))
        plain_bits = -float(np.log2(own[values[inside]]).sum())
        candidates = [
            counter.contexts_of(place, values, inside, own, signed)
            for signed in ([False, True] if place < _SIGNED_TRIED else [False])
        ]
        best = min(candidates, key=lambda one: one.bits)
        rows = len(best.probabilities)
        least_bits = rows * (LEAST_SAVING * len(values) * _BYTES_PER_ROW + _CHANCE_BITS)
        if rows > 1 and plain_bits - best.bits > least_bits:
            found[channel] = best
    return _assembled(found, order, tables) if found else None


class _Counter:
    """The features of all positions, (M, N) in the order of the channels, and their products at odd positions."""

    def __init__(self, symbols: npt.NDArray[np.int32], order: npt.NDArray[np.intp]) -> None:
        batch, _, height, width = symbols.shape
        even = is_even(height, width)
        self._even: Floats = even.astype(np.float32)
        self._odd = np.tile(~even.ravel(), batch)
        self._planes = [np.clip(symbols[:, channel], -CLIP, CLIP).astype(np.float32) for channel in order]
        self._sources = [
            np.stack([blended(np.abs(plane)).ravel() for plane in self._planes]),
            np.stack([blended(plane).ravel() for plane in self._planes[:_SIGNED_TRIED]]),
        ]
        self._products = []
        for source in self._sources:
            at_odd = source[:, self._odd]
            self._products.append((at_odd @ at_odd.T).astype(np.float64))

    def contexts_of(
        self, place: int, values: npt.NDArray[np.int32], inside: npt.NDArray[np.bool_], own: Counts, signed: bool
    ) -> _Channel:
        """The channel at this place of the order, with signs or without."""
        plane = self._planes[place] if signed else np.abs(self._planes[place])
        near = neighbours(plane * self._even).ravel()
        weights = self._fit(place, plane.ravel(), near, signed)
        level = weights[:-1].astype(np.float32) @ self._sources[signed][:place]
        level += np.where(self._odd, np.float32(weights[-1]) * near, 0)
        edges: list[npt.NDArray[np.int64]] = []
        counts: list[Counts] = []
        for of_phase in (~self._odd, self._odd):
            levels = level[of_phase]
            ends = np.quantile(levels, np.arange(1, _BINS) / _BINS) if levels.size else np.empty(0)
            edges.append(np.unique(np.ceil(ends)).astype(np.int64))
            kept = of_phase & inside
            bins = edges[-1].searchsorted(level[kept], side="right")
            size = (len(edges[-1]) + 1) * len(own)
            counts.append(
                np.bincount(bins * len(own) + values[kept], minlength=size).reshape(-1, len(own)).astype(np.float64)
            )
        seen = np.sum([one.sum(0) for one in counts], axis=0)
        used = _used_range(seen)
        counts = [one[:, used] for one in counts]
        smooth = _smoothed(seen[used], own[used] / own[used].sum())
        groups, bits = _joined(counts, smooth, signed, LEAST_SAVING * len(values))
        thresholds = [_thresholds(edges[phase], groups[phase], max(map(max, groups)) + 1) for phase in range(2)]
        every = np.concatenate(counts)
        numbers = np.concatenate(groups)
        merged = np.stack([every[numbers == number].sum(0) for number in range(numbers.max() + 1)])
        return _Channel(bits, signed, weights, thresholds, used.start, _smoothed(merged, smooth))

    def _fit(self, place: int, plane: Floats, near: Floats, signed: bool) -> npt.NDArray[np.int64]:
        """Whole weights of the channels before this place, and of the channel's own neighbours."""
        source, products = self._sources[signed][:place, self._odd], self._products[signed]
        wanted, beside = plane[self._odd], near[self._odd]
        matrix = np.empty((place + 1, place + 1))
        matrix[:-1, :-1] = products[:place, :place]
        matrix[-1, :-1] = matrix[:-1, -1] = source @ beside
        matrix[-1, -1] = beside @ beside
        weights = _least_squares(matrix, np.append(source @ wanted, beside @ wanted).astype(np.float64), signed)
        largest = np.abs(weights).max()
        whole = np.rint(weights * (_MAX_WEIGHT / largest) if largest else weights).astype(np.int64)
        while np.abs(whole).sum() * 8 * CLIP > MAX_LEVEL:
            whole = np.sign(whole) * (np.abs(whole) // 2)
        return whole


def _least_squares(matrix: Counts, vector: Counts, signed: bool) -> Counts:
    """Weights of a ridge regression; those that are not signed are 0 or more, by coordinate descent."""
    scale = np.sqrt(np.diag(matrix) + 1e-9)
    matrix = matrix / scale / scale[:, None] + _RIDGE * np.eye(len(scale))
    vector = vector / scale
    if signed:
        solved: Counts = np.linalg.solve(matrix, vector) / scale
        return solved
    weights = np.zeros(len(scale))
    for _ in range(_SWEEPS):
        for index in range(len(scale)):
            step = (vector[index] - matrix[index] @ weights) / matrix[index, index]
            weights[index] = max(0.0, weights[index] + step)
    found: Counts = weights / scale
    return found


def _smoothed(counts: Counts, smooth: Counts) -> Counts:
    total = counts.sum(-1, keepdims=True)
    added = _SMOOTHING + _SMOOTHING_SHARE * total
    probabilities: Counts = (counts + added * smooth) / (total + added)
    return probabilities


def _joined(
    counts: list[Counts], smooth: Counts, signed: bool, least_bits: float
) -> tuple[list[npt.NDArray[np.int64]], float]:
    """The context of each bin of both phases, and the bits of all symbols, each coded with the counts of the others.

    Bins are sorted by the mean that was fitted, without changing the order within a phase, so that a context is a range
    of levels. Then the two neighbours whose union costs least are joined, again and again.
    """

    def cost(one: Counts) -> float:
        # With its own count a symbol would seem cheaper than one of another image is, and small bins would win.
        total = one.sum()
        added = _SMOOTHING + _SMOOTHING_SHARE * total
        seen = one > 0
        others = (one[seen] - 1 + added * smooth[seen]) / (total - 1 + added)
        return -float((one[seen] * np.log2(others)).sum())

    numbers = np.arange(len(smooth))
    size = numbers if signed else np.abs(numbers - int(smooth.argmax()))
    means = [np.maximum.accumulate((one @ size) / np.maximum(one.sum(1), 1)) for one in counts]
    order = np.argsort(np.concatenate(means), kind="stable")
    every = np.concatenate(counts)
    bins, members = list(every[order]), [[one] for one in order.tolist()]
    costs = [cost(one) for one in bins]
    row_bytes = _BYTES_PER_ROW + _BYTES_PER_INTERVAL * (len(smooth) + 1)
    joins = [cost(a + b) for a, b in pairwise(bins)]
    while len(bins) > 1:
        losses = [join - a - b for join, a, b in zip(joins, costs, costs[1:], strict=False)]
        best = int(np.argmin(losses))
        if len(bins) <= MOST_ROWS and losses[best] > least_bits * row_bytes + _CHANCE_BITS:
            break
        bins[best : best + 2] = [bins[best] + bins[best + 1]]
        members[best : best + 2] = [members[best] + members[best + 1]]
        costs[best : best + 2] = [joins[best]]
        del joins[best]
        for index in (best - 1, best):
            if 0 <= index < len(joins):
                joins[index] = cost(bins[index] + bins[index + 1])
    contexts = np.empty(len(order), np.int64)
    for number, group in enumerate(members):
        contexts[group] = number
    return np.split(contexts, [len(counts[0])]), sum(costs)


def _thresholds(edges: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], num_rows: int) -> list[int]:
    """For each row after the first, the lowest level of a phase that belongs to it or to a later one."""
    lowest = [-MAX_LEVEL, *edges.tolist()]
    firsts = groups.searchsorted(np.arange(1, num_rows)).tolist()
    return [lowest[first] if first < len(lowest) else NEVER for first in firsts]


def _own_probabilities(tables: Tables, channel: int) -> Counts:
    """Of the values of a channel's own row, without the escape."""
    probabilities: Counts = np.diff(tables.rows[channel])[:-1] / CDF_END
    return probabilities


def _used_range(seen: Counts) -> slice:
    """The values of a channel that rows have: those that were counted, and some beyond. Others take an escape."""
    places = np.flatnonzero(seen)
    if not len(places):
        return slice(0, 1)
    first, last = int(places[0]), int(places[-1])
    beyond = _BEYOND + (last - first) // _BEYOND_SHARE
    return slice(max(0, first - beyond), min(len(seen), last + beyond + 1))


def _widths(probabilities: Counts) -> npt.NDArray[np.int64]:
    """The intervals of a row: the values, then the escape. Each is 1 or more."""
    kept = np.append(probabilities, 0.0)
    widths = 1 + np.floor(kept / kept.sum() * (CDF_END - len(kept))).astype(np.int64)
    widths[kept.argmax()] += CDF_END - widths.sum()
    intervals: npt.NDArray[np.int64] = widths
    return intervals


def _assembled(found: dict[int, _Channel], order: npt.NDArray[np.intp], tables: Tables) -> Contexts:
    weights = np.zeros((len(found), tables.num_channels), np.int32)
    most = max(len(one.probabilities) for one in found.values())
    thresholds = np.full((len(found), 2, most - 1), NEVER, np.int32)
    rows = []
    for number, (channel, one) in enumerate(found.items()):
        place = len(one.weights) - 1
        weights[number, order[:place]] = one.weights[:-1]
        weights[number, channel] = one.weights[-1]
        thresholds[number, :, : len(one.probabilities) - 1] = one.thresholds
        rows += [
            (int(tables.offset[channel]) + one.first, _widths(probabilities)) for probabilities in one.probabilities
        ]
    return Contexts(
        channel=np.array(list(found)),
        signed=np.array([int(one.signed) for one in found.values()]),
        weights=weights,
        thresholds=thresholds,
        num_rows=np.array([len(one.probabilities) for one in found.values()]),
        row_length=np.array([len(widths) for _, widths in rows]),
        row_offset=np.array([offset for offset, _ in rows]),
        width=np.concatenate([widths for _, widths in rows]),
    )
