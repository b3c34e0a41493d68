"""Measure how often intervals contain the true difference, and write the tables of docs/statistics.md.

`PYTHONPATH=.:tests python -m support.coverage` writes them, in some minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtrit
from support.transfer_trials import EASE, LEVEL, NOISE, Design, simulate

from simmim_bench.leaderboard.tables import insert_table
from simmim_bench.uncertainty.interval import Side, Unit, difference, pooled_spread
from simmim_bench.uncertainty.power import smallest_difference
from simmim_bench.uncertainty.run_scores import RunScores, from_correct

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "statistics.md"
TRIALS = 4000
BOOTSTRAP_TRIALS, RESAMPLES = 1000, 500
SEEDS = (2, 3, 5, 10)
SEED_SDS = (0.0, 0.03, 0.1, 0.3)
GAP = 0.3
SHARED = 0.7


@dataclass(frozen=True)
class Cell:
    """One comparison to simulate.

    Attributes:
        paired: whether the interval pairs units.
        pooled: whether the variance of a unit is pooled over all rows of the design.
        method: whether the difference of the methods, rather than of the pretrainings at hand, is to be covered.
        fixed: whether the first row's units do not vary.
    """

    design: Design
    unit: Unit = "seed"
    paired: bool = False
    pooled: bool = False
    method: bool = False
    fixed: bool = False


@dataclass(frozen=True)
class Measured:
    """Percentage of intervals that contain the true difference, and their mean width in points.

    The old ones are of a single Student's quantile.
    """

    old_coverage: float
    old_width: float
    coverage: float
    width: float


def measure(cell: Cell, trials: int, seed: int = 0) -> Measured:
    """Simulate a cell."""
    sides = cell.design.sides(cell.unit)
    hits, widths = np.zeros(2), np.zeros(2)
    for correct, checkpoint, method in simulate(cell.design, trials, np.random.default_rng(seed)):
        truth = method if cell.method else checkpoint
        runs = from_correct(correct)
        spread = pooled_spread(runs, sides) if cell.pooled else None
        ours = Side(sides[0].units, sides[0].keys, cell.unit, varies=not cell.fixed)
        if cell.fixed:
            ours = Side(ours.units[:1], ours.keys[:1], cell.unit, varies=False)
        new = difference(runs, ours, sides[1], paired=cell.paired, spread=spread)
        low, high = _single_t(correct, ours, sides[1])
        hits += [low <= truth <= high, new.low <= truth <= new.high]
        widths += [high - low, new.high - new.low]
    coverage, width = 100 * hits / trials, widths / trials
    return Measured(float(coverage[0]), float(width[0]), float(coverage[1]), float(width[1]))


def _single_t(correct: np.ndarray, ours: Side, theirs: Side) -> tuple[float, float]:
    """Compute the interval of one Student's quantile for the sum of the variances over images and pairs of units."""
    pairs = range(min(len(ours.units), len(theirs.units)))
    gains = np.stack(
        [
            correct[list(ours.units[pair])].mean(0) - correct[list(theirs.units[pair])].mean(0)
            for pair in pairs
        ]
    )
    terms = [
        (gains.mean(axis).var(ddof=1) / count, count - 1)
        for axis, count in enumerate(gains.shape[::-1])
        if count > 1
    ]
    variance = sum(term for term, _ in terms)
    weight = sum(term**2 / freedom for term, freedom in terms)
    margin = 100 * stdtrit(variance**2 / weight, 0.975) * variance**0.5 if weight else 0.0
    points = 100 * gains.mean()
    return float(points - margin), float(points + margin)


def measure_bootstrap(cell: Cell, trials: int, seed: int = 0) -> tuple[float, float]:
    """Simulate a cell with percentile intervals of a hierarchical bootstrap: units, then images, both resampled.

    Returns:
        Coverage in percent and mean width in points.
    """
    generator = np.random.default_rng(seed + 1)
    sides = cell.design.sides(cell.unit)[:2]
    images = cell.design.images
    hits = width = 0.0
    for correct, truth, _ in simulate(cell.design, trials, np.random.default_rng(seed)):
        weights = generator.multinomial(images, np.full(images, 1 / images), RESAMPLES) / images
        scores = 100 * weights @ correct.T
        means = []
        for side in sides:
            count = len(side.units)
            by_unit = scores @ side.by_unit(len(correct)).T
            shares = generator.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
            means.append((by_unit * shares).sum(1))
        low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
        hits += low <= truth <= high
        width += high - low
    return 100 * hits / trials, width / trials


def power_of(design: Design, trials: int) -> float:
    """Simulate rows whose difference is the smallest one to be shown with a power of 80 %.

    Returns:
        Percentage of intervals that exclude 0.
    """
    ours, theirs = design.sides("seed")
    samples = [
        from_correct(correct)
        for correct, _, _ in simulate(design, trials, np.random.default_rng(0))
    ]
    weights = ours.weights(len(samples[0].scores)) - theirs.weights(len(samples[0].scores))
    spreads = [spread for runs in samples if (spread := pooled_spread(runs, (ours, theirs)))]
    points = smallest_difference(
        image_sd=float(np.mean([weights @ runs.covariance @ weights for runs in samples])) ** 0.5,
        unit_sd=float(np.mean([spread.variance for spread in spreads])) ** 0.5,
        noise_sd=float(np.mean([spread.noise for spread in spreads])) ** 0.5,
        units=design.seeds[0],
        images=design.images,
    )
    assert points is not None
    shift = points * (weights > 0)
    shown = [
        not difference(
            RunScores(runs.scores + shift, runs.covariance, runs.images), ours, theirs
        ).includes_zero
        for runs in samples
    ]
    return 100 * float(np.mean(shown))


