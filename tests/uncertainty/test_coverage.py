"""Intervals contain the true difference as often as they claim, in simulated comparisons of known truth."""

from __future__ import annotations

import numpy as np
import pytest
from support import coverage
from support.coverage import (
    BOOTSTRAPPED,
    CLAIMS,
    GAP,
    OTHERS,
    SEED_SDS,
    SEEDS,
    TRIALS,
    Cell,
    Measured,
    in_points,
    measure,
    measure_bootstrap,
    pretrainings_cell,
    seeds_cell,
)
from support.transfer_trials import Design, simulate

# One standard deviation of a coverage of 95 % over the trials, in percent.
ERROR = 0.35
LOWEST, HIGHEST = 93 - ERROR, 98 + ERROR
HIGHEST_OF_TWO = (
    98.5 + 2 * ERROR
)  # two seeds that change little: Student's quantile of one degree of freedom is 12.7
# What two independent simulations may differ by: four standard deviations, of a coverage of 50 % as well.
COVERAGE_TOLERANCE, WIDTH_TOLERANCE = 4.5, 0.1


def documented(name: str) -> list[list[str]]:
    """Return the rows of a table of the document."""
    text = coverage.DOCUMENT.read_text(encoding="utf-8")
    table = text.split(f"<!-- {name}: begin -->")[1].split(f"<!-- {name}: end -->")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.strip().splitlines()[2:]
    ]


def numbers(cells: list[str]) -> list[float]:
    return [float(cell.removesuffix(" %")) for cell in cells]


def check_documented(row: list[str], result: Measured) -> None:
    """Check single t's coverage and width, and the interval's."""
    old_coverage, old_width, new_coverage, width = numbers(row)
    for written, measured in (
        (old_coverage, result.old_coverage),
        (new_coverage, result.coverage),
    ):
        share = np.clip(measured / 100, 0.02, 0.98)
        tolerance = 4 * 100 * np.sqrt(2 * share * (1 - share) / TRIALS)
        assert written == pytest.approx(measured, abs=float(tolerance) + 0.05)
    assert old_width == pytest.approx(result.old_width, rel=WIDTH_TOLERANCE)
    assert width == pytest.approx(result.width, rel=WIDTH_TOLERANCE)


@pytest.mark.parametrize(
    "cell",
    [
        seeds_cell(2, 0.1, paired=False),
        seeds_cell(3, 0.1, paired=True, gap=GAP),
        pretrainings_cell(3, 0.1),
        OTHERS["1 and 1 seed, variance pooled over 2 more rows of 3 seeds"],
    ],
    ids=["two seeds", "paired", "pretrainings", "pooled"],
)
def test_few_intervals_cover(cell: Cell) -> None:
    # 400 trials of a coverage of 95 % have a standard deviation of 1.1.
    trials = 400 if cell.design.images < 1000 else 150
    assert measure(cell, trials, seed=1).coverage > 91.5


def test_one_pretraining_says_little_about_the_method() -> None:
    assert measure(CLAIMS[5, 0.3], 150, seed=1).coverage < 40


def test_simulated_scores_have_the_true_difference() -> None:
    design = Design((4, 4), 3, seed_sd=0.3, pretraining_sd=0.3, gap=0.4)
    trials = list(simulate(design, 500, np.random.default_rng(0)))
    gains = [100 * (correct[:12].mean() - correct[12:].mean()) for correct, _, _ in trials]
    checkpoint, method = np.mean([trial[1] for trial in trials]), trials[0][2]
    assert np.mean(gains) == pytest.approx(method, abs=4 * np.std(gains) / 500**0.5)
    assert checkpoint == pytest.approx(method, abs=1.5)
    # Given the pretrainings, only seeds and images are left.
    rest = np.array(gains) - [trial[1] for trial in trials]
    assert np.std(rest) < 0.75 * np.std(gains)


