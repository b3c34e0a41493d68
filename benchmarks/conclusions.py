"""Fill the table of ablations/README.md that compares earlier conclusions with today's.

The columns on the left are written by hand: axis, cell, difference and conclusion of an earlier version. Those on the
right are generated: difference with its interval, adjusted p-value, conclusion.
"""

from __future__ import annotations

from collections.abc import Mapping

from simmim_bench.results.ablation import Ablation, CellResult
from simmim_bench.results.ablation_report import format_difference, format_p_value

HEADING = "| axis | cell | difference before"
WRITTEN = 4  # columns that are written by hand
SIGNIFICANCE = 0.05


def fill_conclusions(text: str, ablations: Mapping[str, Ablation]) -> str:
    """Fill the generated columns.

    Args:
        text: of the document.
        ablations: by the name of their folder.

    Raises:
        KeyError: a row of the table is of no ablation or cell.
    """
    before, heading, rest = text.partition(HEADING)
    head, ruler, *rows = (heading + rest).split("\n")
    end = next((i for i, row in enumerate(rows) if not row.startswith("|")), len(rows))
    filled = [_fill(row, ablations) for row in rows[:end]]
    return before + "\n".join([head, ruler, *filled, *rows[end:]])


def _fill(line: str, ablations: Mapping[str, Ablation]) -> str:
    written = [text.strip() for text in line.split("|")[1 : WRITTEN + 1]]
    cells = {row.name: row for row in ablations[written[0]].rows}
    cell = cells[written[1]]
    generated = [format_difference(cell), format_p_value(cell), conclude(cell)]
    return "| " + " | ".join([*written, *generated]) + " |"


def conclude(cell: CellResult) -> str:
    """Return what the difference of a cell to the recipe's own shows."""
    if cell.above is None or cell.images_alone or cell.above[1] <= 0 <= cell.above[2]:
        return "not shown"
    p_value = cell.adjusted_p_value
    sure = p_value is not None and p_value < SIGNIFICANCE
    return ("better" if cell.above[0] > 0 else "worse") + ("" if sure else ", not after Holm")
