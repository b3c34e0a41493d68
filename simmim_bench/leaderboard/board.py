"""Group records by protocol, and build the rows of each group.

A `Board` has one row per checkpoint or method, and one column per metric. Rows of one group follow the same protocols
and are compared with each other; a checkpoint that was evaluated under several protocols of one task has a row in
several groups. Partial results, and results of code with uncommitted changes, are shown but not ranked. `rows.py` has
the scores, `samples.py` their uncertainty, `ranking.py` their ranks; `tables.py` and `page.py` render the board.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from simmim_bench.leaderboard.protocols import (
    TaskProtocol,
    checkpoint_key,
    checkpoint_names,
    group_name,
    group_protocols,
    protocol_id,
)
from simmim_bench.leaderboard.ranking import mean_ranks, rank_rows, sort_rows
from simmim_bench.leaderboard.rows import Row, build_cell, merge_pretrainings
from simmim_bench.leaderboard.samples import ColumnSample, RunKey, add_samples, read_runs
from simmim_bench.leaderboard.small_sets import OWN_FOLDERS, SmallSetTable, build_tables
from simmim_bench.results.per_image import ImageScores
from simmim_bench.results.record import Record
from simmim_bench.tasks import Column, columns


@dataclass(frozen=True)
class ProtocolGroup:
    """Rows that follow the same protocols.

    Attributes:
        name: A, B, ...
        protocols: for every task, one record that follows the group's protocol.
        rows: in descending order of `sorted_by`, unsound rows last.
        samples: for every column, how the rows' scores vary; None where fewer than two rows can be compared.
        sorted_by: the first column in which all sound rows have a score; None for a single row.
    """

    name: str
    protocols: Mapping[str, Record]
    rows: tuple[Row, ...]
    # Arrays have no truth value, by which two boards could be compared.
    samples: tuple[ColumnSample | None, ...] = field(default=(), compare=False, repr=False)
    sorted_by: Column | None = None


@dataclass(frozen=True)
class Board:
    """All groups and the records that they were built from.

    Attributes:
        problems: one sentence for each damaged record.
        columns: of the cells of every row.
        small_sets: the tables of records with named data sets.
        overall: whether the rows have mean ranks over the tasks.
    """

    groups: tuple[ProtocolGroup, ...]
    records: Mapping[Path, Record] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    columns: tuple[Column, ...] = field(default_factory=columns)
    small_sets: tuple[SmallSetTable, ...] = ()
    overall: bool = False

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all groups."""
        return tuple(row for group in self.groups for row in group.rows)


def build_board(
    records: Mapping[Path, Record],
    problems: Sequence[str] = (),
    *,
    read_predictions: bool = True,
    overall: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Board:
    """Group the records by protocol, and build the rows of each group and the tables of named data sets.

    Args:
        records: records by the path of their file.
        problems: one sentence for each damaged record.
        read_predictions: whether to read the predictions of all records, without which there are no uncertainties,
            no ranks and no best scores.
        overall: whether to rank the rows of a group over all tasks.
        advance: called after the predictions of each record are read, such as for a progress bar.
    """
    shown = columns()
    runs: dict[RunKey, ImageScores] = {}
    unread: list[str] = []
    if read_predictions:
        runs, unread = read_runs(records, (*shown, OWN_FOLDERS), advance)
    groups = _build_groups(records, runs, shown)
    if overall:
        groups = [_with_mean_ranks(group, shown) for group in groups]
    tables = build_tables(records, runs)
    found = tuple(dict.fromkeys((*problems, *unread)))
    return Board(tuple(groups), records, found, shown, tuple(tables), overall)


def _build_groups(
    records: Mapping[Path, Record], runs: Mapping[RunKey, ImageScores], shown: Sequence[Column]
) -> list[ProtocolGroup]:
    """Build the groups of the records without named data sets."""
    # Records of `random:ARCH` share one row: every seed samples new weights, but all have the spec's hash.
    paths_of: dict[tuple[str, str], dict[TaskProtocol, list[Path]]] = {}
    example_of: dict[TaskProtocol, Record] = {}
    for path, record in records.items():
        if record.data.get("name") is not None:
            continue
        followed = (record.task, protocol_id(record))
        example = example_of.setdefault(followed, record)
        if "title" in record.data and "title" not in example.data:
            example_of[followed] = record  # not every run was given what tables call the data
        paths_of.setdefault(checkpoint_key(record), {}).setdefault(followed, []).append(path)
    names = checkpoint_names(records)
    tasks = dict.fromkeys(column.task for column in shown)
    groups: list[ProtocolGroup] = []
    for protocols in group_protocols([[*paths] for paths in paths_of.values()]):
        rows = [
            _build_row(names[checkpoint], by_task, records)
            for checkpoint, paths in paths_of.items()
            if (by_task := {t: paths[t, p] for t, p in protocols.items() if (t, p) in paths})
        ]
        rows = [row for row in rows if row.records]  # others have no score with a column
        if not rows:
            continue
        examples = {task: example_of[task, protocols[task]] for task in tasks if task in protocols}
        rows, samples = add_samples(merge_pretrainings(rows, records), shown, records, runs)
        rows, sorted_by = sort_rows(rank_rows(rows, samples), shown)
        name = group_name(len(groups))
        groups.append(ProtocolGroup(name, examples, tuple(rows), samples, sorted_by))
    return groups


def _with_mean_ranks(group: ProtocolGroup, shown: Sequence[Column]) -> ProtocolGroup:
    ranks = mean_ranks(group.rows, shown, group.samples)
    return replace(
        group, rows=tuple(replace(row, mean_rank=ranks.get(row.label)) for row in group.rows)
    )


def _build_row(
    label: str, paths_by_task: Mapping[str, list[Path]], records: Mapping[Path, Record]
) -> Row:
    shown = columns()
    cells = tuple(build_cell(c, paths_by_task.get(c.task, []), records) for c in shown)
    first = records[next(iter(paths_by_task.values()))[0]]
    inapplicable = (i for i, c in enumerate(shown) if c.task in paths_by_task and cells[i] is None)
    return Row(
        label,
        first.checkpoint["sha256"],
        first.checkpoint["arch"],
        cells,
        inapplicable=frozenset(inapplicable),
    )


def select_columns(board: Board, extra: Collection[str] = ()) -> Board:
    """Return a board with the columns that a table shows.

    Rows, groups and protocols without a score in these columns are left out.

    Args:
        extra: names of extra columns to show; see `Column.extra`.
    """
    shown = [i for i, c in enumerate(board.columns) if c.extra is None or c.extra in extra]
    chosen = tuple(board.columns[i] for i in shown)
    tasks = {column.task for column in chosen}
    groups = []
    for group in board.groups:
        rows = _select_cells(group.rows, shown)
        if rows:
            groups.append(
                replace(
                    group,
                    rows=rows,
                    protocols={task: r for task, r in group.protocols.items() if task in tasks},
                    samples=tuple(group.samples[i] for i in shown),
                )
            )
    return replace(board, groups=tuple(groups), columns=chosen)


def _select_cells(rows: Sequence[Row], shown: Sequence[int]) -> tuple[Row, ...]:
    """Return the rows, and those of pretrainings, with some of their cells; rows without a score are left out."""
    selected = (
        replace(
            row,
            cells=tuple(row.cells[i] for i in shown),
            inapplicable=frozenset(k for k, i in enumerate(shown) if i in row.inapplicable),
            pretrainings=_select_cells(row.pretrainings, shown),
        )
        for row in rows
    )
    return tuple(row for row in selected if row.records)
