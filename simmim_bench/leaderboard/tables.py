"""The leaderboard as text: Markdown, CSV, JSON, LaTeX, and a table for a terminal.

In: a `Board`. Out: texts that follow from it alone, so that a check can compare them with what is on disk.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simmim_bench.errors import DataError, UsageError
from simmim_bench.leaderboard.board import Board, ProtocolGroup, Row, protocol_id
from simmim_bench.leaderboard.reported import ReportedRow
from simmim_bench.results.record import Record
from simmim_bench.tasks import columns

MISSING, INAPPLICABLE = "–", "n/a"
LATEX = {**{c: f"\\{c}" for c in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
LATEX |= {
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "–": "--",
}


def cell_texts(row: Row) -> list[str]:
    """Give what stands in a row's cells."""
    return [
        str(cell) if cell is not None else INAPPLICABLE if i in row.inapplicable else MISSING
        for i, cell in enumerate(row.cells)
    ]


def notes(rows: Sequence[Row]) -> list[str]:
    """Explain the marks that rows use."""
    cells = [cell for row in rows for cell in row.cells if cell is not None]
    explained = []
    if any(cell.deviates for cell in cells):
        explained.append("* differs from the named recipe; the record says in what.")
    if any(cell.partial for cell in cells):
        explained.append("† not every image of the split was evaluated; not ranked.")
    if any(cell.dirty for cell in cells):
        explained.append("‡ made with sources that were changed since their commit; not ranked.")
    if any(len(cell.values) > 1 for cell in cells):
        explained.append(
            "± is the standard deviation over seeds; a checkpoint is one training, whatever the seed of "
            "its transfers, while random weights are drawn anew by each."
        )
    return explained


def describe_protocol(record: Record) -> str:
    """Say in a few words what a score was measured by and on."""
    changed = ", ".join(f"{key}={value}" for key, value in record.deviates.items())
    by = record.recipe["name"] + (f" with {changed}" if changed else "")
    return (
        f"{by} on {Path(record.data['root']).name or record.data['root']}, {record.expected} images"
    )


def to_markdown(board: Board) -> str:
    """Give a table a group, the best of a column in bold; several groups with their protocols."""
    parts = []
    for group in board.groups:
        if len(board.groups) > 1:
            lines = [f"- {task}: {describe_protocol(r)}" for task, r in group.protocols.items()]
            parts.append(f"### Protocols {group.name}\n\n" + _plain("\n".join(lines)) + "\n")
        parts.append(_markdown_table(group.rows, [group.best(i) for i in range(len(columns()))]))
    parts += [f"{note}\n" for note in notes(board.rows)]
    parts += [f"{_plain(problem)}\n" for problem in board.problems]
    return "\n".join(parts)


