"""Small pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# (title, path below docs/, Markdown)
Page = tuple[str, str, str]


def table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()
) -> str:
    """Return a table.

    Args:
        right: numbers of the columns that are aligned to the right, from 0.
    """
    rules = ["---:" if number in right else "---" for number in range(len(headings))]
    lines = [headings, rules, *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def escape(text: str) -> str:
    """Return a text of the code as Markdown shows it unchanged."""
    for sign in "*_<[":
        text = text.replace(sign, f"\\{sign}" if sign != "<" else "&lt;")
    return text
