"""The results of a study's completed steps: its records under the names of its rows, their board, and their cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.step import read_provenance
from simmim_bench.cli.studies.rows import StudyRow, StudySteps
from simmim_bench.errors import DataError
from simmim_bench.leaderboard.board import Board, build_board, select_columns
from simmim_bench.leaderboard.comparable import Table, comparable_tables
from simmim_bench.leaderboard.find import FoundRecords
from simmim_bench.leaderboard.rows import Row, ScoreCell
from simmim_bench.results.record import Record
from simmim_bench.untrusted.json_text import read_json


@dataclass(frozen=True)
class Cost:
    """Seconds of work, summed over the devices of a run, and the devices' name."""

    seconds: float
    device: str


@dataclass(frozen=True)
class StudyResults:
    """What the completed steps of a study have given.

    Attributes:
        rows: the study's rows.
        row_of: the name of the row of every record.
        board: the study's records, labelled by its rows.
        pretraining: mean cost of a pretraining of a row; rows without one are missing.
    """

    rows: tuple[StudyRow, ...]
    row_of: Mapping[Path, str]
    board: Board
    pretraining: Mapping[str, Cost]

    @property
    def tables(self) -> list[Table]:
        """The tables whose rows can be compared."""
        return comparable_tables(self.board)

    def row_name(self, row: Row) -> str:
        """Return the study's name of a row of the board."""
        return self.row_of[row.records[0]]

    def transfer_cost(self, cell: ScoreCell) -> Cost | None:
        """Return the mean cost of a run of a cell; None if its records do not have it."""
        records = [self.board.records[path] for path in cell.records]
        seconds = [_device_seconds(record) for record in records]
        known = [one for one in seconds if one is not None]
        if not known:
            return None
        return Cost(statistics.fmean(known), _join(map(_device, records)))


def collect_results(listed: StudySteps, found: FoundRecords) -> StudyResults:
    """Build the results of a study from the records below its folder; other records there are left out."""
    row_of_run = {
        run_dir / "record.json": row.name
        for row in listed.rows
        for member in row.members
        for step in listed.transfers
        if step.ckpt == member.ckpt
        for run_dir in step.run_dirs
    }
    records = {
        path: _relabelled(record, row_of_run[path])
        for path, record in found.records.items()
        if path in row_of_run
    }
    board = select_columns(build_board(records, found.problems))
    return StudyResults(
        rows=listed.rows,
        row_of={path: row_of_run[path] for path in records},
        board=_with_scores_alone(board),
        pretraining=_pretraining_costs(listed.rows),
    )


def _relabelled(record: Record, label: str) -> Record:
    return replace(record, checkpoint={**record.checkpoint, "label": label})


def _with_scores_alone(board: Board) -> Board:
    """Return a board without the columns in which no row has a score."""
    used = [
        index
        for index in range(len(board.columns))
        if any(row.cells[index] is not None for row in board.rows)
    ]

    def chosen(row: Row) -> Row:
        return replace(
            row,
            cells=tuple(row.cells[index] for index in used),
            inapplicable=frozenset(n for n, index in enumerate(used) if index in row.inapplicable),
            pretrainings=tuple(map(chosen, row.pretrainings)),
        )

    groups = [
        replace(
            group,
            rows=tuple(map(chosen, group.rows)),
            samples=tuple(group.samples[index] for index in used),
        )
        for group in board.groups
    ]
    columns = tuple(board.columns[index] for index in used)
    return replace(board, groups=tuple(groups), columns=columns)


def _pretraining_costs(rows: Sequence[StudyRow]) -> dict[str, Cost]:
    """Return the mean cost of the finished pretrainings of each row that has one."""
    costs = {}
    for row in rows:
        found = []
        for member in row.members:
            if member.pretraining is None:
                provenance, device = member.checkpoint.provenance, "unknown device"
            else:
                provenance = read_provenance(member.pretraining.out)
                device = _device_of_run(member.pretraining.out)
            seconds, devices = provenance.get("wall_time_s"), provenance.get("devices", 1)
            if isinstance(seconds, int | float) and isinstance(devices, int):
                found.append(Cost(float(seconds * devices), device))
        if found:
            mean = statistics.fmean(one.seconds for one in found)
            costs[row.name] = Cost(mean, _join(one.device for one in found))
    return costs


def _device_of_run(run_dir: Path) -> str:
    try:
        environment: dict[str, Any] = read_json(
            run_dir / "env.json", "environment of a run", finite=False
        )
    except DataError:
        return "unknown device"
    return str(environment.get("device", "unknown device"))


def _device(record: Record) -> str:
    return str(record.environment.get("device", "unknown device"))


def _device_seconds(record: Record) -> float | None:
    hours = record.cost.get("device_hours")
    return None if hours is None else float(hours) * 3600


def _join(names: Any) -> str:
    return ", ".join(dict.fromkeys(names))
