"""The planned difference against the closed form and against simulated intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from support.coverage import power_of
from support.transfer_trials import Design

from simmim_bench.uncertainty.interval import Side, difference
from simmim_bench.uncertainty.power import smallest_difference
from simmim_bench.uncertainty.run_scores import RunScores


def test_images_alone_have_the_closed_form() -> None:
    expected = 2.0 * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
    assert smallest_difference(image_sd=2.0, unit_sd=0.0, units=1) == pytest.approx(
        expected, abs=1e-4
    )


@pytest.mark.parametrize("units", [2, 3, 10])
def test_paired_units_alone_have_the_power_of_students_test(units: int) -> None:
    freedom = units - 1
    points = smallest_difference(image_sd=0.0, unit_sd=2.0, units=units, freedom=freedom)
    assert points is not None
    shift = points / (2 * math.sqrt(2 / units))
    power = stats.nct.sf(stats.t.ppf(0.975, freedom), freedom, shift)
    assert power == pytest.approx(0.8, abs=0.003)


def test_one_unit_needs_a_variance_from_elsewhere() -> None:
    assert smallest_difference(image_sd=2.0, unit_sd=1.0, units=1) is None
    pooled = smallest_difference(image_sd=2.0, unit_sd=1.0, units=1, freedom=4)
    many = smallest_difference(image_sd=2.0, unit_sd=1.0, units=1, freedom=400)
    assert pooled is not None
    assert many is not None
    assert pooled > many
    assert many == pytest.approx(math.sqrt(6) * (1.96 + 0.8416), rel=0.01)


def test_more_units_images_and_shared_noise_show_smaller_differences() -> None:
    def planned(*, units: int = 3, images: int = 20, noise_sd: float = 0.0) -> float:
        points = smallest_difference(
            image_sd=2.0, unit_sd=2.0, units=units, images=images, noise_sd=noise_sd
        )
        assert points is not None
        return points

    assert planned(units=5) < planned(units=4) < planned()
    assert planned(images=2000) < planned(images=200) < planned()
    assert planned(noise_sd=1.9) < planned(noise_sd=1.0) < planned()


@pytest.mark.parametrize(("units", "unit_sd"), [(2, 2.0), (3, 1.0), (5, 4.0)])
def test_planned_difference_is_shown_with_the_planned_power(units: int, unit_sd: float) -> None:
    image_sd, images, trials = 1.5, 50, 600
    points = smallest_difference(image_sd=image_sd, unit_sd=unit_sd, units=units, images=images)
    assert points is not None
    generator = np.random.default_rng(0)
    ours = Side(tuple((run,) for run in range(units)), tuple(range(units)))
    theirs = Side(tuple((units + run,) for run in range(units)), tuple(range(units)))
    weights = ours.weights(2 * units) - theirs.weights(2 * units)
    # The images change all runs of a side alike, by as much as their variance was estimated to be.
    covariance = np.kron(np.eye(2), np.full((units, units), image_sd**2 / 2))
    shown = 0
    for _ in range(trials):
        estimated = covariance * generator.chisquare(images - 1) / (images - 1)
        scores = 50 + generator.multivariate_normal(np.zeros(2 * units), covariance)
        scores += unit_sd * generator.normal(size=2 * units) + points * (weights > 0)
        result = difference(RunScores(scores, estimated, images), ours, theirs)
        shown += not result.includes_zero
    assert 100 * shown / trials == pytest.approx(80, abs=4)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("sd", [0.0, 0.03, 0.1, 0.3])
def test_planned_difference_of_accuracies_is_shown_with_the_planned_power(
    seeds: int, sd: float
) -> None:
    images = 2000
    design = Design((seeds, seeds), seed_sd=sd, images=images)
    assert 76 <= power_of(design, trials=2000) <= 84
