"""The parts that all text tables of scores have in common: cells, escaped names, layouts and footnotes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from simmim_bench.leaderboard.rows import Row, ScoreCell, with_pretrainings
from simmim_bench.results.score_text import DEVIATES, DIRTY, MEANINGS, PARTIAL
from simmim_bench.untrusted.text import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MISSING, INAPPLICABLE = "–", "n/a"
# Marks that begin or end emphasis: an asterisk next to other text, an underscore at the end of a word, two tildes.
EMPHASIS = re.compile(r"\*(?=\S)|(?<=\S)\*|(?<![^\W_])_|_(?![^\W_])|~(?=~)|(?<=~)~")
# What begins a heading, a list or a rule; of a numbered list, the number is not escaped but the dot.
BLOCK, NUMBERED = re.compile(r"^[#+=*-]"), re.compile(r"^(\d+)([.)])")
# GitHub Flavored Markdown, section 6.9: URLs without brackets; mentions and references to issues.
LINK = re.compile(
    r":(?=//)|\bwww(?=\.)|\b(?:mailto|xmpp):|(?<!\w)@(?=\w)|@(?=[\w-]+\.\w)|#(?=\d)", re.IGNORECASE
)
SPLIT = "&#8203;"  # a space without width
NO_BREAK = "&nbsp;"
LATEX = {**{c: f"\\{c}" for c in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
LATEX |= {
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "–": "--",
}


@dataclass(frozen=True)
class TextCell:
    """The text of a cell.

    Attributes:
        lines: the score with its marks, and its uncertainty.
        best: whether the score is in bold.
    """

    lines: tuple[str, ...]
    best: bool = False


@dataclass(frozen=True)
class TextRow:
    """The texts of a row; that of a pretraining is below the row of its method."""

    label: str
    cells: tuple[TextCell, ...]
    is_pretraining: bool = False


def text_rows(rows: Sequence[Row], *, overall: bool = False, means: bool = False) -> list[TextRow]:
    """Return the texts of rows, those of methods followed by the rows of their pretrainings.

    Args:
        overall: whether the mean rank precedes the scores.
        means: whether the mean over data sets follows the scores.
    """
    return [
        text
        for row in rows
        for text in (
            TextRow(row.label, _text_cells(row, overall, means)),
            *(
                TextRow(f"– seed {one.pretraining_seed}", _text_cells(one, overall, means), True)
                for one in row.pretrainings
            ),
        )
    ]


def _text_cells(row: Row, overall: bool, means: bool) -> tuple[TextCell, ...]:
    cells = [_text_cell(cell, i in row.inapplicable) for i, cell in enumerate(row.cells)]
    if overall:
        rank = MISSING if row.mean_rank is None else f"{row.mean_rank:.2f}"
        cells.insert(0, TextCell((rank,)))
    if means:
        cells.append(_text_cell(row.mean, False))
    return tuple(cells)


def _text_cell(cell: ScoreCell | None, inapplicable: bool) -> TextCell:
    if cell is None:
        return TextCell((INAPPLICABLE if inapplicable else MISSING,))
    return TextCell(cell.lines, cell.best)


def without_empty_columns(
    titles: Sequence[str], rows: Sequence[TextRow]
) -> tuple[list[str], list[TextRow]]:
    """Return titles and rows without the columns in which no row has a score."""
    kept = [i for i in range(len(titles)) if any(row.cells[i].lines[0] != MISSING for row in rows)]
    shown = [replace(row, cells=tuple(row.cells[i] for i in kept)) for row in rows]
    return [titles[i] for i in kept], shown


def explain_marks(rows: Sequence[Row]) -> list[str]:
    """Return one footnote for each mark that some row uses: *, †, ‡, what follows ±, and bold."""
    shown = with_pretrainings(rows)
    cells = [cell for row in shown for cell in (*row.cells, row.mean) if cell is not None]
    footnotes = []
    used = {mark for cell in cells for mark in cell.marks}
    remarks = {
        DEVIATES: "; the record lists them.",
        PARTIAL: ". Not ranked.",
        DIRTY: ". Not ranked.",
    }
    footnotes += [f"{m} {MEANINGS[m]}{remark}" for m, remark in remarks.items() if m in used]
    if any(f" {DEVIATES}" in row.label for row in shown):
        footnotes.append(
            "* after a name: settings of the pretraining differ from the named recipe."
        )
    if any(cell.unit == "seed" and cell.std is not None for cell in cells):
        footnotes.append(
            "seeds ±: sample standard deviation over transfer seeds of one checkpoint; random weights are "
            "initialised anew for each seed."
        )
    if any(cell.unit == "pretraining" and cell.std is not None for cell in cells):
        footnotes.append(
            "pretrainings ±: sample standard deviation over checkpoints of one method with different pretraining "
            "seeds, each the mean over its transfer seeds."
        )
    if any(cell.uncertainty is not None and cell.uncertainty.images is not None for cell in cells):
        footnotes.append("images ±: standard error from the finite number of images.")
    if any(cell.best for cell in cells):
        footnotes.append(
            "Bold: not distinguishable from the best score of the column, because the 95 % interval of their "
            "difference includes 0. Each comparison is made on its own, without adjustment for their number. It is "
            "about these checkpoints; only a row of several pretrainings is about a method."
        )
    if len(rows) > 1 and any(cell.is_unreplicated and cell.is_sound for cell in cells):
        footnotes.append(
            "A score of a single seed is never bold, because another seed may give another score; where it is the "
            "highest of a column, no score is bold."
        )
    return footnotes


def escape_markdown(text: str) -> str:
    """Escape what Markdown or HTML would interpret in a text, and what GitHub would turn into a link or a mention."""
    text = visible(text).strip()
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\|`\[\]])", r"\\\1", text)
    text = EMPHASIS.sub(r"\\\g<0>", text)
    return LINK.sub(f"\\g<0>{SPLIT}", escape_block(text))


def escape_block(text: str) -> str:
    """Escape what Markdown would take for the beginning of a heading, a list or a rule."""
    return NUMBERED.sub(r"\1\\\2", BLOCK.sub(r"\\\g<0>", text))


def markdown_table(titles: Sequence[str], rows: Sequence[TextRow]) -> str:
    """Return a Markdown table of the columns in which some row has a score.

    Args:
        titles: of the columns after the checkpoint, as Markdown.
    """
    titles, rows = without_empty_columns(titles, rows)
    lines = ["| checkpoint | " + " | ".join(titles) + " |", "| --- |" + " ---: |" * len(titles)]
    for row in rows:
        texts = map(_markdown_cell, row.cells)
        lines.append("| " + " | ".join([escape_markdown(row.label), *texts]) + " |")
    return "\n".join(lines) + "\n"


def plain_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()
) -> str:
    """Return a Markdown table of cells that are Markdown themselves, in which a `|` is escaped.

    Args:
        right: the numbers of the columns, from 0, that are aligned to the right.
    """
    rules = ["---:" if number in right else "---" for number in range(len(titles))]
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [[*titles], rules, *cells])


def _markdown_cell(cell: TextCell) -> str:
    """Return the lines of a cell, those of the uncertainty small and unbroken: GitHub makes wide tables narrow."""
    score, *others = cell.lines
    first = f"**{score}**" if cell.best else score
    return "<br>".join([first, *(f"<sub>{text.replace(' ', NO_BREAK)}</sub>" for text in others)])


def escape_csv(text: str) -> str:
    """Escape a text that a spreadsheet would run as a formula, as OWASP's "CSV Injection" recommends."""
    text = visible(text)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") and text.lstrip() else text


