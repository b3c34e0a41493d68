"""Write the leaderboard's tables and page, and the table in other documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.files import write_text
from simmim_bench.leaderboard.board import Board
from simmim_bench.leaderboard.page import to_html
from simmim_bench.leaderboard.page_data import page_data
from simmim_bench.leaderboard.reported import ReportedRow
from simmim_bench.leaderboard.tables import (
    reported_to_markdown,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
    with_table,
)


def tables(board: Board, out: Path, reported: Sequence[ReportedRow] = ()) -> dict[Path, str]:
    """Give the tables by the files they belong in."""
    markdown = to_markdown(board)
    if reported:
        markdown += "\n" + reported_to_markdown(reported)
    return {
        out / "LEADERBOARD.md": markdown,
        out / "leaderboard.csv": to_csv(board, reported),
        out / "leaderboard.json": to_json(board),
        out / "leaderboard.tex": to_latex(board),
    }


def documents(board: Board, paths: Iterable[Path]) -> dict[Path, str]:
    """Give documents with the table between their markers.

    Raises:
        DataError: a document is not there.
        UsageError: it has no markers.
    """
    texts = {}
    for path in paths:
        if not path.is_file():
            raise DataError(f"document {path} is not there.")
        texts[path] = with_table(path.read_text(encoding="utf-8"), to_markdown(board), path)
    return texts


def write_leaderboard(
    board: Board,
    out: Path,
    *,
    reported: Sequence[ReportedRow] = (),
    into: Iterable[Path] = (),
) -> None:
    """Write the tables and the page into a folder, and the table into documents with markers for it."""
    texts = tables(board, out, reported) | documents(board, into)
    texts[out / "leaderboard.html"] = to_html(page_data(board, reported))
    for path, text in texts.items():
        write_text(path, text)
