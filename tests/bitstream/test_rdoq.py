"""Moved symbols against decoders whose best symbols are known: linear ones, searched by trying."""

import numpy as np
import pytest

from relic.arrays import Floats, Symbols
from relic.bitstream.rdoq import RdoqSettings, Responses, Synthesise, measure_responses, move_symbols
from relic.bitstream.runs import code_length_bits
from relic.bitstream.tables import Tables, dequantize
from relic.errors import InputError
from tests.bitstream.strategies import photo_like, typical_symbols, with_contexts

STRIDE = 16
REACH = 30
"""Pixels that a 5x5 decoder of four layers changes on each side of a symbol's corner."""


def linear_decoder(channels: int, reach: int = REACH, seed: int = 0) -> tuple[Synthesise, Floats]:
    """A decoder that adds a random patch of 2 `reach` x 2 `reach` pixels per symbol, and these patches.

    The squares of a patch sum up to about 0.05, as in a codec of 0.3 bpp.
    """
    rng = np.random.default_rng(seed)
    deviation = np.sqrt(0.05 / (3 * 4 * reach**2))
    patches: Floats = rng.normal(0, deviation, (channels, 3, 2 * reach, 2 * reach)).astype(np.float32)

    def synthesise(y_hat: Floats) -> Floats:
        rows, columns = y_hat.shape[1:]
        canvas = np.full((3, STRIDE * rows + 2 * reach, STRIDE * columns + 2 * reach), 0.5, np.float32)
        for row, column in np.ndindex(rows, columns):
            there = canvas[:, STRIDE * row :, STRIDE * column :][:, : 2 * reach, : 2 * reach]
            there += np.tensordot(y_hat[:, row, column], patches, 1)
        image: Floats = canvas[:, reach:-reach, reach:-reach].copy()
        return image

    return synthesise, patches


def cost_of(symbols: Symbols, image: Floats, synthesise: Synthesise, tables: Tables, lmbda: float) -> float:
    """Bits + lmbda x 255^2 x the squared error of one channel's pixels, as CompressAI's loss counts it."""
    height, width = image.shape[1:]
    error = synthesise(dequantize(symbols, tables)).clip(0, 1)[:, :height, :width].astype(np.float64) - image
    return code_length_bits(symbols, tables) + lmbda * 255**2 * float((error**2).sum()) / 3


def image_of(symbols: Symbols, synthesise: Synthesise, tables: Tables, seed: int = 1) -> Floats:
    """An image whose latents are rounded to these symbols."""
    rest = np.random.default_rng(seed).uniform(-0.5, 0.5, symbols.shape).astype(np.float32)
    return synthesise(dequantize(symbols, tables) + rest)


