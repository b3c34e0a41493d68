"""Render the leaderboard as Markdown, CSV, JSON and LaTeX, and print it on a terminal.

Every text is determined by the board alone, so that a check can render it again and compare it with a file.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.errors import UsageError
from simmim_bench.leaderboard.board import (
    Board,
    ProtocolGroup,
    Row,
    ScoreCell,
    describe_recipe,
    protocol_id,
)
from simmim_bench.leaderboard.reported import ReportedRow
from simmim_bench.leaderboard.small_sets import plain_score, plain_tables
from simmim_bench.results.record import Record
from simmim_bench.tasks import Column
from simmim_bench.untrusted.text import visible, visible_lines

if TYPE_CHECKING:
    from rich.console import Console

MISSING, INAPPLICABLE = "–", "n/a"
PUBLISHED = "Published for the same recipe and checkpoint"
# Marks that begin or end emphasis: an asterisk next to other text, an underscore at the end of a word, two tildes.
EMPHASIS = re.compile(r"\*(?=\S)|(?<=\S)\*|(?<![^\W_])_|_(?![^\W_])|~(?=~)|(?<=~)~")
# What begins a heading, a list or a rule; of a numbered list, the number is not escaped but the dot.
BLOCK, NUMBERED = re.compile(r"^[#+=*-]"), re.compile(r"^(\d+)([.)])")
# GitHub Flavored Markdown, section 6.9: URLs without brackets; mentions and references to issues.
LINK = re.compile(
    r":(?=//)|\bwww(?=\.)|\b(?:mailto|xmpp):|(?<!\w)@(?=\w)|@(?=[\w-]+\.\w)|#(?=\d)", re.IGNORECASE
)
SPLIT = "&#8203;"  # a space without width
LATEX = {**{c: f"\\{c}" for c in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
LATEX |= {
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "–": "--",
}


def format_cells(row: Row) -> list[str]:
    """Return the text of every cell of a row, with `MISSING` or `INAPPLICABLE` for cells without a score."""
    return [
        str(cell) if cell is not None else INAPPLICABLE if i in row.inapplicable else MISSING
        for i, cell in enumerate(row.cells)
    ]


def explain_marks(rows: Sequence[Row]) -> list[str]:
    """Return one footnote for each of the marks *, †, ‡ and ± that some row uses."""
    cells = [cell for row in rows for cell in row.cells if cell is not None]
    footnotes = []
    if any(cell.deviates for cell in cells):
        footnotes.append("* Some settings differ from the named recipe; the record lists them.")
    if any(cell.partial for cell in cells):
        footnotes.append("† Partial: not every image of the split was evaluated. Not ranked.")
    if any(cell.dirty for cell in cells):
        footnotes.append("‡ The code had uncommitted changes. Not ranked.")
    if any(len(cell.values) > 1 for cell in cells):
        footnotes.append(
            "± is the standard deviation over transfer seeds. Each checkpoint comes from a single pretraining run; "
            "random weights are initialised anew for each seed."
        )
    return footnotes


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


def describe_protocol(record: Record) -> str:
    """Describe a record's protocol in a few words: recipe, deviations, data set and number of images."""
    data = Path(record.data["root"]).name or record.data["root"]
    return f"{describe_recipe(record)} on {data}, {record.expected} images"


def describe_group(group: ProtocolGroup) -> dict[str, dict[str, Any]]:
    """Return the protocol of every task of a group as plain JSON."""
    return {
        task: {
            "id": protocol_id(record)[:12],
            "recipe": record.recipe["name"],
            "source": record.recipe["source"],
            "deviates": record.deviates,
            "data": Path(record.data["root"]).name,
            "fingerprint": record.data["fingerprint"],
            "images": record.expected,
            **{key: record.data[key] for key in ("classifier",) if key in record.data},
        }
        for task, record in group.protocols.items()
    }


def to_markdown(board: Board) -> str:
    """Return one Markdown table per group, with the best score of every column in bold.

    Several groups are listed with their protocols. Published counterparts of a group's scores are listed below
    its table; footnotes and damaged records follow the tables.
    """
    parts = []
    for group in board.groups:
        if len(board.groups) > 1:
            described = {task: describe_protocol(r) for task, r in group.protocols.items()}
            lines = [f"- {escape_markdown(f'{task}: {text}')}" for task, text in described.items()]
            parts.append("\n".join([f"### Protocols {group.name}\n", *lines]) + "\n")
        parts.append(_markdown_table(group, board.columns))
        if published := describe_published(group, board.columns):
            lines = [f"- {escape_markdown(line)}" for line in published]
            parts.append("\n".join([f"{PUBLISHED}:\n", *lines]) + "\n")
    parts += [f"{footnote}\n" for footnote in explain_marks(board.rows)]
    parts += [f"{escape_markdown(problem)}\n" for problem in board.problems]
    return "\n".join(parts)


