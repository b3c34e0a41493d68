"""The results of a study's completed steps: its records under the names of its rows, their board, and their cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.step import read_provenance
from simmim_bench.cli.studies.rows import Member, StudyRow, StudySteps
from simmim_bench.errors import DataError
from simmim_bench.leaderboard.board import Board, build_board, select_columns
from simmim_bench.leaderboard.comparable import Table, comparable_tables
from simmim_bench.leaderboard.find import FoundRecords
from simmim_bench.leaderboard.rows import Row, ScoreCell
from simmim_bench.results.record import Record, read_record
from simmim_bench.untrusted.json_text import read_json
from transfer.suite.step import SuiteStep


@dataclass(frozen=True)
class Cost:
    """Seconds of work, summed over the devices of a run.

    Attributes:
        device: name of the devices.
        beside_others: whether other steps ran on them at the same time, so that it took longer than alone.
    """

    seconds: float
    device: str
    beside_others: bool = False


@dataclass(frozen=True)
class StudyResults:
    """What the completed steps of a study have given.

    Attributes:
        rows: the study's rows.
        row_of: the name of the row of every record.
        board: the study's records, labelled by its rows.
        training: mean cost of a pretraining of a row, or of its training with labels; rows without one are missing.
    """

    rows: tuple[StudyRow, ...]
    row_of: Mapping[Path, str]
    board: Board
    training: Mapping[str, Cost]

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
        return _cost(statistics.fmean(known), *(record.environment for record in records))


def collect_results(listed: StudySteps, found: FoundRecords) -> StudyResults:
    """Build the results of a study from the records below its folder; other records there are left out."""
    row_of = {run_dir / "record.json": name for run_dir, name in listed.runs.items()}
    records = {
        path: _relabelled(record, row_of[path])
        for path, record in found.records.items()
        if path in row_of
    }
    board = select_columns(build_board(records, found.problems))
    return StudyResults(
        rows=listed.rows,
        row_of={path: row_of[path] for path in records},
        board=_with_scores_alone(board),
        training=_training_costs(listed.rows),
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


def _training_costs(rows: Sequence[StudyRow]) -> dict[str, Cost]:
    """Return the mean cost of the finished trainings of each row that has one."""
    costs = {}
    for row in rows:
        found = [cost for member in row.members if (cost := _training_cost(member)) is not None]
        if found:
            mean = statistics.fmean(one.seconds for one in found)
            beside = any(one.beside_others for one in found)
            costs[row.name] = Cost(mean, _join(one.device for one in found), beside)
    return costs


def _training_cost(member: Member) -> Cost | None:
    """Return the cost of the training that has made a checkpoint; None if it is unknown."""
    step = member.source
    if isinstance(step, SuiteStep):
        path = step.run_dirs[0] / "record.json"
        record = read_record(path) if path.is_file() else None
        seconds = None if record is None else _device_seconds(record)
        return None if record is None or seconds is None else _cost(seconds, record.environment)
    environment: dict[str, Any] = {}
    provenance = member.checkpoint.provenance
    if step is not None:
        provenance = read_provenance(step.out)
        with suppress(DataError):
            environment = read_json(step.out / "env.json", "environment of a run", finite=False)
    seconds, devices = provenance.get("wall_time_s"), provenance.get("devices", 1)
    if not isinstance(seconds, int | float) or not isinstance(devices, int):
        return None
    return _cost(float(seconds * devices), environment)


def _cost(seconds: float, *environments: Mapping[str, Any]) -> Cost:
    """Return a cost with what the environments of the runs say of the device."""
    devices = [str(one.get("device", "unknown device")) for one in environments]
    beside = any(bool(one.get("side_by_side")) for one in environments)
    return Cost(seconds, _join(devices), beside)


def _device_seconds(record: Record) -> float | None:
    hours = record.cost.get("device_hours")
    return None if hours is None else float(hours) * 3600


def _join(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
