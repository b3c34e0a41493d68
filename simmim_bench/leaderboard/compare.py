"""Compare two rows of a board in every column that both have under the same protocol.

The first row is A and the second is B; a difference is A minus B, on the same images. `forest.py` prints and plots
the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from simmim_bench.errors import DataError, UsageError
from simmim_bench.leaderboard.board import Board
from simmim_bench.leaderboard.comparable import Table, comparable_tables, find_labels
from simmim_bench.leaderboard.rows import ScoreCell
from simmim_bench.uncertainty.interval import Difference
from simmim_bench.uncertainty.mover import LEVEL
from simmim_bench.uncertainty.multiple import holm

IMAGES_ALONE = "one seed: images alone"
NO_VARIANCE = "the difference is equal without any group of images: no interval"
Verdict = Literal["higher", "lower", "not distinguishable", "undecided"]


@dataclass(frozen=True)
class ColumnDifference:
    """The difference of two rows in one column.

    Attributes:
        table: name of the protocol group or of the table of named data sets.
        index: the column's index there.
        title: the column's heading.
        cells: of A and B.
        p_adjusted: the p-value, adjusted by Holm for the number of differences of the comparison; None if the
            variance over seeds is unknown.
    """

    table: str
    index: int
    title: str
    cells: tuple[ScoreCell, ScoreCell]
    difference: Difference
    p_adjusted: float | None = None

    @property
    def verdict(self) -> Verdict:
        """What the interval says about A; undecided if it is of the images alone and excludes 0."""
        if self.difference.includes_zero:
            return "not distinguishable"
        if self.difference.without_units:
            return "undecided"
        return "higher" if self.difference.points > 0 else "lower"

    @property
    def is_pooled(self) -> bool:
        """Whether the variance over seeds of a row with one seed was taken from other rows."""
        return not self.difference.without_units and any(c.is_unreplicated for c in self.cells)


@dataclass(frozen=True)
class Missing:
    """A column in which two rows cannot be compared, and why.

    Attributes:
        table, index, title: see `ColumnDifference`.
        of_both: whether both rows have a score there.
    """

    table: str
    index: int
    title: str
    reason: str
    of_both: bool = False


@dataclass(frozen=True)
class Comparison:
    """The differences of two rows, A minus B.

    Attributes:
        ours, theirs: the labels of A and B.
        random: whether A and B are of random weights, initialised anew for each seed.
    """

    ours: str
    theirs: str
    differences: tuple[ColumnDifference, ...]
    missing: tuple[Missing, ...]
    random: tuple[bool, bool] = (False, False)

    @property
    def claim(self) -> str:
        """Describe what the differences are about: methods, or checkpoints."""
        ours, theirs = (self._pretrainings(side) for side in (0, 1))
        if ours and theirs:
            return f"The differences are about the methods, over {ours} pretrainings of A and {theirs} of B."
        if not (ours or theirs or any(self.random)):
            return (
                "The differences are about these two checkpoints, not about the methods that pretrained them: "
                "another pretraining of the same method has other scores."
            )
        of_a, of_b = (
            f"the method of {name}, over {pretrainings} pretrainings"
            if pretrainings
            else f"the random weights of {name}, initialised anew for each seed"
            if random
            else f"this checkpoint of {name}, not about its method"
            for name, pretrainings, random in zip("AB", (ours, theirs), self.random, strict=True)
        )
        return f"The differences are about {of_a}, and about {of_b}."

    def _pretrainings(self, side: int) -> str:
        """Return the numbers of pretrainings of A or B that the intervals cover; empty if they cover none."""
        counts = [
            one.difference.units[side]
            for one in self.differences
            if one.cells[side].unit == "pretraining" and not one.difference.without_units
        ]
        return _range(counts) if counts else ""


def compare_rows(board: Board, a: str, b: str) -> Comparison:
    """Compare two rows in every column that both have under the same protocol.

    Args:
        a, b: names of rows; see `find_labels`.

    Raises:
        UsageError: a name is unknown or ambiguous, or both are of the same row.
        DataError: the rows cannot be compared in any column.
    """
    tables = comparable_tables(board)
    ours, theirs = find_labels(tables, board.records, a, b)
    if ours == theirs:
        raise UsageError(f"'{a}' and '{b}' are both '{ours}'; name two rows.")
    found = [one for table in tables for one in compare_in(table, ours, theirs)]
    differences = adjust([one for one in found if isinstance(one, ColumnDifference)])
    missing = [one for one in found if isinstance(one, Missing) and one.of_both]
    explained = {one.title for one in differences} | {one.title for one in missing}
    missing += _without_common_table(tables, ours, theirs, explained)
    if not differences:
        reasons = "\n       ".join(f"{one.title}: {one.reason}" for one in missing)
        raise DataError(
            f"A '{ours}' and B '{theirs}' cannot be compared in any column:\n       {reasons}"
        )
    random = [any(label in table.random for table in tables) for label in (ours, theirs)]
    return Comparison(ours, theirs, tuple(differences), tuple(missing), (random[0], random[1]))


def compare_in(table: Table, ours: str, theirs: str) -> Iterator[ColumnDifference | Missing]:
    """Compare two rows in every column of a table in which one of them has a score.

    Nothing is compared in a table without one of the rows.
    """
    if not (ours in table.rows and theirs in table.rows):
        return
    cells = zip(table.rows[ours].cells, table.rows[theirs].cells, strict=True)
    for index, (title, pair) in enumerate(zip(table.titles, cells, strict=True)):
        sample = table.samples[index] if index < len(table.samples) else None
        found = None if sample is None else sample.compare(ours, theirs)
        a, b = pair
        if found is not None and a is not None and b is not None:
            yield ColumnDifference(table.name, index, title, (a, b), found)
        elif a is not None or b is not None:
            of_both = a is not None and b is not None
            sampled = sample is not None and {ours, theirs} <= sample.sides.keys()
            reason = NO_VARIANCE if sampled else _reason(a, b)
            yield Missing(table.name, index, title, reason, of_both)


def adjust(differences: Sequence[ColumnDifference]) -> list[ColumnDifference]:
    """Adjust the p-values by Holm for the number of differences whose variance over seeds is known."""
    known = [d for d in differences if not d.difference.without_units]
    adjusted = iter(holm([d.difference.p_value for d in known]))
    return [
        d if d.difference.without_units else replace(d, p_adjusted=next(adjusted))
        for d in differences
    ]


def plain_comparison(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as plain JSON."""
    return {
        "a": comparison.ours,
        "b": comparison.theirs,
        "claim": comparison.claim,
        "level": LEVEL,
        "differences": [
            {
                "table": one.table,
                "column": one.title,
                **{name: _plain_score(c) for name, c in zip("ab", one.cells, strict=True)},
                "points": one.difference.points,
                "low": one.difference.low,
                "high": one.difference.high,
                "p_value": one.difference.p_value,
                "p_holm": one.p_adjusted,
                "images": one.difference.images,
                "units": list(one.difference.units),
                "images_alone": one.difference.without_units,
                "verdict": one.verdict,
            }
            for one in comparison.differences
        ],
        "not_compared": [
            {"table": one.table, "column": one.title, "reason": one.reason}
            for one in comparison.missing
        ],
    }


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _plain_score(cell: ScoreCell) -> dict[str, Any]:
    return {"score": cell.mean, "unit": cell.unit, "partial": cell.partial, "dirty": cell.dirty}


