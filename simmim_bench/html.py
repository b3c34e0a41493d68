"""HTML of small tables for notebooks, in which every text is escaped. Loads no torch."""

from __future__ import annotations

import html
from collections.abc import Sequence

from simmim_bench.untrusted.text import visible


def escape_html(text: str) -> str:
    """Return a text as HTML: one line, without characters that change how it is displayed."""
    return html.escape(visible(text))


def html_table(
    rows: Sequence[Sequence[str]], *, caption: str = "", bold: Sequence[tuple[int, int]] = ()
) -> str:
    """Return a table; a notebook's style sheet determines its look.

    Args:
        rows: texts of the cells, all rows of equal length; the first row has the column titles. Cells after the first
            column are numbers, which are aligned to the right, in tables of more than two columns. A line break
            separates the lines of a cell.
        caption: title above the table.
        bold: (row, column) of cells in bold, from 0; the row of titles is 0.
    """
    lines = [f"<caption>{escape_html(caption)}</caption>"] if caption else []
    for number, row in enumerate(rows):
        tag, cells = "td" if number else "th", []
        for column, text in enumerate(row):
            align = "right" if column and len(row) > 2 else "left"
            shown = "<br>".join(map(escape_html, text.split("\n")))
            shown = f"<b>{shown}</b>" if (number, column) in bold else shown
            cells.append(f'<{tag} style="text-align: {align}">{shown}</{tag}>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>\n{chr(10).join(lines)}\n</table>\n"
