"""Compare a checkpoint with a baseline under one recipe: the difference of each metric with its 95 % interval.

Both are scored on the same images, and an image that is hard for one is hard for the other; the interval takes it
into account, see docs/statistics.md. It is about these checkpoints: another pretraining by the same method would have
another score, and how far off is unknown from a single one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simmim_bench.errors import DataError, UsageError
from simmim_bench.results.record import Record
from simmim_bench.results.row_runs import find_task, join_rows
from simmim_bench.results.scored_runs import ScoredRuns
from simmim_bench.uncertainty.interval import Difference, difference, is_estimable

MUST_AGREE = ("recipe", "data", "task", "deviates", "seed")  # fields of compared records
ABOUT = (
    "The interval is about this checkpoint, not about its method: that needs several pretrainings (pretrain --seed 1, "
    "2, 3), which `leaderboard build` summarises in one row."
)


def compare_runs(ours: ScoredRuns, theirs: ScoredRuns) -> dict[str, Difference]:
    """Compare the runs of two checkpoints, the first with the first and so on.

    Returns:
        The difference of each metric that has a column in the leaderboard, data by image, and a variance over images.

    Raises:
        UsageError: two runs differ in task, recipe, data or seed.
        DataError: predictions could not be read, or were scored on different images.
    """
    for record, (path, other) in zip(ours.records.values(), theirs.records.items(), strict=True):
        _check_comparable(record, other, path.parent)
    for one in (ours, theirs):
        if one.unknown:
            raise DataError(one.unknown)
    task = find_task(ours.first)
    assert task is not None
    metrics = dict.fromkeys(column.metric for column in task.columns)
    differences = {}
    for metric in metrics:
        if metric in ours.by_image and metric in theirs.by_image:
            scores = {**ours.by_image[metric], **theirs.by_image[metric]}
            runs, sides = join_rows([ours.runs, theirs.runs], scores)
            if is_estimable(runs, *sides):
                differences[metric] = difference(runs, *sides, paired=task.samples_images)
    return differences


def describe_difference(metric: str, found: Difference) -> str:
    """Return a difference with its interval as text."""
    seeds = found.units[0]
    of = " of the images alone" if found.without_units else ""
    over = f"{found.images:,} images" + (f" and {seeds} seeds" if seeds > 1 else "")
    more = "; one seed: --seeds 3 adds the variance of the seeds" if found.without_units else ""
    return (
        f"{found.points:+.2f} points of {metric}, 95 % interval{of} {found.low:+.2f} to {found.high:+.2f}, "
        f"over {over}{more}"
    )


def plain_difference(found: Difference) -> dict[str, Any]:
    """Return a difference as plain JSON."""
    names = ("points", "low", "high", "p_value", "images")
    return {
        **{name: getattr(found, name) for name in names},
        "seeds": found.units[0],
        "images_alone": found.without_units,
    }


def _check_comparable(record: Record, baseline: Record, path: Path) -> None:
    """Raise an error if a record cannot serve as a baseline.

    Args:
        path: the baseline's run directory.
    """
    differing = [name for name in MUST_AGREE if getattr(record, name) != getattr(baseline, name)]
    if differing:
        raise UsageError(
            f"{path} cannot serve as the baseline of this run: different {', '.join(differing)}; run the baseline "
            "with the same recipe, data and seed."
        )
