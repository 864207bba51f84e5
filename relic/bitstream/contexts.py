"""Context tables: which row codes a symbol is decided by symbols that are already decoded.

A channel with contexts has several rows. Its positions are coded in two phases, like the colours of a chessboard. Where
two codecs agree on the symbols they agree on the contexts: these are sums of integers below 2^24, which float32 holds
exactly, in any order of summation and on any processor.

    clip(s)      a symbol, cut to +-63
    N(x)         the sum of x over the four direct neighbours; outside the image x is 0
    b_p          4 |clip(s_p)| + N(|clip(s_p)|)       of each channel p that was coded before
    level        sum of weight_p b_p                  at an even position (row + column), coded first
                 the same + weight_own N(|clip(s)|)   at an odd position; N counts this channel's even positions
    context      the number of this phase's thresholds that are at most the level

In a *signed* channel the levels are sums of clip(s) instead of |clip(s)|: the context then tells the sign, too.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from relic.arrays import Floats
from relic.bitstream.rans import CDF_END, OFFSET_LIMIT
from relic.bitstream.rows import Ints, Rows
from relic.errors import InputError

MAX_CONTEXTS = 64
"""Largest number of rows per channel."""
CLIP = 63
MAX_ENTRIES = 1 << 23
"""Largest size of an array. A codec of 192 channels needs less than 100,000."""
NEVER = (1 << 31) - 1
"""A threshold that no level reaches: the filling of a channel with fewer rows than others."""
_CENTRE, _NEIGHBOURS = 4, 4
MAX_LEVEL = 1 << 24
"""float32 holds every integer up to this one."""
_LARGEST_BLEND = (_CENTRE + _NEIGHBOURS) * CLIP
_COUNT_AGAIN = "count the contexts again"


@dataclass(frozen=True, eq=False)
class Contexts:
    """The context tables of C of the M channels. Immutable.

    The arrays are copied and converted. Raises InputError for tables that cannot code.
    """

    channel: Ints
    """(C,): the channels with contexts, in coding order. All other channels are coded before them."""
    signed: Ints
    """(C,): 1 where the level is a sum of symbols, 0 where it is a sum of magnitudes."""
    weights: Ints
    """(C, M), -127 to 127: the weight of each channel in the level; the channel's own is that of its neighbours. 0 for
    channels that are coded later."""
    thresholds: Ints
    """(C, 2, K - 1): for even and odd positions, not falling. A channel with fewer than K rows ends with NEVER."""
    num_rows: Ints
    """(C,): rows per channel, 2 to K."""
    row_length: Ints
    """(R,): intervals per row, 2 or more; R is the sum of `num_rows`."""
    row_offset: Ints
    """(R,): the symbol of the first interval of each row."""
    width: Ints
    """The intervals of all rows, one row after another, in 1/65536. The last one of a row is the escape."""

    STORED: ClassVar[Mapping[str, str]] = {
        "channel": "<u2",
        "signed": "|u1",
        "weights": "|i1",
        "thresholds": "<i4",
        "num_rows": "|u1",
        "row_length": "<u2",
        "row_offset": "<i4",
        "width": "<u2",
    }
    """Type of each array in a file."""

    def __post_init__(self) -> None:
        for field in fields(self):
            array = _stored(getattr(self, field.name), field.name)
            array.flags.writeable = False
            object.__setattr__(self, field.name, array)
        self._check_shapes()
        _refuse("repeats a channel", len(set(self.channel.tolist())) < len(self.channel))
        _refuse("names a channel that is not there", (self.channel >= self.num_channels).any())
        _refuse("has a sign that is neither 0 nor 1", (self.signed > 1).any())
        self._check_levels()
        self._check_rows()

    def _check_shapes(self) -> None:
        sizes = [array.ndim for array in (self.channel, self.row_length, self.width, self.weights, self.thresholds)]
        _refuse("has arrays of wrong shapes", sizes != [1, 1, 1, 2, 3])
        count, rows, most = len(self.channel), len(self.row_length), self.thresholds.shape[2] + 1
        right = (
            count >= 1
            and self.signed.shape == self.num_rows.shape == (count,)
            and len(self.weights) == count
            and self.thresholds.shape == (count, 2, most - 1)
            and 2 <= most <= MAX_CONTEXTS
            and self.row_offset.shape == (rows,) == (int(self.num_rows.sum()),)
            and self.width.shape == (int(self.row_length.sum()),)
        )
        _refuse("has arrays of wrong shapes", not right)
        _refuse(f"has fewer than 2 rows or more than {most} for a channel", _outside(self.num_rows, 2, most))

    def _check_levels(self) -> None:
        before = np.isin(np.arange(self.num_channels), self.plain)
        for channel, weights in zip(self.channel, self.weights, strict=True):
            before[channel] = True
            _refuse("weighs a channel that is coded later", weights[~before].any())
        _refuse("has levels beyond 2^24", (np.abs(self.weights).sum(1) * _LARGEST_BLEND > MAX_LEVEL).any())
        _refuse("has thresholds that fall", (np.diff(self.thresholds.astype(np.int64), axis=2) < 0).any())
        filling = np.arange(self.thresholds.shape[2]) >= self.num_rows[:, None, None] - 1
        _refuse("has a threshold without a row", (self.thresholds[filling.repeat(2, 1)] != NEVER).any())

    def _check_rows(self) -> None:
        _refuse("has a row of fewer than 2 intervals", (self.row_length < 2).any())
        _refuse("has an interval of width 0", (self.width < 1).any())
        sums = np.add.reduceat(self.width.astype(np.int64), np.cumsum(self.row_length) - self.row_length)
        _refuse(f"has a row that does not add up to {CDF_END}", (sums != CDF_END).any())
        _refuse(f"has an offset beyond {OFFSET_LIMIT}", _outside(self.row_offset, -OFFSET_LIMIT, OFFSET_LIMIT))

    @property
    def num_channels(self) -> int:
        """M, the channels of the codec."""
        return self.weights.shape[1]

    @cached_property
    def plain(self) -> Ints:
        """The channels without contexts, rising."""
        return np.setdiff1d(np.arange(self.num_channels), self.channel)

    @cached_property
    def order(self) -> Ints:
        """(M,): all channels in coding order."""
        return np.concatenate([self.plain, self.channel])

    @cached_property
    def ordered_weights(self) -> Floats:
        """(C, M): the weights by the place of a channel in the coding order."""
        return np.ascontiguousarray(self.weights[:, self.order], dtype=np.float32)

    @cached_property
    def limits(self) -> Floats:
        """The thresholds as float32. All that a level can reach are kept exactly."""
        return np.minimum(self.thresholds, 2 * MAX_LEVEL).astype(np.float32)

    @cached_property
    def rows(self) -> list[Rows]:
        """The rows of each channel with contexts, in coding order."""
        ends = np.cumsum(self.row_length)
        lists = [[0, *np.cumsum(row).tolist()] for row in np.split(self.width, ends[:-1])]
        offsets = self.row_offset.tolist()
        stops = np.cumsum(self.num_rows).tolist()
        return [Rows(lists[a:b], offsets[a:b]) for a, b in zip([0, *stops[:-1]], stops, strict=True)]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of every number as it is stored."""
        sha = hashlib.sha256()
        for name, array in self.stored().items():
            sha.update(f"{name} {array.dtype.str} {'x'.join(map(str, array.shape))}\n".encode())
            sha.update(array.tobytes())
        return sha.hexdigest()

    @property
    def num_bytes(self) -> int:
        """The bytes of all arrays as they are stored."""
        return sum(array.nbytes for array in self.stored().values())

    def stored(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays in the types of a file, by name."""
        return {name: getattr(self, name).astype(dtype) for name, dtype in self.STORED.items()}


class Activity:
    """The levels of one image's positions, updated as its channels are decoded. `symbols` (M, h, w) fills meanwhile."""

    def __init__(self, contexts: Contexts, symbols: npt.NDArray[np.int32]) -> None:
        self._contexts, self._symbols = contexts, symbols
        self._shape = symbols.shape[1:]
        self._even = is_even(*self._shape)
        self._sources = [np.zeros((len(symbols), self._shape[0] * self._shape[1]), np.float32)]
        # Up to the last channel that needs them, sums of signed values are kept, too.
        last = np.flatnonzero(contexts.signed)[-1:]
        self._signed_until = len(contexts.plain) + int(last.sum()) if len(last) else 0
        self._sources.append(np.zeros((self._signed_until, self._sources[0].shape[1]), np.float32))
        self._done = self._channel = 0
        for channel in contexts.plain.tolist():
            self._add(channel)

    def begin(self, number: int) -> None:
        """Go on to the channel with this number in the coding order; all before it are decoded."""
        if number:
            self._add(self._channel)
        self._channel = int(self._contexts.channel[number])
        self._signed = int(self._contexts.signed[number])
        weights = self._contexts.ordered_weights[number]
        self._limits = self._contexts.limits[number]
        self._own = weights[self._done]
        self._level = weights[: self._done] @ self._sources[self._signed][: self._done]

    def contexts_of(self, phase: int, positions: Ints) -> Ints:
        """The context of each of these positions. Before phase 1, those of phase 0 are decoded."""
        level = self._level[positions]
        if phase and self._own:
            values = self._clipped(self._channel) * self._even
            level = level + self._own * neighbours(values if self._signed else np.abs(values)).ravel()[positions]
        contexts: Ints = self._limits[phase].searchsorted(level, side="right")
        return contexts

    def _add(self, channel: int) -> None:
        values = self._clipped(channel)
        self._sources[0][self._done] = blended(np.abs(values)).ravel()
        if self._done < self._signed_until:
            self._sources[1][self._done] = blended(values).ravel()
        self._done += 1

    def _clipped(self, channel: int) -> Floats:
        cut = np.minimum(np.maximum(self._symbols[channel], -CLIP), CLIP)  # np.clip takes three times as long
        values: Floats = cut.astype(np.float32)
        return values


def phases(height: int, width: int) -> tuple[Ints, Ints]:
    """The flat positions of the first and of the second phase, each in rising order."""
    even = is_even(height, width).ravel()
    return np.flatnonzero(even), np.flatnonzero(~even)


def neighbours(values: Floats) -> Floats:
    """N(x) of the planes (..., h, w)."""
    total: Floats = np.zeros(values.shape, np.float32)  # np.zeros_like takes several times as long
    total[..., 1:, :] += values[..., :-1, :]
    total[..., :-1, :] += values[..., 1:, :]
    total[..., 1:] += values[..., :-1]
    total[..., :-1] += values[..., 1:]
    return total


def blended(values: Floats) -> Floats:
    """4 x + N(x) of the planes (..., h, w)."""
    total: Floats = np.float32(_CENTRE) * values + neighbours(values)
    return total


def is_even(height: int, width: int) -> npt.NDArray[np.bool_]:
    """(h, w): whether a position belongs to the first phase."""
    even: npt.NDArray[np.bool_] = (np.arange(height)[:, None] + np.arange(width)) % 2 == 0
    return even


def _stored(values: npt.ArrayLike, name: str) -> npt.NDArray[np.int32]:
    """A copy of the array. Raises InputError unless a file can hold each of its values."""
    array, info = np.asarray(values), np.iinfo(Contexts.STORED[name])
    if array.size > MAX_ENTRIES:
        raise InputError(
            f"contexts: {name} has {array.size:,} entries; up to {MAX_ENTRIES:,} can be used: {_COUNT_AGAIN}"
        )
    if array.dtype.kind not in "iub" or (array.size and not info.min <= array.min() <= array.max() <= info.max):
        raise InputError(f"contexts: {name} ({array.dtype}) does not hold integers of its range: {_COUNT_AGAIN}")
    return array.astype(np.int32)


def _outside(array: Ints, low: int, high: int) -> bool:
    return bool(((array < low) | (array > high)).any())


def _refuse(fault: str, at_fault: "bool | np.bool_") -> None:
    if at_fault:
        raise InputError(f"contexts: the table {fault}: {_COUNT_AGAIN}")
