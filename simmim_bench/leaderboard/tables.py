"""Render the leaderboard as Markdown, CSV, JSON and LaTeX, and print it on a terminal.

Every text is determined by the board alone, so that a check can render it again and compare it with a file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simmim_bench.errors import UsageError
from simmim_bench.leaderboard.board import Board, ProtocolGroup
from simmim_bench.leaderboard.group_names import data_name, describe_protocols, group_titles
from simmim_bench.leaderboard.protocols import protocol_id
from simmim_bench.leaderboard.reported import ReportedRow
from simmim_bench.leaderboard.rows import Row, ScoreCell, images_error, plain_score
from simmim_bench.leaderboard.small_set_tables import plain_tables
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
from simmim_bench.tasks import Column
from simmim_bench.untrusted.text import visible

PUBLISHED = "Published for the same recipe and checkpoint"


def describe_published(group: ProtocolGroup, shown: Sequence[Column]) -> list[str]:
    """Return one sentence for every score of a group that has a published counterpart.

    Args:
        shown: the columns of the group's cells.
    """
    return [
        f"{row.label}, {column.title}: {cell.comparison} ({cell.published.source})"
        for row in group.rows
        for column, cell in zip(shown, row.cells, strict=True)
        if cell is not None and cell.published is not None
    ]


def describe_group(group: ProtocolGroup) -> dict[str, dict[str, Any]]:
    """Return the protocol of every task of a group as plain JSON."""
    return {
        task: {
            "id": protocol_id(record)[:12],
            "recipe": record.recipe["name"],
            "source": record.recipe["source"],
            "deviates": record.deviates,
            "data": data_name(record),
            "fingerprint": record.data["fingerprint"],
            "images": record.expected,
            **{key: record.data[key] for key in ("classifier",) if key in record.data},
        }
        for task, record in group.protocols.items()
    }


def to_markdown(board: Board) -> str:
    """Return one Markdown table per group, with the best scores of every column in bold.

    Each table has the group's data sets as its heading, and its protocols above it. Published counterparts of a group's
    scores are listed below its table; footnotes and damaged records follow the tables.
    """
    titles = [*_leading_titles(board), *(column.title for column in board.columns)]
    parts = []
    names = group_titles(board)
    for group in board.groups:
        described = describe_protocols(group).items()
        lines = [f"- {escape_markdown(f'{titles}: {text}')}" for titles, text in described]
        heading = f"### Group {group.name}: {escape_markdown(names[group.name])}\n"
        parts.append("\n".join([heading, *lines]) + "\n")
        parts.append(markdown_table(titles, text_rows(group.rows, overall=board.overall)))
        if published := describe_published(group, board.columns):
            lines = [f"- {escape_markdown(line)}" for line in published]
            parts.append("\n".join([f"{PUBLISHED}:\n", *lines]) + "\n")
    parts += [f"{escape_block(footnote)}\n" for footnote in explain_board(board)]
    parts += [f"{escape_markdown(problem)}\n" for problem in board.problems]
    return "\n".join(parts)


def _leading_titles(board: Board) -> list[str]:
    return ["mean rank"] if board.overall else []


def explain_board(board: Board) -> list[str]:
    """Return the footnotes of a board's tables: of the marks, and of the order of the rows."""
    footnotes = explain_marks(board.rows)
    if any(len(group.rows) > 1 for group in board.groups):
        order = "Rows are sorted by the first column in which all of them have a score, rows with † or ‡ last"
        footnotes.append(order + ("." if board.overall else "; there is no rank over all tasks."))
    if board.overall:
        footnotes.append(
            "Mean rank: mean over the tasks, each with one vote, of the ranks of the rows without † and ‡ in the "
            "columns in which all of them can be compared. Scores of one rank count as the mean of their places: two "
            "that share the first one as 1.5."
        )
    return footnotes


