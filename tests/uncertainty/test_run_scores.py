"""Variances of scores over images against closed forms and numpy."""

from __future__ import annotations

import numpy as np
import pytest

from simmim_bench.uncertainty.jackknife import from_left_out
from simmim_bench.uncertainty.run_scores import RunScores, from_correct

DIFFERENCE = (1.0, -1.0)


def answers(runs: int, images: int) -> np.ndarray:
    generator = np.random.default_rng(runs + images)
    return generator.random((runs, images)) < generator.random((1, images))


def test_covariance_is_that_of_the_means() -> None:
    correct = answers(3, 50)
    runs = from_correct(correct)
    weights = np.array([0.5, 0.5, -1.0])
    by_image = weights @ (100.0 * correct)
    assert runs.scores == pytest.approx(100 * correct.mean(1))
    assert weights @ runs.covariance @ weights == pytest.approx(by_image.var(ddof=1) / 50)


@pytest.mark.parametrize(("both", "ours", "theirs", "neither"), [(20, 9, 4, 7), (10, 0, 0, 3)])
def test_difference_of_two_runs_has_the_variance_of_bonett_and_price(
    both: int, ours: int, theirs: int, neither: int
) -> None:
    first = [1] * both + [1] * ours + [0] * theirs + [0] * neither
    second = [1] * both + [0] * ours + [1] * theirs + [0] * neither
    count = len(first) + 2
    p_ours, p_theirs = (ours + 1) / count, (theirs + 1) / count
    expected = 1e4 * (p_ours + p_theirs - (p_ours - p_theirs) ** 2) / count
    assert from_correct([first, second]).variance(DIFFERENCE) == pytest.approx(expected)


@pytest.mark.parametrize(("right", "images"), [(13, 20), (0, 20), (20, 20), (1, 1)])
def test_accuracy_has_the_variance_of_agresti_and_coull(right: int, images: int) -> None:
    share = (right + 2) / (images + 4)
    expected = 1e4 * share * (1 - share) / (images + 4)
    correct = [[1] * right + [0] * (images - right)]
    assert from_correct(correct).variance([1.0]) == pytest.approx(expected)


def test_added_images_are_those_of_a_naive_list() -> None:
    correct = answers(4, 30)
    for weights, added in (
        (np.array([0.5, 0.5, -0.5, -0.5]), [100.0, -100.0]),
        (np.full(4, 0.25), [100.0, 100.0, 0.0, 0.0]),
    ):
        values = [*(weights @ (100.0 * correct)), *added]
        expected = np.var(values) / len(values)
        assert from_correct(correct).variance(weights) == pytest.approx(expected)


@pytest.mark.parametrize("proportions", [False, True])
@pytest.mark.parametrize("images", [1, 2, 200])
@pytest.mark.parametrize("weights", [DIFFERENCE, (0.5, 0.5)])
def test_equal_answers_have_a_variance(
    proportions: bool, images: int, weights: tuple[float, float]
) -> None:
    for score in (0.0, 100.0):
        if proportions:
            runs = from_correct(np.full((2, images), score / 100))
        else:
            runs = from_left_out([score] * 2, np.full((2, images), score), images)
        assert runs.variance(weights) > 1e4 / (images + 5) ** 2


def test_equal_predictions_have_a_variance_despite_rounding() -> None:
    left_out = np.tile(np.random.default_rng(0).random(40) * 100 / 3, (13, 1))
    runs = from_left_out(left_out[:, 0], left_out, 40)
    for ours in range(1, 13):
        weights = np.repeat([1 / ours, -1 / (13 - ours)], [ours, 13 - ours])
        assert runs.variance(weights) == pytest.approx(2e4 / 42**2)
    mean = runs.variance(np.full(13, 1 / 13))
    assert mean == pytest.approx(left_out[0].var(ddof=1) * 39**2 / 40)


def test_one_image_cannot_show_a_variance() -> None:
    runs = from_left_out([80.0, 20.0], [[80.0], [20.0]], 1)
    assert runs.variance(DIFFERENCE) == 2 * 50**2


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(AssertionError):
        from_left_out([1.0, np.nan], np.zeros((2, 5)), 5)
    with pytest.raises(AssertionError):
        RunScores(np.zeros(1), np.full((1, 1), np.nan), 5)
