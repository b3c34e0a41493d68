"""Which scores of a column can be distinguished: ranks, the best scores, and the mean rank over tasks.

Two scores are distinguishable if the 95 % interval of their difference excludes 0. Every comparison is made on its
own; `leaderboard compare` prints p-values that are adjusted for their number.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

from simmim_bench.leaderboard.rows import Row, ScoreCell
from simmim_bench.leaderboard.samples import ColumnSample
from simmim_bench.tasks import Column, find_variant

# Means that differ by less, in percentage points, differ by rounding errors.
EQUAL = 1e-9
# Whether one row's score is distinguishably higher than another's, by their numbers; None if that is unknown.
IsHigher = Callable[[int, int], bool | None]


def compare_by(sample: ColumnSample | None, rows: Sequence[Row]) -> IsHigher:
    """Return the comparison of rows in a column."""

    def is_higher(ours: int, theirs: int) -> bool | None:
        if sample is None:
            return None
        found = sample.compare(rows[ours].label, rows[theirs].label)
        return None if found is None or found.without_units else found.low > 0

    return is_higher


def rank_cells(cells: Sequence[ScoreCell | None], is_higher: IsHigher) -> list[ScoreCell | None]:
    """Rank the sound scores of a column, and mark those that cannot be distinguished from the best.

    A rank is 1 plus the number of scores that are distinguishably higher, but never better than that of a higher or
    equal score: an uncertain score has no better rank than a certain one of the same mean. It is unknown where a
    higher score cannot be compared.

    No score is marked as best if the highest one cannot be compared, or is of a single seed of a task that varies
    with the seed; and no score of a single seed is marked.

    Args:
        cells: of one column, one per row.
        is_higher: takes the numbers of two rows, the first with the higher mean.
    """
    sound = [i for i, cell in enumerate(cells) if cell is not None and cell.is_sound]
    means = {i: cell.mean for i in sound if (cell := cells[i]) is not None}
    ordered = sorted(sound, key=lambda i: -means[i])
    above = {
        (i, j): False if known is not None and means[i] - means[j] < EQUAL else known
        for i, j in combinations(ordered, 2)
        for known in (is_higher(i, j),)
    }
    compared = {i for pair, known in above.items() if known is not None for i in pair}
    ranks = _ranks(ordered, means, above, compared)
    best = _best(ordered, means, above, compared, {i for i in sound if _is_unreplicated(cells[i])})
    return [
        cell and replace(cell, rank=ranks.get(i), best=i in best) for i, cell in enumerate(cells)
    ]


def _ranks(
    ordered: Sequence[int],
    means: dict[int, float],
    above: dict[tuple[int, int], bool | None],
    compared: set[int],
) -> dict[int, int]:
    """Return the known ranks."""
    ranks: dict[int, int] = {}
    for position, i in enumerate(ordered):
        higher = [above[j, i] for j in ordered[:position] if means[j] - means[i] >= EQUAL]
        if i in compared and None not in higher:
            ranks[i] = max([1 + sum(map(bool, higher)), *ranks.values()])
    # An equal score that follows may have a greater rank.
    return {
        i: max(other for j, other in ranks.items() if abs(means[i] - means[j]) < EQUAL)
        for i in ranks
    }


def _best(
    ordered: Sequence[int],
    means: dict[int, float],
    above: dict[tuple[int, int], bool | None],
    compared: set[int],
    unreplicated: set[int],
) -> set[int]:
    """Return the scores that cannot be distinguished from the best, or from any of several equal ones."""
    highest = [i for i in ordered if means[ordered[0]] - means[i] < EQUAL]
    references = [i for i in highest if i in compared and i not in unreplicated]

    def is_best(i: int) -> bool:
        known = {
            above.get((j, i), above.get((i, j), False if i == j else None)) for j in references
        }
        return False in known and True not in known

    return {i for i in ordered if i not in unreplicated and is_best(i)}


def _is_unreplicated(cell: ScoreCell | None) -> bool:
    return cell is not None and cell.is_unreplicated


def rank_rows(rows: Sequence[Row], samples: Sequence[ColumnSample | None]) -> list[Row]:
    """Rank the scores of every column."""
    ranked = [
        rank_cells([row.cells[index] for row in rows], compare_by(sample, rows))
        for index, sample in enumerate(samples)
    ]
    by_row = zip(*ranked, strict=True)
    return [replace(row, cells=cells) for row, cells in zip(rows, by_row, strict=True)]


def sort_rows(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[list[Row], Column | None]:
    """Sort rows by the first column in which all sound rows have a score, unsound rows last.

    Where there is no such column, rows are sorted by the first one with the most scores. Extra columns, which most
    tables do not show, count only in a group that has no others.

    Returns:
        The rows, and the column that they are sorted by; None for a single row.
    """
    if len(rows) < 2:
        return list(rows), None
    sound = [row for row in rows if row.is_sound] or rows
    counts = [sum(row.cells[i] is not None for row in sound) for i in range(len(columns))]
    usable = [i for i, column in enumerate(columns) if column.extra is None and counts[i]]
    usable = usable or [i for i in range(len(columns)) if counts[i]]
    index = max(usable, key=lambda i: counts[i])  # the first of equal ones

    def key(row: Row) -> tuple[bool, float, str]:
        cell = row.cells[index]
        return not row.is_sound, math.inf if cell is None else -cell.mean, row.label

    return sorted(rows, key=key), columns[index]


def mean_ranks(
    rows: Sequence[Row], columns: Sequence[Column], samples: Sequence[ColumnSample | None]
) -> dict[str, float]:
    """Compute the mean rank of every sound row over the tasks, by its label.

    Ranked are the sound rows among themselves, in the columns in which all of them can be ranked. Every task has one
    vote, the mean rank in its columns. Ties share the mean of their ranks (Demsar 2006, JMLR 7, section 3.2.2).

    Returns:
        Nothing for fewer than two sound rows, or if they can be ranked in no column.
    """
    from scipy.stats import rankdata  # takes half a second to import

    sound = [row for row in rows if row.is_sound]
    if len(sound) < 2:
        return {}
    usable = [i for i in range(len(columns)) if all(row.cells[i] is not None for row in sound)]
    usable = [i for i in usable if columns[i].extra is None] or usable
    votes: dict[str, list[list[float]]] = {}
    for i in usable:
        ranked = rank_cells([row.cells[i] for row in sound], compare_by(samples[i], sound))
        ranks = [cell.rank for cell in ranked if cell is not None and cell.rank is not None]
        if len(ranks) == len(sound):
            votes.setdefault(_task_name(columns[i]), []).append(rankdata(ranks).tolist())
    if not votes:
        return {}
    by_task = [[statistics.fmean(r) for r in zip(*v, strict=True)] for v in votes.values()]
    means = [statistics.fmean(ranks) for ranks in zip(*by_task, strict=True)]
    return {row.label: mean for row, mean in zip(sound, means, strict=True)}


def _task_name(column: Column) -> str:
    """Return the task of a column: one for both fractions of few-shot learning, one for all sets of shift."""
    variant = find_variant(column.task)
    return variant.task.name if variant is not None else column.extra or column.task
