"""Compute the differences of pairs of rows that the HTML page shows as a forest plot.

The page has no statistics of its own: every pair that a reader may choose is computed here. The number of pairs is
bounded, because it grows with the square of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simmim_bench.leaderboard.board import Board
from simmim_bench.leaderboard.comparable import Table, group_table
from simmim_bench.leaderboard.compare import (
    ColumnDifference,
    Comparison,
    Missing,
    adjust,
    compare_in,
)

MAX_PAIRS = 500  # of a group; 32 rows have 496


def plain_comparisons(board: Board, row_ids: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """Return the differences between the rows of every group of at least two.

    Args:
        row_ids: the id of each row on the page, by the name of its group and its label.

    Returns:
        `texts`, to which the pairs refer by index; `groups`; and `shown`, the position of the group and of the two
        rows that the page compares first, or None. A group has its `name`, the ids and `scores` of its `rows`, the
        number `compared` of first rows that are compared with all others, and `pairs`: by the positions `i-j` of two
        rows, i < j, the index of the claim, the differences, and a column and the index of the reason for what
        cannot be compared. A and B in the texts are rows i and j.
    """
    texts: dict[str, int] = {}
    groups = []
    for group in board.groups:
        labels = [row.label for row in group.rows]
        if len(labels) < 2:
            continue
        table = group_table(board, group)
        all_pairs = len(labels) * (len(labels) - 1) // 2
        compared = len(labels) if all_pairs <= MAX_PAIRS else max(1, MAX_PAIRS // len(labels))
        pairs = {
            f"{i}-{j}": _plain_pair(table, labels[i], labels[j], texts)
            for i in range(compared)
            for j in range(i + 1, len(labels))
        }
        rows = [row_ids[group.name, label] for label in labels]
        scores = [[cell and cell.lines[0] for cell in row.cells] for row in group.rows]
        groups.append(
            {
                "name": group.name,
                "rows": rows,
                "scores": scores,
                "compared": compared,
                "pairs": pairs,
            }
        )
    return {"texts": list(texts), "groups": groups, "shown": _first_pair(groups)}


def _plain_pair(table: Table, ours: str, theirs: str, texts: dict[str, int]) -> list[Any]:
    found = list(compare_in(table, ours, theirs))
    differences = adjust([one for one in found if isinstance(one, ColumnDifference)])
    missing = [one for one in found if isinstance(one, Missing)]
    random = (ours in table.random, theirs in table.random)
    comparison = Comparison(ours, theirs, tuple(differences), tuple(missing), random)

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    return [
        number(comparison.claim),
        [_plain_difference(one) for one in differences],
        [[one.index, number(one.reason)] for one in missing],
    ]


def _plain_difference(one: ColumnDifference) -> list[float | str | None]:
    """Return the column, difference, low, high, p, Holm's p, images, units of A and of B, for each 1 if these are
    pretrainings, and 1 if the interval is of the images alone.
    """
    found = one.difference
    return [
        one.index,
        *(round(value, 3) for value in (found.points, found.low, found.high)),
        *(None if p is None else float(f"{p:.3g}") for p in (found.p_value, one.p_adjusted)),
        found.images,
        *found.units,
        *(int(cell.unit == "pretraining") for cell in one.cells),
        int(found.without_units),
    ]


def _first_pair(groups: Sequence[Mapping[str, Any]]) -> tuple[int, int, int] | None:
    """Return the positions of the first group with a difference, and of the two rows."""
    for number, group in enumerate(groups):
        for pair, (_, differences, _) in group["pairs"].items():
            if differences:
                i, j = map(int, pair.split("-"))
                return number, i, j
    return None
