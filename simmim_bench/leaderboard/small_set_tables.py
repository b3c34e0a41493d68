"""Render the tables of named data sets as Markdown, CSV and LaTeX, and print them on a terminal."""

from __future__ import annotations

import csv
import io

from simmim_bench.leaderboard.board import Board, Row
from simmim_bench.leaderboard.small_sets import SmallSetTable, mean_cell, small_set_tables
from simmim_bench.leaderboard.tables import (
    MISSING,
    escape_csv,
    escape_latex,
    escape_markdown,
    explain_marks,
    table_console,
)
from simmim_bench.untrusted.text import visible, visible_lines

TITLE = "Named data sets"


def _texts(row: Row) -> list[str]:
    """Return the text of every cell of a row, the mean last."""
    cells = (*row.cells, mean_cell(row))
    return [MISSING if cell is None else str(cell) for cell in cells]


def small_sets_to_markdown(board: Board) -> str:
    """Return one Markdown table per task, metric and recipe; empty without named data sets."""
    parts = []
    tables = small_set_tables(board)
    for table in tables:
        heading = escape_markdown(f"{table.title} ({table.protocol})")
        best = table.best_rows()
        lines = [
            f"### {TITLE}: {heading}\n",
            "| checkpoint | " + " | ".join([*map(escape_markdown, table.data_sets), "mean"]) + " |",
            "| --- |" + " ---: |" * (len(table.data_sets) + 1),
        ]
        for row in table.rows:
            texts = [f"**{t}**" if best[i] is row else t for i, t in enumerate(_texts(row))]
            lines.append("| " + " | ".join([escape_markdown(row.label), *texts]) + " |")
        parts.append("\n".join(lines) + "\n")
    parts += [f"{note}\n" for note in explain_marks([row for t in tables for row in t.rows])]
    return "\n".join(parts)


def small_sets_to_csv(board: Board) -> str:
    """Return one line per checkpoint, task, recipe and data set, and one per mean, whose data set is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["task", "metric", "recipe", "checkpoint", "sha256", "data set", "score", "std", "seeds"]
    )
    for table in small_set_tables(board):
        described = [table.column.task, table.column.metric, escape_csv(table.protocol)]
        for row in table.rows:
            named = zip((*table.data_sets, ""), (*row.cells, mean_cell(row)), strict=True)
            for name, cell in named:
                if cell is None:
                    continue
                figures = [repr(cell.mean), "" if cell.std is None else repr(cell.std)]
                seeds = [len(cell.values) if name else ""]
                label = [escape_csv(row.label), row.checkpoint]
                writer.writerow([*described, *label, name, *figures, *seeds])
    return out.getvalue()


def small_sets_to_latex(board: Board) -> str:
    r"""Return one `tabular` per table, for \usepackage{booktabs}; empty without named data sets."""
    parts = []
    for table in small_set_tables(board):
        best = table.best_rows()
        heading = f"{TITLE}: {table.title} ({table.protocol})"
        lines = [
            f"% {visible(' '.join(heading.split()))}",
            r"\begin{tabular}{l" + "r" * (len(table.data_sets) + 1) + "}",
            r"\toprule",
            " & ".join(["checkpoint", *map(escape_latex, table.data_sets), "mean"]) + r" \\",
            r"\midrule",
        ]
        for row in table.rows:
            texts = [escape_latex(text) for text in _texts(row)]
            marked = [rf"\textbf{{{t}}}" if best[i] is row else t for i, t in enumerate(texts)]
            lines.append(" & ".join([escape_latex(row.label), *marked]) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n")
    return "\n".join(parts)


def print_small_sets(board: Board) -> None:
    """Print the tables on stdout."""
    console = table_console()
    for table in small_set_tables(board):
        console.print(_rich_table(table))


def _rich_table(table: SmallSetTable) -> object:
    from rich.markup import escape
    from rich.table import Table

    notes = escape(visible_lines(" ".join(explain_marks(table.rows)))) or None
    heading = f"{TITLE}: {table.title} ({table.protocol})"
    shown = Table(title=escape(visible(heading)), caption=notes, caption_justify="left")
    shown.add_column("checkpoint")
    for name in (*table.data_sets, "mean"):
        shown.add_column(escape(name), justify="right")
    best = table.best_rows()
    for row in table.rows:
        texts = [f"[bold]{t}[/]" if best[i] is row else t for i, t in enumerate(_texts(row))]
        shown.add_row(escape(visible(row.label)), *texts)
    return shown
