"""The leaderboard: tables and a page derived from records, never typed by hand.

In: folders with `record.json` files below them. Out: LEADERBOARD.md, leaderboard.csv, .json, .tex and .html, and a
table between the markers of other documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.leaderboard.board import Board, build_board
from simmim_bench.results.record import Record, read_record


@dataclass(frozen=True)
class FoundRecords:
    """The records below some folders, and a sentence for every one that is damaged."""

    records: dict[Path, Record]
    problems: tuple[str, ...] = ()

    def board(self) -> Board:
        """Derive the rows."""
        return build_board(self.records, self.problems)


def find_records(roots: Iterable[Path]) -> FoundRecords:
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
    return FoundRecords(found, tuple(problems))