def escape_latex(text: str) -> str:
    """Escape what LaTeX would interpret in a text."""
    return "".join(LATEX.get(letter, letter) for letter in visible(text))


def latex_table(titles: Sequence[str], rows: Sequence[TextRow]) -> str:
    r"""Return a `tabular` for \usepackage{booktabs}, of the columns in which some row has a score.

    Args:
        titles: of the columns after the checkpoint, not escaped.
    """
    titles, rows = without_empty_columns(titles, rows)
    lines = [
        r"\begin{tabular}{l" + "r" * len(titles) + "}",
        r"\toprule",
        " & ".join(["checkpoint", *map(escape_latex, titles)]) + r" \\",
        r"\midrule",
    ]
    for row in rows:
        label = escape_latex(row.label)
        texts = [rf"\quad {label}" if row.is_pretraining else label, *map(_latex_cell, row.cells)]
        lines.append(" & ".join(texts) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_cell(cell: TextCell) -> str:
    """Return the lines of a cell, several of them as a table of one column, which needs no package."""
    score, *others = map(escape_latex, cell.lines)
    first = rf"\textbf{{{score}}}" if cell.best else score
    if not others:
        return first
    lines = r" \\ ".join([first, *others])
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{lines}\end{{tabular}}"


def rich_table(titles: Sequence[str], rows: Sequence[TextRow]) -> Table:
    """Return a table for a terminal.

    Args:
        titles: of the columns after the checkpoint, not escaped.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        # Between rows of several lines.
        show_lines=any(len(cell.lines) > 1 for row in rows for cell in row.cells),
    )
    table.add_column("checkpoint", overflow="fold")
    for name in titles:
        table.add_column(escape(name), justify="right")
    for row in rows:
        texts = (
            "\n".join(
                (f"[bold]{cell.lines[0]}[/]" if cell.best else cell.lines[0], *cell.lines[1:])
            )
            for cell in row.cells
        )
        table.add_row(escape(visible(row.label)), *texts)
    return table


def print_scores(
    console: Console, titles: Sequence[str], rows: Sequence[TextRow], title: str | None
) -> None:
    """Print a title and a table without the columns in which no row has a score; on a narrow terminal, without the
    lines of ±.
    """
    from rich.text import Text

    if title is not None:  # a title of rich would be wrapped to the width of the table
        console.print(Text(visible(title), style="bold"))
    titles, rows = without_empty_columns(titles, rows)
    table = rich_table(titles, rows)
    unlimited = console.options.update(max_width=1000)
    if console.measure(table, options=unlimited).minimum <= console.width:
        console.print(table)
        return
    scores = [
        replace(row, cells=tuple(replace(cell, lines=cell.lines[:1]) for cell in row.cells))
        for row in rows
    ]
    console.print(rich_table(titles, scores))
    print_footnotes(console, ["A wider terminal shows what follows ±."])


def print_footnotes(console: Console, footnotes: Sequence[str]) -> None:
    """Print the footnotes of tables."""
    from rich.markup import escape

    for footnote in footnotes:
        console.print(escape(visible(footnote)), style="dim", highlight=False)


def table_console() -> Console:
    """Return a console for tables on stdout."""
    from rich.console import Console

    console = Console()
    # A pipe has no width, and rich would wrap the cells at 80 characters.
    return console if console.is_terminal else Console(width=160)