def test_seeds_vary_by_the_documented_points() -> None:
    design = Design((8, 1), seed_sd=0.1, images=20_000)
    scores = [
        100 * correct[:8].mean(1)
        for correct, _, _ in simulate(design, 30, np.random.default_rng(0))
    ]
    sd = np.mean([each.var(ddof=1) for each in scores]) ** 0.5
    assert sd == pytest.approx(in_points(0.1), rel=0.15)
    assert in_points(0.0665) == pytest.approx(2.1, abs=0.05)


def test_tables_of_the_document_have_all_cells() -> None:
    assert len(documented("coverage of seeds")) == len(SEEDS) * len(SEED_SDS)
    assert len(documented("coverage of pretrainings")) == 3 * len(SEED_SDS)
    assert [row[0] for row in documented("coverage of other comparisons")] == list(OTHERS)
    for row in documented("coverage of seeds"):
        highest = 99 if row[0] == "2" else 98
        assert all(93 <= round(value) <= highest for value in numbers([row[4], row[8]]))


@pytest.mark.slow
@pytest.mark.parametrize("row", range(len(SEEDS) * len(SEED_SDS)))
def test_intervals_of_seeds_cover(row: int) -> None:
    seeds, sd = SEEDS[row // len(SEED_SDS)], SEED_SDS[row % len(SEED_SDS)]
    cells = documented("coverage of seeds")[row]
    assert cells[0] == str(seeds)
    for paired in (False, True):
        none = measure(seeds_cell(seeds, sd, paired=paired), TRIALS, seed=1)
        some = measure(seeds_cell(seeds, sd, paired=paired, gap=GAP), TRIALS, seed=2)
        highest = HIGHEST_OF_TWO if seeds == 2 else HIGHEST
        assert LOWEST <= none.coverage <= highest
        assert LOWEST <= some.coverage <= highest
        check_documented(cells[6:] if paired else cells[2:6], none)


@pytest.mark.slow
@pytest.mark.parametrize("row", range(3 * len(SEED_SDS)))
def test_intervals_of_pretrainings_cover(row: int) -> None:
    count, sd = (2, 3, 5)[row // len(SEED_SDS)], SEED_SDS[row % len(SEED_SDS)]
    none = measure(pretrainings_cell(count, sd), TRIALS, seed=1)
    some = measure(pretrainings_cell(count, sd, gap=GAP), TRIALS, seed=2)
    assert LOWEST <= none.coverage <= HIGHEST
    assert LOWEST <= some.coverage <= HIGHEST
    check_documented(documented("coverage of pretrainings")[row][2:], none)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_intervals_of_other_comparisons_cover(name: str) -> None:
    result = measure(OTHERS[name], TRIALS, seed=1)
    # Of few images, those that are added make a difference.
    wide = "40 images" in name or "without variation, 2 seeds" in name
    assert LOWEST <= result.coverage <= (99 if wide else HIGHEST)
    rows = {row[0]: row[1:] for row in documented("coverage of other comparisons")}
    check_documented(rows[name], result)


@pytest.mark.slow
def test_claims_about_methods_from_one_pretraining_cover_as_documented() -> None:
    rows = documented("coverage of claims")
    for row, cell in zip(rows, CLAIMS.values(), strict=True):
        result = measure(cell, TRIALS, seed=1)
        assert result.coverage < 85
        check_documented(row[2:], result)


@pytest.mark.slow
def test_hierarchical_bootstrap_covers_as_documented() -> None:
    for row, cell in zip(
        documented("coverage of the bootstrap"), BOOTSTRAPPED.values(), strict=True
    ):
        hits, width = measure_bootstrap(cell, coverage.BOOTSTRAP_TRIALS, seed=1)
        written = numbers(row[2:4])
        assert written[0] == pytest.approx(hits, abs=COVERAGE_TOLERANCE)
        assert written[1] == pytest.approx(width, rel=WIDTH_TOLERANCE)