def _reason(a: ScoreCell | None, b: ScoreCell | None) -> str:
    """Explain why two rows of a table cannot be compared in a column in which one of them has a score."""
    if a is None or b is None:
        return f"only {'B' if a is None else 'A'} has a score"
    both = (("A", a), ("B", b))
    if partial := [name for name, cell in both if cell.partial]:
        return f"not every image was evaluated: {' and '.join(partial)}"
    if unread := [name for name, cell in both if cell.uncertainty is None]:
        return (
            f"no uncertainty of {' and '.join(unread)}: predictions or annotations are missing, damaged or of "
            "different images"
        )
    return "the scores are of other images"


def _without_common_table(
    tables: Sequence[Table], ours: str, theirs: str, explained: set[str]
) -> Iterator[Missing]:
    """Yield the columns in which one row has a score alone, or both have scores in different tables.

    Args:
        explained: titles of columns that are left out.
    """
    of_both = [_columns_of(tables, label) for label in (ours, theirs)]
    for title in dict.fromkeys([*of_both[0], *of_both[1]]):
        if title in explained:
            continue
        a, b = (columns.get(title) for columns in of_both)
        table, index = a or b or ("", 0)
        reason = (
            f"other protocols: row A in '{a[0]}', row B in '{b[0]}'"
            if a and b
            else f"only {'A' if a else 'B'} has a score"
        )
        yield Missing(table, index, title, reason)


def _columns_of(tables: Sequence[Table], label: str) -> dict[str, tuple[str, int]]:
    """Return the table and the index of every column in which a row has a score, by the column's title."""
    return {
        title: (table.name, index)
        for table in tables
        if label in table.rows
        for index, title in enumerate(table.titles)
        if table.rows[label].cells[index] is not None
    }
