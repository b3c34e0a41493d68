"""Render the first group as a short Markdown table whose scores link to their records, for a README.

Rows that lack a score of some column, such as those of a scaling study, are only in the full table.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from simmim_bench.leaderboard.board import Board
from simmim_bench.leaderboard.rows import Row
from simmim_bench.leaderboard.text_tables import (
    TextRow,
    escape_block,
    explain_marks,
    markdown_table,
    text_rows,
)


def compact_table(board: Board, document: Path) -> str:
    """Return the complete rows of the board's first group as Markdown; empty without a group.

    The line of a method is not followed by those of its pretrainings, and columns without a score are left out.

    Args:
        document: the document that receives the table; links are relative to its folder.
    """
    if not board.groups:
        return ""
    rows = complete_rows(board.groups[0].rows)
    scored = [i for i in range(len(board.columns)) if any(row.cells[i] for row in rows)]
    rows = [_with_cells(row, scored) for row in rows]
    titles = [board.columns[i].title for i in scored]
    links = [[_links(cell.records, document) if cell else [] for cell in r.cells] for r in rows]
    texts = text_rows(rows)
    linked = [_linked(text, targets) for text, targets in zip(texts, links, strict=True)]
    notes = "\n\n".join(map(escape_block, explain_marks(rows)))
    return f"{markdown_table(titles, linked)}\n<details><summary>±, bold, *</summary>\n\n{notes}\n\n</details>"


def complete_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with a score in every column in which any row has one and which applies to the row's data."""
    used = [i for i in range(len(rows[0].cells)) if any(row.cells[i] is not None for row in rows)]
    return [row for row in rows if all(row.cells[i] or i in row.inapplicable for i in used)]


def _with_cells(row: Row, kept: Sequence[int]) -> Row:
    """Return a row with some of its cells, and without its pretrainings."""
    inapplicable = frozenset(number for number, i in enumerate(kept) if i in row.inapplicable)
    cells = tuple(row.cells[i] for i in kept)
    return replace(row, cells=cells, inapplicable=inapplicable, pretrainings=())


def _linked(row: TextRow, targets: Sequence[Sequence[str]]) -> TextRow:
    """Return a row whose scores are links to their record, or are followed by links to each of several."""
    cells = []
    for cell, links in zip(row.cells, targets, strict=True):
        lines = cell.lines
        if len(links) == 1:
            lines = (f"[{lines[0]}]({links[0]})", *lines[1:])
        elif links:
            numbered = (f"[{number}]({link})" for number, link in enumerate(links, 1))
            lines = (*lines, f"records {' '.join(numbered)}")
        cells.append(replace(cell, lines=lines))
    return replace(row, cells=tuple(cells))


def _links(records: Sequence[Path], document: Path) -> list[str]:
    """Return the addresses of records relative to a document."""
    folder = document.resolve().parent
    paths = (Path(os.path.relpath(record.resolve(), folder)) for record in records)
    return [quote(path.as_posix()) for path in paths]