def _markdown_table(rows: Sequence[Row], best: Sequence[Row | None]) -> str:
    lines = [
        "| checkpoint | " + " | ".join(column.title for column in columns()) + " |",
        "| --- |" + " ---: |" * len(columns()),
    ]
    for row in rows:
        texts = [f"**{t}**" if best[i] is row else t for i, t in enumerate(cell_texts(row))]
        lines.append("| " + " | ".join([_plain(row.label), *texts]) + " |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Take the meaning that Markdown and HTML would see out of a name."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`\[\]])", r"\\\1", text)


def to_csv(board: Board, reported: Sequence[ReportedRow] = ()) -> str:
    """Give the rows as CSV: means and deviations in full precision, an empty cell for a missing one.

    Published rows come last, with `reported` for their group.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    titles = [f"{c.task}/{c.metric}" for c in columns()]
    writer.writerow(
        ["group", "rank", "checkpoint", "sha256", *titles, *(f"{title} std" for title in titles)]
    )
    for group in board.groups:
        for row in group.rows:
            means = ["" if cell is None else repr(cell.mean) for cell in row.cells]
            stds = ["" if c is None or c.std is None else repr(c.std) for c in row.cells]
            writer.writerow([group.name, row.rank or "", row.label, row.checkpoint, *means, *stds])
    for published in reported:
        means = ["" if figure is None else repr(figure.value) for figure in published.figures]
        writer.writerow(["reported", "", published.label, "", *means, *[""] * len(columns())])
    return out.getvalue()


def to_latex(board: Board) -> str:
    r"""Give a `tabular` a group, for \usepackage{booktabs}; the best of a column in bold."""
    parts = []
    for group in board.groups:
        best = [group.best(i) for i in range(len(columns()))]
        lines = [
            r"\begin{tabular}{l" + "r" * len(columns()) + "}",
            r"\toprule",
            " & ".join(["checkpoint", *(_latex(column.title) for column in columns())]) + r" \\",
            r"\midrule",
        ]
        for row in group.rows:
            texts = [_latex(text) for text in cell_texts(row)]
            marked = [rf"\textbf{{{t}}}" if best[i] is row else t for i, t in enumerate(texts)]
            lines.append(" & ".join([_latex(row.label), *marked]) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n")
    said = [f"% {' '.join(text.split())}\n" for text in (*notes(board.rows), *board.problems)]
    return "\n".join(parts) + "".join(said)


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def to_json(board: Board) -> str:
    """Give the board's groups and rows as JSON: everything of the tables, without the records' content."""
    rows = [
        {
            "group": group.name,
            "rank": row.rank,
            "label": row.label,
            "arch": row.arch,
            "checkpoint": row.checkpoint,
            "scores": {
                f"{column.task}/{column.metric}": None
                if cell is None
                else {
                    "mean": cell.mean,
                    "std": cell.std,
                    "seeds": len(cell.values),
                    "deviates": cell.deviates,
                    "partial": cell.partial,
                    "dirty": cell.dirty,
                }
                for column, cell in zip(columns(), row.cells, strict=True)
            },
        }
        for group in board.groups
        for row in group.rows
    ]
    groups = {group.name: describe_group(group) for group in board.groups}
    plain = {"groups": groups, "rows": rows, "problems": list(board.problems)}
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def describe_group(group: ProtocolGroup) -> dict[str, dict[str, Any]]:
    """Give the protocol of every task of a group."""
    return {
        task: {
            "id": protocol_id(record)[:12],
            "recipe": record.recipe["name"],
            "source": record.recipe["source"],
            "deviates": record.deviates,
            "data": Path(record.data["root"]).name,
            "fingerprint": record.data["fingerprint"],
            "images": record.expected,
        }
        for task, record in group.protocols.items()
    }


def print_table(board: Board) -> None:
    """Print the groups on stdout, drawn for a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    # A pipe has no width of its own; a table cut in words would be of no use there.
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for group in board.groups:
        title = f"protocols {group.name}" if len(board.groups) > 1 else None
        table = Table(
            title=title, caption=" ".join(notes(group.rows)) or None, caption_justify="left"
        )
        table.add_column("checkpoint")
        for column in columns():
            table.add_column(column.title, justify="right")
        best = [group.best(i) for i in range(len(columns()))]
        for row in group.rows:
            texts = [
                f"[bold]{t}[/]" if best[i] is row else t for i, t in enumerate(cell_texts(row))
            ]
            table.add_row(escape(row.label), *texts)
        console.print(table)


def with_table(document: str, table: str, path: Path, name: str = "leaderboard") -> str:
    """Put a table between its markers in a document.

    Raises:
        UsageError: the document has no markers of that name.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, found, rest = document.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise UsageError(f"{path} has no place for the table; put {begin} and {end} into it.")
    return f"{head}{begin}\n{table.strip()}\n{end}{tail}"


def command_line(record: Record) -> str:
    """Give the command that makes a record again; empty where it is not known."""
    return shlex.join(record.command)


def reported_to_markdown(rows: Sequence[ReportedRow]) -> str:
    """Give published results as a table of their own, folded up."""
    sources: list[str] = []
    lines = [
        "| reported by others | " + " | ".join(c.title for c in columns()) + " | source |",
        "| --- |" + " ---: |" * len(columns()) + " --- |",
    ]
    for row in rows:
        cited = [figure.source for figure in row.figures if figure is not None]
        sources += [source for source in cited if source not in sources]
        numbers = sorted({sources.index(source) + 1 for source in cited})
        texts = [f"{f.value:.1f}" if f is not None else MISSING for f in row.figures]
        texts.append(", ".join(map(str, numbers)))
        lines.append("| " + " | ".join([_plain(row.label), *texts]) + " |")
    cited = [f"{number}. {_plain(source)}" for number, source in enumerate(sources, 1)]
    return (
        "<details><summary>Reported by others: read in the sources named below, computed again by nobody "
        "here, under protocols of their own.</summary>\n\n"
        + "\n".join(lines)
        + "\n\n"
        + "\n".join(cited)
        + "\n\n</details>\n"
    )


def changes_to_markdown(before: Mapping[str, Any], board: Board) -> str:
    """Say which cells of the leaderboard are others than before, as a pull request's comment.

    Args:
        before: the content of an earlier `leaderboard.json`.

    Raises:
        DataError: it has no rows of that kind.
    """
    try:
        old, new = _scores(before), _scores(json.loads(to_json(board)))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the earlier leaderboard is no leaderboard.json ({error}).") from error
    changed = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    if not changed:
        return "The leaderboard is as before.\n"
    lines = ["| checkpoint | score | recipe | before | now |", "| --- | --- | --- | ---: | ---: |"]
    for key in changed:
        label, _, score, recipe, _ = key
        was, now = (MISSING if t is None else t for t in (old.get(key), new.get(key)))
        lines.append(f"| {_plain(label)} | {score} | {_plain(recipe)} | {was} | {now} |")
    rows = len({key[:2] for key in changed})
    return f"The leaderboard has changed in {rows} rows.\n\n" + "\n".join(lines) + "\n"


def _scores(leaderboard: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
    """Give every score of a `leaderboard.json` by label, checkpoint, column, recipe and protocol."""
    found: dict[tuple[str, ...], str] = {}
    for row in leaderboard["rows"]:
        protocols = leaderboard["groups"][row["group"]]
        for column, score in row["scores"].items():
            if score is not None:
                protocol = protocols[column.partition("/")[0]]
                key = (row["label"], row["checkpoint"], column, protocol["recipe"], protocol["id"])
                spread = "" if score["std"] is None else f" ± {score['std']:.2f}"
                found[key] = f"{score['mean']:.2f}{spread} ({score['seeds']})"
    return found
