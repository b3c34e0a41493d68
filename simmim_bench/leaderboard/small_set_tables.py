"""Render the tables of named data sets as Markdown, CSV, JSON and LaTeX, and print them on a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from simmim_bench.leaderboard.board import Board
from simmim_bench.leaderboard.rows import Row, images_error, plain_score, with_pretrainings
from simmim_bench.leaderboard.small_sets import SmallSetTable
from simmim_bench.leaderboard.text_tables import (
    escape_block,
    escape_csv,
    escape_markdown,
    explain_marks,
    latex_table,
    markdown_table,
    print_footnotes,
    print_scores,
    table_console,
    text_rows,
)
from simmim_bench.untrusted.text import visible


def _heading(table: SmallSetTable) -> str:
    return f"Named data sets: {table.title} ({table.protocol})"


def small_sets_to_markdown(board: Board) -> str:
    """Return one Markdown table per task, metric and recipe; empty without named data sets."""
    parts = []
    for table in board.small_sets:
        titles = [*map(escape_markdown, table.data_sets), "mean"]
        shown = markdown_table(titles, text_rows(table.rows, means=True))
        parts.append(f"### {escape_markdown(_heading(table))}\n\n{shown}")
    parts += [f"{escape_block(note)}\n" for note in _explain_all(board)]
    return "\n".join(parts)


def small_sets_to_csv(board: Board) -> str:
    """Return one line per checkpoint, task, recipe and data set, and one per mean, whose data set is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["task", "metric", "recipe", "checkpoint", "sha256", "data set", "score", "std", "seeds"]
    writer.writerow([*head, "images ±", "rank"])
    for table in board.small_sets:
        described = [table.column.task, table.column.metric, escape_csv(table.protocol)]
        for row in with_pretrainings(table.rows):
            named = zip((*table.data_sets, ""), (*row.cells, row.mean), strict=True)
            for name, cell in named:
                if cell is None:
                    continue
                figures = [repr(cell.mean), "" if cell.std is None else repr(cell.std)]
                seeds = [len(cell.values) if name else ""]
                images = images_error(cell)
                uncertainty = ["" if images is None else repr(images), cell.rank or ""]
                label = [escape_csv(row.label), row.checkpoint]
                writer.writerow([*described, *label, name, *figures, *seeds, *uncertainty])
    return out.getvalue()


def small_sets_to_latex(board: Board) -> str:
    r"""Return one `tabular` per table, for \usepackage{booktabs}; empty without named data sets."""
    parts = []
    for table in board.small_sets:
        heading = f"% {visible(' '.join(_heading(table).split()))}\n"
        shown = latex_table([*table.data_sets, "mean"], text_rows(table.rows, means=True))
        parts.append(heading + shown)
    return "\n".join(parts)


def print_small_sets(board: Board) -> None:
    """Print the tables on stdout."""
    console = table_console()
    for table in board.small_sets:
        rows = text_rows(table.rows, means=True)
        print_scores(console, [*table.data_sets, "mean"], rows, _heading(table))
    print_footnotes(console, _explain_all(board))


def _explain_all(board: Board) -> list[str]:
    return explain_marks([row for table in board.small_sets for row in table.rows])


def plain_tables(tables: Sequence[SmallSetTable]) -> list[dict[str, Any]]:
    """Return the tables as plain JSON."""
    return [
        {
            "task": table.column.task,
            "metric": table.column.metric,
            "recipe": table.example.recipe["name"],
            "recipe_sha256": table.example.recipe["sha256"],
            "deviates": table.example.deviates,
            **{
                key: table.example.data[key] for key in ("classifier",) if key in table.example.data
            },
            "data_sets": list(table.data_sets),
            "rows": [_plain_row(table, row) for row in table.rows],
        }
        for table in tables
    ]


def _plain_row(table: SmallSetTable, row: Row) -> dict[str, Any]:
    scores = zip(table.data_sets, row.cells, strict=True)
    return {
        "rank": None if row.mean is None else row.mean.rank,
        "label": row.label,
        "arch": row.arch,
        "checkpoint": row.checkpoint,
        "scores": {name: None if cell is None else plain_score(cell) for name, cell in scores},
        "mean": None if row.mean is None else row.mean.mean,
        "mean_score": None if row.mean is None else plain_score(row.mean),
        "pretrainings": [_plain_row(table, one) for one in row.pretrainings],
    }
