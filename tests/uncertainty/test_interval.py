"""Intervals: against closed forms, at degenerate inputs, and consistent with their p-values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from simmim_bench.uncertainty.interval import (
    Difference,
    Side,
    Spread,
    difference,
    pooled_spread,
    uncertainty,
)
from simmim_bench.uncertainty.jackknife import from_left_out
from simmim_bench.uncertainty.mover import ALPHA, Variance, add, margin, p_value
from simmim_bench.uncertainty.run_scores import RunScores, from_correct


def side(*runs: int, varies: bool = True, keys: tuple[int | str, ...] | None = None) -> Side:
    return Side(tuple((run,) for run in runs), keys or tuple(range(len(runs))), varies=varies)


def many_images(*scores: float) -> RunScores:
    """Return scores without noise of images."""
    count = len(scores)
    return RunScores(np.array(scores), 1e-9 * np.eye(count), 10**9)


def half(result: Difference) -> float:
    return (result.high - result.low) / 2


def test_seeds_that_vary_equally_give_students_interval() -> None:
    ours, theirs = (60.0, 61.0, 63.0), (50.0, 51.0, 53.0)
    result = difference(many_images(*ours, *theirs), side(0, 1, 2), side(3, 4, 5))
    student = stats.ttest_ind(ours, theirs)
    interval = student.confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    assert result.p_value == pytest.approx(student.pvalue)


def test_seeds_that_vary_on_one_side_give_its_interval() -> None:
    ours, theirs = (60.0, 61.0, 63.0), (55.0, 55.001, 54.999, 55.0)
    result = difference(many_images(*ours, *theirs), side(0, 1, 2), side(3, 4, 5, 6))
    welch = stats.ttest_ind(ours, theirs, equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), rel=1e-4)
    assert result.p_value == pytest.approx(welch.pvalue, rel=1e-4)
    assert result.points == pytest.approx(np.mean(ours) - np.mean(theirs))


def test_shared_samples_give_the_paired_interval_whatever_the_order() -> None:
    ours, theirs = (60.0, 61.0, 64.5), (58.0, 58.5, 60.5)
    reference = stats.ttest_rel(ours, theirs)
    interval = reference.confidence_interval(0.95)
    runs = many_images(*ours, *theirs)
    for order in itertools.permutations(range(3)):
        shuffled = Side(tuple((3 + key,) for key in order), tuple(str(key) for key in order))
        result = difference(runs, side(0, 1, 2), shuffled, paired=True)
        assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
        assert result.p_value == pytest.approx(reference.pvalue)


@pytest.mark.parametrize(
    "keys", [(0, 1, 3), (0, 1, 1), (0, 0, 0)], ids=["another seed", "twice", "all the same"]
)
def test_units_that_cannot_be_paired_one_to_one_are_not(keys: tuple[int, ...]) -> None:
    runs = many_images(60, 61, 64.5, 58, 58.5, 60.5)
    ours, theirs = side(0, 1, 2), side(3, 4, 5, keys=keys)
    assert difference(runs, ours, theirs, paired=True) == difference(runs, ours, theirs)
    assert difference(runs, theirs, ours, paired=True) == difference(runs, theirs, ours)


def test_images_alone_give_students_interval() -> None:
    gains = np.random.default_rng(0).normal(3, 20, 60)
    replicates = np.stack([gains, np.zeros(60)])
    runs = RunScores(replicates.mean(1), np.cov(replicates) / 60, 60)
    result = difference(runs, side(0, varies=False), side(1, varies=False))
    reference = stats.ttest_1samp(gains, 0)
    interval = reference.confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    assert result.p_value == pytest.approx(reference.pvalue)
    assert not result.without_units


def test_margins_of_images_and_seeds_add_in_squares() -> None:
    scores, shared, own, images = np.array([60.0, 62.0, 40.0, 46.0]), 3.0, 1.0, 100
    # Seeds of one row share a part of the images' noise.
    covariance = np.kron(np.eye(2), np.full((2, 2), shared)) + own * np.eye(4)
    runs = RunScores(scores, covariance, images)
    result = difference(runs, side(0, 1), side(2, 3))
    of_images = stats.t.ppf(0.975, images - 1) ** 2 * (shared + shared)
    parts = [np.var([60, 62], ddof=1) / 2, np.var([40, 46], ddof=1) / 2]
    freedom = sum(parts) ** 2 / sum(part**2 / 3 for part in parts) - 2
    assert 1 < freedom < 2
    of_seeds = stats.t.ppf(0.975, freedom) ** 2 * sum(parts)
    assert half(result) == pytest.approx(math.sqrt(of_images + of_seeds))


def test_seeds_that_agree_leave_the_interval_of_the_images() -> None:
    covariance = np.diag([4.0] * 4)
    scores = np.array([60.0, 60.0, 50.0, 50.0])
    agree = difference(RunScores(scores, covariance, 100), side(0, 1), side(2, 3))
    assert half(agree) == pytest.approx(stats.t.ppf(0.975, 99) * 2)


def test_margins_are_continuous_and_grow_with_the_variance_over_units() -> None:
    of_images = Variance(5.0, 0.0, 1999)
    for freedom in (1, 2, 4):
        values = np.linspace(0, 4, 4001)
        margins = [margin(of_images, Variance(float(v), 1.0, freedom)) for v in values]
        steps = np.diff(np.square(margins))
        assert (steps >= -1e-9).all()
        # Between the ratios the weight grows with the variance.
        assert steps.max() < 3 * stats.t.ppf(0.975, freedom) ** 2 * values[1]


def test_noise_of_images_in_the_variance_over_units_is_the_runs_own() -> None:
    generator = np.random.default_rng(0)
    shared, own = generator.normal(0, 3, (1, 4000)), generator.normal(0, 2, (3, 4000))
    runs = RunScores(np.array([60.0, 61.0, 62.0]), np.cov(shared + own), 10**6)
    spread = pooled_spread(runs, [side(0, 1, 2)])
    assert spread is not None
    assert spread.noise == pytest.approx(4, rel=0.06)
    assert spread.variance == pytest.approx(1)
    assert spread.freedom == 2


def test_pool_weighs_rows_by_their_degrees_of_freedom() -> None:
    groups = [(60.0, 62.0), (50.0, 51.0, 55.0), (40.0,)]
    sides = [side(0, 1), side(2, 3, 4), side(5)]
    spread = pooled_spread(many_images(*itertools.chain(*groups)), sides)
    assert spread is not None
    expected = (np.var([60, 62], ddof=1) + 2 * np.var([50, 51, 55], ddof=1)) / 3
    assert spread.variance == pytest.approx(expected)
    assert spread.freedom == 3
    assert pooled_spread(many_images(1, 2), [side(0), side(1)]) is None


def test_single_seeds_use_the_pool_with_its_degrees_of_freedom_once() -> None:
    spread = Spread(variance=2.0, noise=0.0, freedom=4)
    runs = many_images(60, 50)
    result = difference(runs, side(0), side(1), spread=spread)
    assert half(result) == pytest.approx(stats.t.ppf(0.975, 4) * 2)
    assert not result.without_units
    assert half(difference(runs, side(0, varies=False), side(1), spread=spread)) == pytest.approx(
        stats.t.ppf(0.975, 4) * math.sqrt(2)
    )


def test_single_seed_uses_the_variance_of_the_other_row() -> None:
    runs = many_images(60, 50, 52, 54)
    result = difference(runs, side(0), side(1, 2, 3))
    margin = stats.t.ppf(0.975, 2) * math.sqrt(np.var([50, 52, 54], ddof=1) * (1 + 1 / 3))
    assert half(result) == pytest.approx(margin)
    assert result.units == (1, 3)


def test_single_seeds_alone_are_reported_as_images_alone() -> None:
    runs = from_correct(np.random.default_rng(0).random((2, 40)) < 0.5)
    result = difference(runs, side(0), side(1))
    assert result.without_units
    assert not difference(runs, side(0, varies=False), side(1, varies=False)).without_units


def test_a_pretrainings_variance_is_not_that_of_seeds() -> None:
    runs = many_images(60, 50, 52, 54)
    assert difference(runs, Side(((0,),), (0,), "pretraining"), side(1, 2, 3)).without_units


def test_units_are_means_of_their_runs() -> None:
    runs = many_images(60, 62, 70, 72, 50, 54, 61, 63)
    ours = Side(((0, 1), (2, 3)), (0, 1), "pretraining")
    theirs = Side(((4, 5), (6, 7)), (0, 1), "pretraining")
    result = difference(runs, ours, theirs)
    reference = stats.ttest_ind([61, 71], [52, 62]).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((reference.low, reference.high))
    assert result.unit == "pretraining"


def test_rows_without_randomness_do_not_enter_the_pool() -> None:
    runs = many_images(60, 60, 60, 50, 53)
    fixed, other = side(0, 1, 2, varies=False), side(3, 4)
    assert pooled_spread(runs, [fixed, other]) == pooled_spread(runs, [other])
    assert uncertainty(runs, fixed).units is None
    single = difference(runs, side(0, varies=False), other)
    assert half(difference(runs, fixed, other)) == pytest.approx(half(single))


def test_different_scores_vary_whatever_the_task() -> None:
    runs = many_images(60, 64, 50, 53)
    assert difference(runs, side(0, 1, varies=False), side(2, 3)) == difference(
        runs, side(0, 1), side(2, 3)
    )


def test_uncertainty_of_one_score() -> None:
    correct = np.random.default_rng(0).random((3, 80)) < 0.6
    result = uncertainty(from_correct(correct), side(0, 1, 2))
    by_image = [*(100 * correct.mean(0)), 100, 100, 0, 0]
    assert result.units == pytest.approx(np.std(100 * correct.mean(1), ddof=1))
    assert result.images == pytest.approx(np.std(by_image) / math.sqrt(84))
    assert uncertainty(from_correct(correct[:1]), side(0)).units is None


@pytest.mark.parametrize("images", [1, 2, 30])
@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("scores", [(0.0, 0.0), (100.0, 0.0), (100.0, 100.0), (50.0, 50.0)])
@pytest.mark.parametrize("kind", ["correct", "left out"])
@pytest.mark.parametrize("paired", [False, True])
def test_degenerate_runs_have_finite_intervals_of_some_width(
    images: int, seeds: int, scores: tuple[float, float], kind: str, paired: bool
) -> None:
    each = np.repeat(scores, seeds)
    if kind == "correct":
        runs = from_correct(np.tile(each[:, None] / 100, images))
    else:
        runs = from_left_out(each, np.tile(each[:, None], images), images)
    ours, theirs = side(*range(seeds)), side(*range(seeds, 2 * seeds))
    result = difference(runs, ours, theirs, paired=paired)
    assert np.isfinite([result.low, result.high, result.p_value]).all()
    assert -100 <= result.low < result.high <= 100
    assert result.points == scores[0] - scores[1]
    if result.points == 0:
        assert result.p_value == 1
        assert result.includes_zero
    assert images > 1 or result.includes_zero
    error = uncertainty(runs, ours).images
    known = kind == "correct" or images == 1
    assert (error is not None and 0 < error <= 50) if known else error is None


def test_the_total_error_counts_the_noise_of_images_once() -> None:
    scores, shared, own = np.array([60.0, 64.0, 71.0]), 3.0, 1.0
    runs = RunScores(scores, np.full((3, 3), shared) + own * np.eye(3), 100)
    found = uncertainty(runs, side(0, 1, 2))
    of_images, of_seeds = shared + own / 3, scores.var(ddof=1) - own
    assert found.total == pytest.approx(math.sqrt(of_images + of_seeds / 3))
    alone = uncertainty(runs, side(0))
    assert alone.total == alone.images == 2


def test_a_row_compared_with_itself_is_not_distinguishable() -> None:
    runs = from_correct(np.random.default_rng(0).random((2, 30)) < 0.5)
    result = difference(runs, side(0, 1), side(0, 1), paired=True)
    assert (result.points, result.p_value) == (0, 1)
    assert result.low < 0 < result.high


def test_swapped_rows_have_the_negated_interval() -> None:
    runs = from_correct(np.random.default_rng(0).random((5, 30)) < 0.5)
    there = difference(runs, side(0, 1), side(2, 3, 4))
    back = difference(runs, side(2, 3, 4), side(0, 1))
    assert (back.points, back.low, back.high) == (-there.points, -there.high, -there.low)
    assert back.p_value == there.p_value


def test_interval_excludes_zero_exactly_if_p_is_below_the_level() -> None:
    generator = np.random.default_rng(0)
    for _ in range(40):
        of_images = Variance(generator.exponential(), 0.0, int(generator.integers(1, 2000)))
        noise = generator.exponential()
        of_units = Variance(generator.exponential(3), noise, generator.uniform(1, 20))
        for units in (None, of_units):
            at = margin(of_images, units)
            near = [at * (1 + step) for step in (0, 1e-15, -1e-15, 1e-9, -1e-9, 0.1, -0.1)]
            for distance in (*near, math.nextafter(at, 0), math.nextafter(at, math.inf)):
                excludes = distance - at > 0
                assert excludes == (p_value(distance, of_images, units) < 0.05), (distance, at)


def test_p_value_is_the_level_whose_margin_is_the_distance() -> None:
    of_images, of_units = Variance(2.0, 0.0, 50), Variance(3.0, 0.5, 3.5)
    for alpha in (1e-9, 1e-4, 0.01, ALPHA, 0.3, 0.99):
        distance = margin(of_images, of_units, alpha)
        assert p_value(distance, of_images, of_units) == pytest.approx(alpha, rel=1e-6)
    assert p_value(0.0, of_images, of_units) == 1
    assert 0 < p_value(1e9, of_images, None) < 1e-9


def test_variances_add_with_welchs_degrees_of_freedom() -> None:
    total = add([Variance(2.0, 0.5, 3), Variance(1.0, 0.25, 7)])
    assert (total.value, total.noise) == (3.0, 0.75)
    assert total.freedom == pytest.approx(9 / (4 / 5 + 1 / 9) - 2)
    assert add([Variance(2.0, 0.0, 3)]).freedom == pytest.approx(3)
    assert add([Variance(2.0, 0.0, 1), Variance(1.9, 0.0, 1)]).freedom == 2
    assert add([Variance(0.0, 0.0, 3), Variance(0.0, 0.0, 5)]).freedom == 3
    assert add([]) == Variance(0.0, 0.0, 1.0)
