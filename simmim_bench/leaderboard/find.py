"""Find the records below some folders.

Every `record.json` is read and validated. A damaged record is reported, and the other records are still used.
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
    """Records by the path of their file.

    Attributes:
        problems: one sentence for each damaged record.
    """

    records: dict[Path, Record]
    problems: tuple[str, ...] = ()

    def board(self) -> Board:
        """Build the leaderboard of the records.

        Raises:
            DataError: two records of the same checkpoint, protocol and seed have different predictions.
        """
        return build_board(self.records, self.problems)


def find_records(roots: Iterable[Path]) -> FoundRecords:
    """Read every `record.json` below some folders, each file once.

    Raises:
        DataError: a folder does not exist, or no folder contains a record.
    """
    records: dict[Path, Record] = {}
    problems: list[str] = []
    visited: set[Path] = set()
    roots = list(roots)
    for root in roots:
        if not root.is_dir():
            raise DataError(
                f"results folder {root} does not exist; pass a folder that contains run directories."
            )
        for folder, subfolders, files in os.walk(root):
            # Hidden folders hold what is being written.
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            path = Path(folder, "record.json")
            # One root may contain another.
            if "record.json" not in files or path.resolve() in visited:
                continue
            visited.add(path.resolve())
            try:
                records[path] = read_record(path)
            except DataError as error:
                problems.append(str(error))
    if not (records or problems):
        raise DataError(f"no record.json below {', '.join(map(str, roots))}; run a transfer first.")
    return FoundRecords(records, tuple(problems))