def insert_table(document: str, table: str, path: Path, name: str = "leaderboard") -> str:
    """Insert a table between its markers in a document.

    Args:
        document: the text of the document.
        path: the document's path, for the error message.
        name: name in the markers, `<!-- NAME: begin -->` and `<!-- NAME: end -->`.

    Raises:
        UsageError: the document has no markers of that name.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, has_begin, rest = document.partition(begin)
    _, has_end, tail = rest.partition(end)
    if not (has_begin and has_end):
        raise UsageError(f"{path} has no markers for the table; add {begin} and {end}.")
    return f"{head}{begin}\n{table.strip()}\n{end}{tail}"


def to_csv(board: Board, reported: Sequence[ReportedRow] = ()) -> str:
    """Return the rows as CSV: means and standard deviations in full precision, empty where missing.

    A score is followed in the last columns by the published score of the same recipe and checkpoint, if there is
    one, its standard error from the finite number of images, and its rank in the column. `rank` is the mean rank over
    the tasks, where it was requested. The row of a method precedes those of its pretrainings, which name it as their
    `method`. Published rows come last; their group is `reported`, and `recipes` names the recipes with their protocols.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    titles = [f"{column.task}/{column.metric}" for column in board.columns]
    writer.writerow(
        [
            *("group", "rank", "checkpoint", "sha256", *titles),
            *(f"{title} std" for title in titles),
            *(f"{title} published" for title in titles),
            "recipes",
            *(f"{title} images ±" for title in titles),
            *(f"{title} rank" for title in titles),
            "method",
        ]
    )
    for group in board.groups:
        for row in group.rows:
            for one in (row, *row.pretrainings):
                method = "" if one is row else escape_csv(row.label)
                described = [group.name, _exact(one.mean_rank), escape_csv(one.label)]
                writer.writerow([*described, one.checkpoint, *_csv_cells(one), method])
    for model in reported:
        means = ["" if score is None else repr(score.value) for score in model.scores]
        empty = [""] * (2 * len(titles))
        recipes = " ".join(model.recipes)
        writer.writerow(["reported", "", model.label, "", *means, *empty, recipes, *empty, ""])
    return out.getvalue()


def _csv_cells(row: Row) -> list[str]:
    cells = row.cells
    return [
        *(_exact(None if cell is None else cell.mean) for cell in cells),
        *(_exact(None if cell is None else cell.std) for cell in cells),
        *(
            _exact(None if cell is None or cell.published is None else cell.published.value)
            for cell in cells
        ),
        "",
        *(_exact(None if cell is None else images_error(cell)) for cell in cells),
        *(_exact(None if cell is None else cell.rank) for cell in cells),
    ]


def _exact(value: float | None) -> str:
    """Return a number in full precision; empty if there is none."""
    return "" if value is None else repr(value)


def to_latex(board: Board) -> str:
    r"""Return one `tabular` per group, for \usepackage{booktabs}, with the best scores of every column in bold."""
    titles = [*_leading_titles(board), *(column.title for column in board.columns)]
    names = group_titles(board)
    parts = [
        f"% Group {group.name}: {visible(' '.join(names[group.name].split()))}\n"
        + latex_table(titles, text_rows(group.rows, overall=board.overall))
        for group in board.groups
    ]
    published = [
        f"{PUBLISHED}: {text}"
        for group in board.groups
        for text in describe_published(group, board.columns)
    ]
    comments = (*explain_board(board), *published, *board.problems)
    return "\n".join(parts) + "".join(f"% {visible(' '.join(text.split()))}\n" for text in comments)


def to_json(board: Board) -> str:
    """Return groups, rows and problems as JSON, without the content of the records."""
    titles = [f"{column.task}/{column.metric}" for column in board.columns]
    rows = [
        {"group": group.name, **_plain_row(row, titles)}
        for group in board.groups
        for row in group.rows
    ]
    groups = {group.name: describe_group(group) for group in board.groups}
    plain: dict[str, Any] = {"groups": groups, "rows": rows, "problems": list(board.problems)}
    if small_sets := plain_tables(board.small_sets):
        plain["small_sets"] = small_sets
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def _plain_row(row: Row, titles: Sequence[str]) -> dict[str, Any]:
    return {
        "rank": row.mean_rank,
        "label": row.label,
        "arch": row.arch,
        "checkpoint": row.checkpoint,
        "scores": {
            title: None if cell is None else _plain_cell(cell)
            for title, cell in zip(titles, row.cells, strict=True)
        },
        "pretrainings": [_plain_row(one, titles) for one in row.pretrainings],
    }


def _plain_cell(cell: ScoreCell) -> dict[str, Any]:
    return {**plain_score(cell), "published": plain_published(cell)}


def plain_published(cell: ScoreCell) -> dict[str, Any] | None:
    """Return a cell's published counterpart as plain JSON, with the difference from it in percentage points."""
    if cell.published is None:
        return None
    return {
        "value": cell.published.value,
        "difference": cell.mean - cell.published.value,
        "source": cell.published.source,
        "confidence": cell.published.confidence,
    }


def print_table(board: Board) -> None:
    """Print one table per group on stdout with its protocols, and the footnotes of all of them."""
    console = table_console()
    titles = [*_leading_titles(board), *(column.title for column in board.columns)]
    names = group_titles(board)
    for group in board.groups:
        title = f"Group {group.name}: {names[group.name]}"
        print_scores(console, titles, text_rows(group.rows, overall=board.overall), title)
        described = describe_protocols(group).items()
        print_footnotes(console, [f"{titled}: {protocol}" for titled, protocol in described])
        print_footnotes(console, describe_published(group, board.columns))
    print_footnotes(console, explain_board(board))
