"""Find the records below some folders.

Every `record.json` is read and validated. A damaged record is reported, and the other records are still used. So is
a pair of records that contradict each other, neither of which is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.leaderboard.board import Board, build_board
from simmim_bench.leaderboard.protocols import find_contradictions
from simmim_bench.results.record import Record, read_record
from simmim_bench.untrusted.paths import check_below
from simmim_bench.untrusted.text import describe_error


@dataclass(frozen=True)
class FoundRecords:
    """Records by the path of their file.

    Attributes:
        problems: one sentence for each damaged record.
    """

    records: dict[Path, Record]
    problems: tuple[str, ...] = ()

    def board(self, *, overall: bool = False, advance: Callable[[], None] = lambda: None) -> Board:
        """Build the leaderboard of the records.

        Args:
            overall, advance: see `build_board`.
        """
        return build_board(self.records, self.problems, overall=overall, advance=advance)


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
            if "record.json" not in files:
                continue
            try:
                check_below(root, path, "record")
                if path.resolve() in visited:  # one root may contain another
                    continue
                visited.add(path.resolve())
                records[path] = read_record(path)
            except DataError as error:
                problems.append(str(error))
            except Exception as error:  # a record of others must not keep the rest from being read
                problems.append(f"record {path} cannot be read: {describe_error(error)}.")
    if not (records or problems):
        raise DataError(f"no record.json below {', '.join(map(str, roots))}; run a transfer first.")
    contradictions = find_contradictions(records)
    kept = {path: record for path, record in records.items() if path not in contradictions}
    return FoundRecords(kept, (*problems, *contradictions.values()))
