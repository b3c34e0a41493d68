"""What the committed records of the study on small photographs show, as tables of docs/photographs.md.

Each complete row is compared with random weights of the same architecture, over the same images. Everything is computed
from the records and their predictions.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from simmim_bench.display import format_duration
from simmim_bench.leaderboard.board import Board, select_columns
from simmim_bench.leaderboard.compact import complete_rows
from simmim_bench.leaderboard.comparable import Table, group_table
from simmim_bench.leaderboard.compare import ColumnDifference, adjust, compare_in
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.forest import format_interval
from simmim_bench.leaderboard.rows import Row
from simmim_bench.leaderboard.text_tables import MISSING, escape_markdown, plain_table
from simmim_bench.results.record import Record

RECORDS = Path(__file__).resolve().parent / "records" / "photographs"
LEVEL = 0.05


def read_board() -> Board:
    """Return the board of the committed records, with the columns that every table has."""
    return select_columns(find_records([RECORDS]).board())


def differences(board: Board) -> str:
    """Return the table of differences from random weights of the same architecture, in percentage points."""
    group = board.groups[0]
    table = group_table(board, group)
    random = {row.arch: row.label for row in group.rows if row.label in table.random}
    rows = [row for row in complete_rows(group.rows) if row.label not in table.random]
    found = {row.label: _compare(table, row, random) for row in rows}
    adjusted = iter(adjust([one for of_row in found.values() for one in of_row]))
    found = {label: [next(adjusted) for _ in of_row] for label, of_row in found.items()}
    titles = list(dict.fromkeys(one.title for of_row in found.values() for one in of_row))
    lines = []
    for label, of_row in found.items():
        cells = {one.title: _format(one) for one in of_row}
        lines.append([escape_markdown(label), *(cells.get(title, MISSING) for title in titles)])
    return plain_table(["above random weights", *titles], lines, range(1, len(titles) + 1))


def _compare(table: Table, row: Row, random: dict[str, str]) -> list[ColumnDifference]:
    if row.arch not in random:
        return []
    compared = compare_in(table, row.label, random[row.arch])
    return [one for one in compared if isinstance(one, ColumnDifference)]


def _format(one: ColumnDifference) -> str:
    text = format_interval(one)
    if one.difference.without_units:
        return f"{text} *"
    return f"**{text}**" if one.p_adjusted is not None and one.p_adjusted < LEVEL else text


def costs(board: Board) -> str:
    """Return the table of the mean time of one pretraining and of one run of each task."""
    rows = complete_rows(board.groups[0].rows)
    tasks = list(dict.fromkeys(column.task for column in board.columns))
    tasks = [task for task in tasks if any(_records(board, row, task) for row in rows)]
    lines = []
    for row in rows:
        runs = [_seconds(record.wall_time_s for record in _records(board, row, t)) for t in tasks]
        pretraining = _seconds(_pretraining_seconds(board, row))
        lines.append([escape_markdown(row.label), pretraining, *runs])
    devices = {record.environment["device"] for record in board.records.values()}
    threads = {record.environment["threads"] for record in board.records.values()}
    if devices != {"cpu"} or threads != {1}:
        raise ValueError(f"the caption says one CPU thread, but records have {devices}, {threads}")
    titles = ["mean time of one run", "pretraining", *tasks]
    return plain_table(titles, lines, range(1, len(titles)))


def _records(board: Board, row: Row, task: str) -> list[Record]:
    return [board.records[p] for p in row.records if board.records[p].task == task]


def _pretraining_seconds(board: Board, row: Row) -> Iterator[float]:
    """Yield the time of the training of each of a row's checkpoints; none for random weights."""
    provenance = {
        record.checkpoint["sha256"]: record.checkpoint["provenance"]
        for record in (board.records[path] for path in row.records)
    }
    for one in provenance.values():
        if one.get("wall_time_s") is not None:
            yield one["wall_time_s"]


def _seconds(values: Iterator[float]) -> str:
    found = list(values)
    return format_duration(statistics.fmean(found)) if found else MISSING