def _markdown_table(group: ProtocolGroup, shown: Sequence[Column]) -> str:
    best = group.best_rows()
    lines = [
        "| checkpoint | " + " | ".join(column.title for column in shown) + " |",
        "| --- |" + " ---: |" * len(shown),
    ]
    for row in group.rows:
        texts = [f"**{t}**" if best[i] is row else t for i, t in enumerate(format_cells(row))]
        lines.append("| " + " | ".join([escape_markdown(row.label), *texts]) + " |")
    return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """Escape what Markdown or HTML would interpret in a text, and what GitHub would turn into a link or a mention."""
    text = visible(text).strip()
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\|`\[\]])", r"\\\1", text)
    text = EMPHASIS.sub(r"\\\g<0>", text)
    text = NUMBERED.sub(r"\1\\\2", BLOCK.sub(r"\\\g<0>", text))
    return LINK.sub(f"\\g<0>{SPLIT}", text)


def reported_to_markdown(rows: Sequence[ReportedRow], shown: Sequence[Column]) -> str:
    """Return published results as a separate, collapsed Markdown table with recipes and numbered sources.

    Args:
        shown: the columns of the rows' scores.
    """
    sources: list[str] = []
    lines = [
        "| published | " + " | ".join(column.title for column in shown) + " | recipe | source |",
        "| --- |" + " ---: |" * len(shown) + " --- | --- |",
    ]
    for row in rows:
        cited = [score.source for score in row.scores if score is not None]
        sources += [source for source in cited if source not in sources]
        numbers = sorted({sources.index(source) + 1 for source in cited})
        texts = [f"{score.value:.1f}" if score is not None else MISSING for score in row.scores]
        texts += [", ".join(row.recipes) or MISSING, ", ".join(map(str, numbers))]
        lines.append("| " + " | ".join([escape_markdown(row.label), *texts]) + " |")
    references = [f"{number}. {escape_markdown(s)}" for number, s in enumerate(sources, 1)]
    return (
        "<details><summary>Published results, copied from the sources listed below. They were not reproduced "
        "here, and their protocols differ. A recipe is named where one follows the protocol.</summary>\n\n"
        + "\n".join(lines)
        + "\n\n"
        + "\n".join(references)
        + "\n\n</details>\n"
    )


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
    one. Published rows come last; their group is `reported`, and `recipes` names the recipes with their protocols.
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
        ]
    )
    for group in board.groups:
        for row in group.rows:
            means = ["" if cell is None else repr(cell.mean) for cell in row.cells]
            stds = ["" if c is None or c.std is None else repr(c.std) for c in row.cells]
            published = [
                "" if cell is None or cell.published is None else repr(cell.published.value)
                for cell in row.cells
            ]
            described = [group.name, row.rank or "", escape_csv(row.label), row.checkpoint]
            writer.writerow([*described, *means, *stds, *published, ""])
    for model in reported:
        means = ["" if score is None else repr(score.value) for score in model.scores]
        empty = [""] * (2 * len(titles))
        writer.writerow(["reported", "", model.label, "", *means, *empty, " ".join(model.recipes)])
    return out.getvalue()


def escape_csv(text: str) -> str:
    """Escape a text that a spreadsheet would run as a formula, as OWASP's "CSV Injection" recommends."""
    text = visible(text)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") and text.lstrip() else text


def to_latex(board: Board) -> str:
    r"""Return one `tabular` per group, for \usepackage{booktabs}, with the best of every column in bold."""
    shown = board.columns
    parts = []
    for group in board.groups:
        best = group.best_rows()
        lines = [
            r"\begin{tabular}{l" + "r" * len(shown) + "}",
            r"\toprule",
            " & ".join(["checkpoint", *(escape_latex(column.title) for column in shown)]) + r" \\",
            r"\midrule",
        ]
        for row in group.rows:
            texts = [escape_latex(text) for text in format_cells(row)]
            marked = [rf"\textbf{{{t}}}" if best[i] is row else t for i, t in enumerate(texts)]
            lines.append(" & ".join([escape_latex(row.label), *marked]) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n")
    published = [
        f"{PUBLISHED}: {p}" for group in board.groups for p in describe_published(group, shown)
    ]
    comments = (*explain_marks(board.rows), *published, *board.problems)
    return "\n".join(parts) + "".join(f"% {visible(' '.join(text.split()))}\n" for text in comments)


def escape_latex(text: str) -> str:
    """Escape what LaTeX would interpret in a text."""
    return "".join(LATEX.get(letter, letter) for letter in visible(text))


def to_json(board: Board) -> str:
    """Return groups, rows and problems as JSON, without the content of the records."""
    titles = [f"{column.task}/{column.metric}" for column in board.columns]
    rows = [
        {
            "group": group.name,
            "rank": row.rank,
            "label": row.label,
            "arch": row.arch,
            "checkpoint": row.checkpoint,
            "scores": {
                title: None if cell is None else _plain_cell(cell)
                for title, cell in zip(titles, row.cells, strict=True)
            },
        }
        for group in board.groups
        for row in group.rows
    ]
    groups = {group.name: describe_group(group) for group in board.groups}
    plain: dict[str, Any] = {"groups": groups, "rows": rows, "problems": list(board.problems)}
    if small_sets := plain_tables(board):
        plain["small_sets"] = small_sets
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


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


def table_console() -> Console:
    """Return a console for tables on stdout."""
    from rich.console import Console

    console = Console()
    # A pipe has no width, and rich would wrap the cells at 80 characters.
    return console if console.is_terminal else Console(width=160)


def print_table(board: Board) -> None:
    """Print one table per group on stdout."""
    from rich.markup import escape
    from rich.table import Table

    console = table_console()
    shown = board.columns
    for group in board.groups:
        title = f"protocols {group.name}" if len(board.groups) > 1 else None
        footnotes = "\n".join(
            filter(None, [" ".join(explain_marks(group.rows)), *describe_published(group, shown)])
        )
        table = Table(
            title=title, caption=escape(visible_lines(footnotes)) or None, caption_justify="left"
        )
        table.add_column("checkpoint")
        for column in shown:
            table.add_column(column.title, justify="right")
        best = group.best_rows()
        for row in group.rows:
            texts = [
                f"[bold]{t}[/]" if best[i] is row else t for i, t in enumerate(format_cells(row))
            ]
            table.add_row(escape(visible(row.label)), *texts)
        console.print(table)