def in_points(latent_sd: float) -> float:
    """Return a latent standard deviation of levels in percentage points of the score, to first order."""
    scale = (EASE**2 + Design((1, 1)).own_sd ** 2 + NOISE**2) ** 0.5
    return float(100 * latent_sd * np.exp(-((LEVEL / scale) ** 2) / 2) / (2 * np.pi) ** 0.5 / scale)


def seeds_cell(seeds: int, sd: float, *, paired: bool, gap: float = 0.0) -> Cell:
    """Return a comparison of one pretraining each."""
    shared = SHARED if paired else 0.0
    return Cell(
        Design((seeds, seeds), seed_sd=sd, pretraining_sd=0.1, gap=gap, shared=shared),
        paired=paired,
    )


def pretrainings_cell(pretrainings: int, sd: float, *, gap: float = 0.0) -> Cell:
    """Return a comparison of two methods with several pretrainings of two seeds each."""
    design = Design((2, 2), pretrainings, seed_sd=sd, pretraining_sd=0.1, gap=gap)
    return Cell(design, unit="pretraining", method=True)


OTHERS = {
    "one side without variation, 2 seeds of the other": Cell(
        Design((2, 2), seed_sd=(0.0, 0.1)), fixed=True
    ),
    "one side without variation, 3 seeds of the other": Cell(
        Design((3, 3), seed_sd=(0.0, 0.1)), fixed=True
    ),
    "2 and 5 seeds": Cell(Design((2, 5), seed_sd=0.1)),
    "3 and 10 seeds": Cell(Design((3, 10), seed_sd=0.1)),
    "3 and 3 seeds of unequal SD (0.03 and 0.3)": Cell(Design((3, 3), seed_sd=(0.03, 0.3))),
    "1 and 3 seeds, variance of the 3": Cell(Design((1, 3), seed_sd=0.1), pooled=True),
    "1 and 1 seed, variance pooled over 2 more rows of 3 seeds": Cell(
        Design((1, 1, 3, 3), seed_sd=0.0665, images=1500), pooled=True
    ),
    "1 and 1 seed, variance pooled over 6 more rows of 2 seeds": Cell(
        Design((1, 1, 2, 2, 2, 2, 2, 2), seed_sd=0.0665, images=1500), pooled=True
    ),
    "3 seeds, 40 images": Cell(Design((3, 3), seed_sd=0.1, images=40)),
    "3 seeds, 2000 images": Cell(Design((3, 3), seed_sd=0.03, images=2000)),
}
CLAIMS = {
    (seeds, sd): Cell(
        Design((seeds, seeds), seed_sd=0.03, pretraining_sd=sd, images=1000), method=True
    )
    for sd in (0.1, 0.3)
    for seeds in SEEDS
}
BOOTSTRAPPED = {seeds: seeds_cell(seeds, 0.1, paired=False) for seeds in SEEDS}


def tables() -> dict[str, str]:
    """Measure all tables of the document, by their names."""
    seeds = []
    for count in SEEDS:
        for sd in SEED_SDS:
            unpaired = measure(seeds_cell(count, sd, paired=False), TRIALS)
            paired = measure(seeds_cell(count, sd, paired=True), TRIALS)
            seeds.append([count, _sd(sd), *_numbers(unpaired), *_numbers(paired)])
    pretrainings = [
        [count, _sd(sd), *_numbers(measure(pretrainings_cell(count, sd), TRIALS))]
        for count in (2, 3, 5)
        for sd in SEED_SDS
    ]
    others = [[name, *_numbers(measure(cell, TRIALS))] for name, cell in OTHERS.items()]
    claims = [
        [_sd(sd), count, *_numbers(measure(cell, TRIALS))] for (count, sd), cell in CLAIMS.items()
    ]
    bootstrap = []
    for count, cell in BOOTSTRAPPED.items():
        resampled = measure_bootstrap(cell, BOOTSTRAP_TRIALS)
        new = measure(cell, BOOTSTRAP_TRIALS)
        bootstrap.append([count, *_pair(*resampled), *_pair(new.coverage, new.width)])
    both = ["single t", "width", "MOVER", "width"]
    return {
        "coverage of seeds": _table(
            ["seeds", "seed SD (points)", *both, *(f"{head}, paired" for head in both)], seeds
        ),
        "coverage of pretrainings": _table(
            ["pretrainings", "seed SD (points)", *both], pretrainings
        ),
        "coverage of other comparisons": _table(["comparison", *both], others),
        "coverage of claims": _table(["pretraining SD (points)", "seeds", *both], claims),
        "coverage of the bootstrap": _table(
            ["seeds", "bootstrap", "width", "MOVER", "width"], bootstrap
        ),
    }


def _sd(latent: float) -> str:
    return f"{latent:g} ({in_points(latent):.1f})"


def _pair(coverage: float, width: float) -> list[str]:
    return [f"{coverage:.1f} %", f"{width:.1f}"]


def _numbers(result: Measured) -> list[str]:
    return [
        *_pair(result.old_coverage, result.old_width),
        *_pair(result.coverage, result.width),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    """Write the tables into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, table in tables().items():
        text = insert_table(text, table, DOCUMENT, name)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
