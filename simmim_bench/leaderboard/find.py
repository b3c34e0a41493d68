"""The leaderboard: tables and a page derived from records, never typed by hand.

In: folders with `record.json` files below them. Out: LEADERBOARD.md, leaderboard.csv, .json, .tex and .html, and a
table between the markers of other documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.files import write_text
from simmim_bench.leaderboard.board import Board, build_board
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
from simmim_bench.results.record import Record, read_record


@dataclass(frozen=True)
class Found:
    """The records below some folders, and a sentence for every one that is damaged."""

    records: dict[Path, Record]
    problems: tuple[str, ...] = ()

    def board(self) -> Board:
        """Derive the rows."""
        return build_board(self.records, self.problems)


def find_records(roots: Iterable[Path]) -> Found:
    """Read every `record.json` below some folders; damaged ones are named, and stop nobody.

    Raises:
        DataError: a folder is missing, or none holds a record.
    """
    found: dict[Path, Record] = {}
    problems: list[str] = []
    seen: set[Path] = set()
    roots = list(roots)
    for root in roots:
        if not root.is_dir():
            raise DataError(
                f"results folder {root} is not there; give a folder with run directories."
            )
        for folder, folders, files in os.walk(root):
            folders.sort()
            path = Path(folder, "record.json")
            if "record.json" not in files or path.resolve() in seen:  # roots may lie in one another
                continue
            seen.add(path.resolve())
            try:
                found[path] = read_record(path)
            except DataError as error:
                problems.append(str(error))
    if not (found or problems):
        raise DataError(f"no record.json below {', '.join(map(str, roots))}; run a transfer first.")
    return Found(found, tuple(problems))


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
