"""Means of scores: what they leave out, and that their order does not matter."""

import math

from relic.codec.scores import MeanScore, Score, mean_of, mean_score


def test_means_leave_out_exact_images_and_those_without_ms_ssim() -> None:
    scores = [Score(30.0, 0.5, 0.5), Score(math.inf, 1.0, 1.5), Score(40.0, None, 1.0)]
    assert mean_score(scores) == MeanScore(35.0, 0.75, 1.0)
    assert mean_score([Score(math.inf, None, 0.25)]) == MeanScore(None, None, 0.25)


def test_a_mean_does_not_depend_on_the_order() -> None:
    values = [1e16, 1.0, -1e16, None]
    assert mean_of(values) == mean_of(values[::-1]) == 1 / 3
    assert mean_of([None]) is None
