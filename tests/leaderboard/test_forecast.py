"""Claims about the difference that a plan can show, forecast from made-up records of known spread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from support.records import change, fake_hash, make_record, pretraining, set_answers

from simmim_bench.leaderboard.at_hand import RecordsAtHand, Target
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.forecast import ALTERNATIVES, Forecast, forecast_text, make_forecast
from simmim_bench.leaderboard.spread import measure_spread
from simmim_bench.uncertainty.interval import Side, difference
from simmim_bench.uncertainty.power import smallest_difference
from simmim_bench.uncertainty.run_scores import from_correct
from transfer.recipes import RECIPES

DATA = ("data/d", None)  # of `make_record`


def linear(**fields: object) -> Target:
    known: dict[str, Any] = {"task": "linear", "metric": "top1", "data": DATA}
    return Target(**{**known, "recipe": RECIPES["linear"].sha256(), **fields})


def add_run(root: Path, correct: np.ndarray, **run: Any) -> Path:
    """Write the record of a run that classifies the given images correctly."""
    path = make_record(root, **run)
    set_answers(path, correct)
    return path


def sample(
    generator: np.random.Generator, rows: int, seeds: int, images: int, *, seed_sd: float
) -> np.ndarray:
    """Sample correct answers, (rows, seeds, images): images of different difficulty, seeds of different ability."""
    easy = generator.normal(0.3, 1.0, images)
    easy = easy + generator.normal(0, 0.5, (rows, 1, images))
    ability = generator.normal(0, seed_sd, (rows, seeds, 1))
    return generator.random((rows, seeds, images)) < norm.cdf(easy + ability)


def at_hand(root: Path) -> RecordsAtHand:
    def fail(text: str) -> None:
        raise AssertionError(text)

    return RecordsAtHand(find_records([root]).records if root.is_dir() else {}, fail)


def forecast(
    root: Path, target: Target, units: int, files: int | None = None, **more: bool
) -> Forecast:
    return make_forecast(at_hand(root), target, units, lambda: files, **more)


@pytest.fixture
def answers(tmp_path: Path) -> np.ndarray:
    correct = sample(np.random.default_rng(0), 2, 3, 2000, seed_sd=0.1)
    for row, label in enumerate("ab"):
        for seed in range(3):
            add_run(tmp_path, correct[row, seed], label=label, seed=seed)
    return correct


def test_the_spreads_are_those_of_the_records(tmp_path: Path, answers: np.ndarray) -> None:
    units, images = measure_spread(at_hand(tmp_path), linear(), [1, 2, 3, 5])
    assert units is not None
    assert images is not None
    values = 100.0 * answers
    assert units.spread.variance == pytest.approx(values.mean(2).var(1, ddof=1).mean())
    assert units.spread.freedom == 4
    # The images' noise in a seed's score: the interaction of seeds and images in an analysis of variance.
    residuals = values - values.mean(2, keepdims=True) - values.mean(1, keepdims=True)
    residuals += values.mean((1, 2), keepdims=True)
    interaction = (residuals**2).sum((1, 2)) / (2 * 1999)
    assert units.spread.noise == pytest.approx(interaction.mean() / 2000)
    for number, used in ((1, 1), (2, 2), (3, 3), (5, 3)):
        gains = values[0, :used].mean(0) - values[1, :used].mean(0)
        # But for the images that a variance of proportions adds.
        assert images.by_units[number] == pytest.approx(gains.var(ddof=1), rel=0.01)
    assert units.source == "6 seeds, same recipe and data"
    assert images.source == "2 rows, same recipe and data"


def test_the_forecast_is_the_smallest_difference_of_these_spreads(
    tmp_path: Path, answers: np.ndarray
) -> None:
    units, images = measure_spread(at_hand(tmp_path), linear(), ALTERNATIVES)
    assert units is not None
    assert images is not None
    one = forecast(tmp_path, linear(), 3)
    assert one.images == 2000  # as the records say
    assert one.unit_sd == pytest.approx(units.spread.variance**0.5)
    for number, points in one.by_units.items():
        expected = smallest_difference(
            image_sd=(images.by_units[number] / 2000) ** 0.5,
            unit_sd=units.spread.variance**0.5,
            units=number,
            noise_sd=units.spread.noise**0.5,
            images=2000,
        )
        assert points == pytest.approx(expected)
    assert tuple(one.by_units) == ALTERNATIVES
    assert sorted(one.by_units.values(), reverse=True) == list(one.by_units.values())
    assert one.points == one.by_units[3]
    assert one.images_alone is not None
    assert one.points > one.images_alone


def test_a_plan_with_a_limit_scores_no_more_images(tmp_path: Path, answers: np.ndarray) -> None:
    limited = linear(recipe="of the limit", limit=100)
    assert forecast(tmp_path, limited, 3, files=2000).images == 100
    assert forecast(tmp_path, limited, 3, files=50).images == 50
    for path in find_records([tmp_path]).records:
        change(path, deviates={"limit": 2000})
    assert forecast(tmp_path, linear(), 3, files=9000).images == 9000


def test_a_difference_of_the_forecast_is_shown_with_the_power(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    images, seeds = 500, 3
    correct = sample(generator, 16, 5, images, seed_sd=0.15)
    for row in range(16):
        for seed in range(5):
            add_run(tmp_path, correct[row, seed], label=f"r{row}", seed=seed)
    points = forecast(tmp_path, linear(), seeds).points
    assert points is not None
    sides = [Side(tuple((r * seeds + s,) for s in range(seeds)), (0, 1, 2)) for r in range(2)]
    shown = 0
    for _ in range(400):
        runs = from_correct(sample(generator, 2, seeds, images, seed_sd=0.15).reshape(-1, images))
        found = difference(runs, *sides)  # of two equally good rows
        shown += not found.low + points <= 0 <= found.high + points
    # The standard error of 400 comparisons is 2 %; the records' own error of their spreads adds to it.
    assert 0.7 < shown / 400 < 0.9


def test_records_of_the_plans_recipe_and_data_come_first(
    tmp_path: Path, answers: np.ndarray
) -> None:
    same = forecast(tmp_path, linear(), 3)
    other_recipe = forecast(tmp_path, linear(recipe="x"), 3)
    assert other_recipe.unit_source == "6 seeds, same data"
    assert (other_recipe.images, other_recipe.points) == (2000, same.points)
    # Of other data, the images are counted, and the spread over images is scaled to their number.
    other_data = forecast(tmp_path, linear(data=("elsewhere", None)), 3, files=500)
    assert other_data.unit_source == "6 seeds, same recipe"
    assert other_data.images == 500
    assert same.image_sd is not None
    assert other_data.image_sd == pytest.approx(2 * same.image_sd)
    named = forecast(tmp_path, linear(data=("data/d", "pets")), 3, files=500)
    assert named == other_data
    other_task = forecast(tmp_path, linear(task="attentive"), 3, files=500)
    assert other_task.unit_sd is None


def test_without_records_errors_are_assumed_to_be_independent(tmp_path: Path) -> None:
    one = forecast(tmp_path / "runs", linear(), 3, files=50_000)
    assert one.image_sd == pytest.approx(100 * (2 * 0.5 * 0.5 / 50_000) ** 0.5)
    assert one.image_source == "assumed: independent errors at 50 %"
    assert (one.points, one.unit_sd) == (None, None)
    assert one.images_alone == pytest.approx(
        (norm.ppf(0.975) + norm.ppf(0.8)) * one.image_sd, rel=1e-3
    )
    assert "more than 0.9" in "\n".join(forecast_text([("linear", one)]))
    add_run(tmp_path, np.arange(100) < 90)
    single = forecast(tmp_path, linear(), 3)
    assert single.image_sd == pytest.approx(100 * (2 * 0.9 * 0.1 / 100) ** 0.5)
    assert single.image_source == (
        "assumed: independent errors at 90.0 %, 1 record, same recipe and data"
    )
    for target in (
        linear(task="ade20k", metric="miou"),
        linear(task="coco", metric="box_ap"),
    ):
        unknown = forecast(tmp_path, target, 3, files=2000)
        assert (unknown.points, unknown.images_alone, unknown.image_sd) == (None, None, None)
        assert "unknown" in forecast_text([("x", unknown)])[1]
    uncounted = forecast(tmp_path / "runs", linear(), 3)
    assert (uncounted.images, uncounted.points, uncounted.images_alone) == (None, None, None)


def test_one_seed_shows_nothing_of_a_task_that_varies(tmp_path: Path, answers: np.ndarray) -> None:
    one = forecast(tmp_path, linear(), 1)
    assert one.points is None
    assert one.by_units == forecast(tmp_path, linear(), 3).by_units
    line = forecast_text([("linear top1", one)])[1]
    assert "one seed shows none" in line
    assert f"--seeds 3: {one.by_units[3]:.1f}" in line


def test_a_task_without_randomness_varies_with_the_images_alone(tmp_path: Path) -> None:
    correct = sample(np.random.default_rng(2), 2, 1, 1000, seed_sd=0.0)[:, 0]
    for row, label in enumerate("ab"):
        for seed in range(2):
            add_run(tmp_path, correct[row], label=label, seed=seed, task="knn")
    target = linear(task="knn", recipe=RECIPES["knn"].sha256(), varies=False)
    one = forecast(tmp_path, target, 1)
    sd = (100.0 * (correct[0] * 1.0 - correct[1])).std(ddof=1) / 1000**0.5
    assert one.points == pytest.approx((norm.ppf(0.975) + norm.ppf(0.8)) * sd, rel=0.01)
    assert one.points == one.images_alone
    assert one.unit_sd == 0
    line = forecast_text([("knn top1", one)])[1]
    assert "no randomness" in line
    assert "--seeds" not in line
    # Other random weights have other scores; equal scores of a checkpoint say nothing of their spread.
    random = linear(task="knn", recipe=RECIPES["knn"].sha256())
    assert forecast(tmp_path, random, 3).unit_sd is None


def test_seeds_that_share_their_training_images_are_paired(tmp_path: Path) -> None:
    solved = {"a": (500, 700, 600), "b": (450, 655, 545)}
    for label, counts in solved.items():
        for seed, number in enumerate(counts):
            add_run(tmp_path, np.arange(1000) < number, label=label, seed=seed, task="fewshot-1%")
    target = linear(task="fewshot-1%", recipe=RECIPES["logistic"].sha256())
    apart = forecast(tmp_path, target, 3)
    assert apart.unit_sd == pytest.approx(((10.0**2 + np.var([45, 65.5, 54.5], ddof=1)) / 2) ** 0.5)
    paired = forecast(tmp_path, replace(target, paired=True), 3)
    assert paired.unit_sd == pytest.approx((np.var([5.0, 4.5, 5.5], ddof=1) / 2) ** 0.5)
    assert paired.unit_source == "3 pairs of seeds, same recipe and data"


def test_pretrainings_of_one_method_are_units(tmp_path: Path, answers: np.ndarray) -> None:
    for row, method in enumerate(("pixels", "tokens")):
        for seed in range(3 if row == 0 else 1):
            path = add_run(
                tmp_path / "of_methods", answers[row, seed], label=f"{method}{seed}", seed=seed
            )
            checkpoint = make_checkpoint(f"{method}{seed}", method, seed)
            change(path, checkpoint=checkpoint)
    target = linear(unit="pretraining")
    for pool in (False, True):
        one = forecast(tmp_path / "of_methods", target, 1, pool=pool)
        assert one.unit_sd == pytest.approx((100 * answers[0].mean(1)).std(ddof=1))
        assert one.unit_source == "3 pretrainings, same recipe and data"
        assert (one.points is None) != pool
    pooled = forecast_text([("linear", one)])
    assert "the spread of rows with several pretrainings is used" in pooled[-1]
    # The cells of another recipe are none that a single one could be compared by.
    other = forecast(tmp_path / "of_methods", linear(unit="pretraining", recipe="x"), 1, pool=True)
    assert other.points is None
    assert other.by_units[3] is not None


def make_checkpoint(label: str, method: str, seed: int) -> dict[str, object]:
    return {
        "label": label,
        "name": f"nowhere/{label}",
        "sha256": fake_hash(label),
        "arch": "x",
        "params": 1000,
        "provenance": pretraining(method, seed),
    }


def test_damaged_and_partial_runs_are_left_out(tmp_path: Path, answers: np.ndarray) -> None:
    (tmp_path / "a-linear-1" / "predictions" / "logits.npz").write_bytes(b"damaged")
    change(tmp_path / "b-linear-2" / "record.json", status="partial", evaluated=1999)
    warnings = list[str]()
    units, images = measure_spread(
        RecordsAtHand(find_records([tmp_path]).records, warnings.append), linear(), [3]
    )
    assert len(warnings) == 1
    assert "a-linear-1" in warnings[0]
    assert "hash mismatch" in warnings[0]
    assert units is not None
    scores = 100 * answers.mean(2)
    assert units.spread.variance == pytest.approx(
        (2 * scores[0].var(ddof=1) + scores[1, :2].var(ddof=1)) / 3
    )
    assert images is None  # a pair needs two rows whose predictions can be read


def test_few_runs_are_read(
    tmp_path: Path, answers: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        add_run(tmp_path, answers[0, 0], label=f"more{number}")
    known = at_hand(tmp_path)
    monkeypatch.setattr("simmim_bench.leaderboard.at_hand.MOST_RUNS", 7)
    units, images = measure_spread(known, linear(), [3])
    assert len(known.scores) == 7
    assert images is not None
    assert images.source == "3 rows, same recipe and data"
    monkeypatch.setattr("simmim_bench.leaderboard.at_hand.MOST_BYTES", {"ranking": 100})
    known = at_hand(tmp_path)
    unread, images = measure_spread(known, linear(), [3])
    assert not known.scores
    assert images is None
    assert units is not None
    assert unread is not None
    assert unread.spread.variance == pytest.approx(units.spread.variance)
    # What is not read is not taken for missing; top-1 alone has an assumption instead.
    top5 = linear(metric="top5")
    for path in find_records([tmp_path]).records:
        change(path, metrics={"top1": 50.0, "top5": 50.0})
    assert forecast(tmp_path, top5, 3).image_source == "too large to read"