@pytest.mark.parametrize("size", [None, (4, 4), (9, 13)])
def test_responses_are_the_patches_of_a_linear_decoder(size: tuple[int, int] | None) -> None:
    tables = photo_like(channels=5)
    synthesise, patches = linear_decoder(5)
    responses = measure_responses(synthesise, tables, size)
    found = responses.blocks.reshape(4, 4, 3, STRIDE, STRIDE, 5).transpose(5, 2, 0, 3, 1, 4).reshape(5, 3, 64, 64)
    assert np.abs(found[:, :, 2:-2, 2:-2] - patches).max() < 1e-6
    assert not np.delete(found, slice(2, -2), axis=2).any()
    assert responses.energies.sum(0) == pytest.approx(np.square(patches).sum((1, 2, 3)), rel=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_a_decoder_of_a_small_fixed_size_is_measured_where_it_has_pixels(size: tuple[int, int]) -> None:
    tables = photo_like(channels=2)
    synthesise, patches = linear_decoder(2)
    responses = measure_responses(synthesise, tables, size)
    energy = responses.energies.sum(0)
    assert (energy > 0).all() and (energy < np.square(patches).sum((1, 2, 3))).all()


def test_symbols_that_do_not_touch_reach_the_best_of_all_choices() -> None:
    """With patches of 16 x 16 pixels and no contexts, the cost is a sum over symbols: each is searched alone."""
    tables = photo_like(channels=1, values=41)
    synthesise, _ = linear_decoder(1, reach=STRIDE // 2)
    symbols = typical_symbols(tables, 4, 5)
    image, lmbda = image_of(symbols, synthesise, tables), 0.0005
    best = symbols.copy()
    for place in np.ndindex(*symbols.shape):
        choices = []
        for step in (-3, -2, -1, 0, 1, 2, 3):
            other = symbols.copy()
            other[place] += step
            choices.append((cost_of(other, image, synthesise, tables, lmbda), other[place]))
        best[place] = min(choices)[1]
    assert (best != symbols).sum() > 3
    responses = measure_responses(synthesise, tables)
    moved = move_symbols(symbols, image, synthesise, responses, tables, RdoqSettings("full", lmbda))
    assert np.array_equal(moved, best)


@pytest.mark.parametrize("contexts", [False, True])
@pytest.mark.parametrize("lmbda", [None, 0.0005, 0.001])
def test_the_cost_falls_and_more_effort_saves_more(contexts: bool, lmbda: float | None) -> None:
    tables = with_contexts(4, seed=0) if contexts else photo_like(channels=4)
    synthesise, _ = linear_decoder(4)
    symbols = typical_symbols(tables, 6, 5)
    image = image_of(symbols, synthesise, tables)[:, :90, :77]
    responses = measure_responses(synthesise, tables)
    counts = np.count_nonzero(symbols, axis=(1, 2))
    mu = 6 * counts.sum() / (counts @ responses.energies.sum(0))  # what a lmbda of None stands for
    price = lmbda or 3 * mu / 255**2
    costs = [cost_of(symbols, image, synthesise, tables, price)]
    for effort in ("fast", "full"):
        moved = move_symbols(symbols, image, synthesise, responses, tables, RdoqSettings(effort, lmbda))
        costs.append(cost_of(moved, image, synthesise, tables, price))
    assert costs[0] > costs[1] >= costs[2]


def test_fast_only_moves_towards_zero() -> None:
    tables = photo_like(channels=4)
    synthesise, _ = linear_decoder(4)
    symbols = typical_symbols(tables, 6, 6)
    image = image_of(symbols, synthesise, tables)
    responses = measure_responses(synthesise, tables)
    moved = move_symbols(symbols, image, synthesise, responses, tables, RdoqSettings("fast", 0.001))
    steps = moved - symbols
    assert steps.any() and (steps * symbols <= 0).all() and np.abs(steps).max() == 1


def test_symbols_stay_where_the_predictions_are_wrong() -> None:
    """A decoder that answers every change with the opposite image: what looks like a gain is none."""
    tables = photo_like(channels=2)
    symbols = typical_symbols(tables, 4, 4)
    image = np.full((3, 64, 64), 0.5, np.float32)
    asked = dequantize(symbols, tables)

    def synthesise(y_hat: Floats) -> Floats:
        right = y_hat.shape == asked.shape and np.array_equal(y_hat, asked)
        return np.full((3, 16 * y_hat.shape[1], 16 * y_hat.shape[2]), 0.5 if right else 1.0, np.float32)

    responses = Responses(np.full((16, 768, 2), 1e-6, np.float32), np.full((16, 2), 1e-6, np.float32))
    for effort in ("fast", "full"):
        moved = move_symbols(symbols, image, synthesise, responses, tables, RdoqSettings(effort, 0.001))
        assert np.array_equal(moved, symbols)


def test_nothing_is_moved_that_is_zero_or_off() -> None:
    tables = photo_like(channels=2)
    synthesise, _ = linear_decoder(2)
    responses = measure_responses(synthesise, tables)
    zero, image = np.zeros((2, 3, 3), np.int32), np.full((3, 48, 48), 0.5, np.float32)
    assert not move_symbols(zero, image, synthesise, responses, tables, RdoqSettings("full")).any()
    symbols = typical_symbols(tables, 3, 3)
    assert move_symbols(symbols, image, synthesise, responses, tables, RdoqSettings()) is symbols


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RdoqSettings("off", 0.01), "--rdoq_lmbda: needs --rdoq"),
        *[(RdoqSettings("full", value), "more than 0") for value in (0.0, -1.0, float("nan"), float("inf"))],
    ],
)
def test_flags_that_contradict_each_other(settings: RdoqSettings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings.check()
    for lmbda in (None, 0.01):
        RdoqSettings("fast", lmbda).check()
