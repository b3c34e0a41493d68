"""Group records by protocol and rank the checkpoints of each group.

A `Board` has one row per checkpoint and one column per metric. Rows of one group follow the same protocols and
are ranked together; a checkpoint that was evaluated under several protocols of one task has a row in several
groups. Seeds are summarised by mean and standard deviation. Partial results, and results of code with
uncommitted changes, are shown but not ranked. `tables.py` and `page.py` render the board.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simmim_bench.files import sha256_json
from simmim_bench.leaderboard.reported import ReportedScore
from simmim_bench.leaderboard.samples import ColumnSample
from simmim_bench.results.record import Record
from simmim_bench.tasks import Column, columns
from simmim_bench.uncertainty.interval import Uncertainty

TaskProtocol = tuple[str, str]  # record name of a task, protocol id


@dataclass(frozen=True)
class ScoreCell:
    """One score and the records that it was computed from; a published score has no records.

    Attributes:
        values: percent, one per seed.
        deviates: some settings differ from the named recipe.
        partial: not every image of the split was evaluated.
        dirty: the code had uncommitted changes.
        published: the published score of this checkpoint under the same recipe; None if there is none.
        uncertainty: None where the predictions are missing or have no data by image.
        rank: rank in the column among comparable rows, shared by rows that cannot be distinguished; None if unsound.
        best: whether the score cannot be distinguished from the column's best.
    """

    values: tuple[float, ...]
    records: tuple[Path, ...] = ()
    deviates: bool = False
    partial: bool = False
    dirty: bool = False
    published: ReportedScore | None = None
    uncertainty: Uncertainty | None = None
    rank: int | None = None
    best: bool = False

    @property
    def mean(self) -> float:
        """Mean over seeds, in percent."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def is_rankable(self) -> bool:
        """Whether the score may be ranked."""
        return not (self.partial or self.dirty)

    @property
    def comparison(self) -> str | None:
        """Comparison with the published score, such as `published 83.8, here 83.5 (-0.3)`, if there is one."""
        if self.published is None:
            return None
        # Adding zero turns -0.0 into 0.0.
        difference = round(self.mean - self.published.value, 1) + 0.0
        return f"published {self.published.value:.1f}, here {self.mean:.1f} ({difference:+.1f})"

    def __str__(self) -> str:
        text = f"{self.mean:.1f}" if self.std is None else f"{self.mean:.1f} ± {self.std:.1f}"
        marks = {"*": self.deviates, "†": self.partial, "‡": self.dirty}
        return text + "".join(mark for mark, applies in marks.items() if applies)


@dataclass(frozen=True)
class Row:
    """One checkpoint with its cells, in the order of the board's columns.

    Attributes:
        rank: rank in the group, from 1; None for the only row of a group, and where a column that the group is
            ranked by has no rankable score.
        inapplicable: indices of columns whose task was run on data that cannot provide the metric, such as
            mask AP on a data set without masks.
        pretrainings: the rows of the single checkpoints, if this row is of a method pretrained with several seeds.
    """

    label: str
    checkpoint: str
    arch: str
    cells: tuple[ScoreCell | None, ...]
    rank: int | None = None
    inapplicable: frozenset[int] = frozenset()
    pretrainings: tuple[Row, ...] = ()

    @property
    def records(self) -> tuple[Path, ...]:
        """The records of all cells, without duplicates."""
        paths = (path for cell in self.cells if cell is not None for path in cell.records)
        return tuple(dict.fromkeys(paths))

    @property
    def is_partial(self) -> bool:
        """Whether any cell is partial."""
        return any(cell is not None and cell.partial for cell in self.cells)


def best_row(cells: Iterable[tuple[Row, ScoreCell | None]]) -> Row | None:
    """Return the row with the highest rankable mean of a column.

    Args:
        cells: rows with their cells in the column.

    Returns:
        None for fewer than two rankable scores, or if the two highest are equal as displayed.
    """
    rankable = [(cell.mean, row) for row, cell in cells if cell is not None and cell.is_rankable]
    rankable.sort(key=lambda pair: -pair[0])
    if len(rankable) < 2 or f"{rankable[0][0]:.1f}" == f"{rankable[1][0]:.1f}":
        return None
    return rankable[0][1]


@dataclass(frozen=True)
class ProtocolGroup:
    """Rows that follow the same protocols, the best first.

    Attributes:
        name: A, B, ...
        protocols: for every task, one record that follows the group's protocol.
        samples: for every column, how the rows' scores vary; None where fewer than two rows can be compared.
    """

    name: str
    protocols: Mapping[str, Record]
    rows: tuple[Row, ...]
    samples: tuple[ColumnSample | None, ...] = ()

    def best(self, index: int) -> Row | None:
        """Return the row with the highest rankable mean in a column.

        Returns:
            None for fewer than two rankable scores, or if the two highest are equal as displayed.
        """
        return best_row((row, row.cells[index]) for row in self.rows)

    def best_rows(self) -> list[Row | None]:
        """Return `best` of every column."""
        return [self.best(index) for index in range(len(self.rows[0].cells))]


@dataclass(frozen=True)
class Board:
    """All groups and the records that they were built from.

    Attributes:
        problems: one sentence for each damaged record.
        columns: of the cells of every row.
    """

    groups: tuple[ProtocolGroup, ...]
    records: Mapping[Path, Record] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    columns: tuple[Column, ...] = field(default_factory=columns)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all groups."""
        return tuple(row for group in self.groups for row in group.rows)


def protocol_id(record: Record) -> str:
    """Return the hash of everything that two comparable scores must share.

    Hashed are the recipe, its deviations, the fingerprints of the data, a listed split, the size of a sampled
    split of unequal classes, and of a score of shift the task that trained the classifier.
    """
    return sha256_json([record.recipe["sha256"], record.deviates, data_identity(record)])


def data_identity(record: Record) -> list[Any]:
    """Return what distinguishes the data of a record from other data, whatever their names are."""
    keys = ("train_fingerprint", "listed_split_sha256")
    data = [record.data["fingerprint"], *(record.data.get(key) for key in keys)]
    if "sampled_images" in record.data:
        data.append(record.data["sampled_images"])
    if "classifier" in record.data:
        data.append(record.data["classifier"])
    return data


def describe_recipe(record: Record) -> str:
    """Return the recipe of a record and its deviations, and of a score of shift the task of the classifier."""
    changed = ", ".join(f"{key}={value}" for key, value in record.deviates.items())
    recipe: str = record.recipe["name"] + (f" with {changed}" if changed else "")
    if "classifier" in record.data:
        recipe = f"classifier of {record.data['classifier']} by {recipe}"
    return recipe


def find_contradictions(records: Mapping[Path, Record]) -> dict[Path, str]:
    """Find the records of the same checkpoint, protocol and seed with different predictions.

    Returns:
        One sentence for each such record, by its path. None of them can be preferred.
    """
    paths_of: dict[tuple[object, ...], list[Path]] = {}
    for path, record in records.items():
        checkpoint = (record.checkpoint["label"], record.checkpoint["sha256"])
        name = record.data.get("name")
        run = (*checkpoint, record.task, name, protocol_id(record), record.seed)
        paths_of.setdefault(run, []).append(path)
    return {
        path: f"{path} and {paths[path == paths[0]]} have the same checkpoint, protocol and seed but different "
        "predictions; remove one of them, or pass other folders."
        for paths in paths_of.values()
        if len({records[path].predictions["sha256"] for path in paths}) > 1
        for path in paths
    }


def build_board(records: Mapping[Path, Record], problems: Sequence[str] = ()) -> Board:
    """Group the records by protocol, and build and rank the rows of each group.

    Records of named data sets have tables of their own (`small_sets.py`).

    Args:
        records: records by the path of their file.
        problems: one sentence for each damaged record.
    """
    # Records of `random:ARCH` share one row: every seed samples new weights, but all have the spec's hash.
    paths_of: dict[tuple[str, str], dict[TaskProtocol, list[Path]]] = {}
    example_of: dict[TaskProtocol, Record] = {}
    for path, record in records.items():
        if record.data.get("name") is not None:
            continue
        followed = (record.task, protocol_id(record))
        example_of.setdefault(followed, record)
        checkpoint = (record.checkpoint["label"], record.checkpoint["sha256"])
        paths_of.setdefault(checkpoint, {}).setdefault(followed, []).append(path)
    names = checkpoint_names(records)
    tasks = dict.fromkeys(column.task for column in columns())
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
        groups.append(ProtocolGroup(_group_name(len(groups)), examples, _rank(rows)))
    return Board(tuple(groups), records, tuple(problems))


def group_protocols(evaluated: Sequence[Sequence[TaskProtocol]]) -> list[dict[str, str]]:
    """Combine protocols into groups with at most one protocol per task.

    Checkpoints with a single protocol per task come first; each joins a fitting group or starts a new one.
    Checkpoints with several protocols of a task, such as random weights on two data sets, follow and have a row
    in several groups. A protocol belongs to one group only.

    Args:
        evaluated: the (task, protocol) pairs of every checkpoint.

    Returns:
        For every group, its protocols by task.
    """

    def most_protocols(pairs: Sequence[TaskProtocol]) -> int:
        tasks = [task for task, _ in pairs]
        return max(tasks.count(task) for task in tasks)

    groups: list[dict[str, str]] = []
    for pairs in sorted(evaluated, key=lambda pairs: (most_protocols(pairs), -len(pairs))):
        joined = [g for g in groups if any(g.get(task) == protocol for task, protocol in pairs)]
        for task, protocol in pairs:
            if any(group.get(task) == protocol for group in groups):
                continue
            group = next((g for g in joined if task not in g), None)
            if group is None:
                group = {}
                groups.append(group)
                joined.append(group)
            group[task] = protocol
    return groups


def checkpoint_names(records: Mapping[Path, Record]) -> dict[tuple[str, str], str]:
    """Return a name for every (label, hash); the hash is added where several checkpoints share a label."""
    described = (record.checkpoint for record in records.values())
    checkpoints = dict.fromkeys((one["label"], one["sha256"]) for one in described)
    labels = [label for label, _ in checkpoints]
    return {
        (label, sha256): label if labels.count(label) == 1 else f"{label} [{sha256[:8]}]"
        for label, sha256 in checkpoints
    }


def _group_name(number: int) -> str:
    """Return A to Z, AA, AB, ... for 0, 1, 2, ..."""
    head, tail = divmod(number, 26)
    return (_group_name(head - 1) if head else "") + chr(ord("A") + tail)


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


def build_cell(
    column: Column, paths: list[Path], records: Mapping[Path, Record]
) -> ScoreCell | None:
    """Summarise a column's records of one checkpoint; None if none of them has the metric."""
    by_seed: dict[int, Path] = {}
    for path in paths:
        if column.metric not in records[path].metrics:
            continue
        # A baseline may be evaluated along with each of several checkpoints; equal predictions count once.
        by_seed.setdefault(records[path].seed, path)
    if not by_seed:
        return None
    used = [records[path] for path in by_seed.values()]
    return ScoreCell(
        values=tuple(r.metrics[column.metric] for r in used),
        records=tuple(by_seed.values()),
        deviates=any(r.deviates for r in used),
        partial=any(r.status == "partial" for r in used),
        dirty=any(r.environment.get("dirty") for r in used),
    )


def _rank(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Sort rows by their mean over the columns that all rows have, and number the rankable rows.

    Extra columns, which most tables do not show, count only in a group that has no others.
    """
    shared = [i for i in range(len(columns())) if all(row.cells[i] is not None for row in rows)]
    shared = [i for i in shared if columns()[i].extra is None] or shared

    def shared_cells(row: Row) -> list[ScoreCell]:
        return [cell for i in shared if (cell := row.cells[i]) is not None]

    def is_unrankable(row: Row) -> bool:
        return not all(cell.is_rankable for cell in shared_cells(row))

    def mean(row: Row) -> float:
        return statistics.fmean([cell.mean for cell in shared_cells(row)] or [0.0])

    ordered = sorted(rows, key=lambda row: (is_unrankable(row), -mean(row), row.label))
    if len(rows) < 2 or not shared:
        return tuple(ordered)
    return tuple(
        row if is_unrankable(row) else replace(row, rank=rank)
        for rank, row in enumerate(ordered, 1)
    )


def select_columns(board: Board, extra: Collection[str] = ()) -> Board:
    """Return a board with the columns that a table shows.

    Rows, groups and protocols without a score in these columns are left out.

    Args:
        extra: names of extra columns to show; see `Column.extra`.
    """
    shown = [i for i, c in enumerate(board.columns) if c.extra is None or c.extra in extra]
    chosen = tuple(board.columns[i] for i in shown)
    groups = []
    for group in board.groups:
        rows = [
            replace(
                row,
                cells=tuple(row.cells[i] for i in shown),
                inapplicable=frozenset(k for k, i in enumerate(shown) if i in row.inapplicable),
            )
            for row in group.rows
        ]
        rows = [row for row in rows if row.records]
        tasks = {column.task for column in chosen}
        protocols = {task: r for task, r in group.protocols.items() if task in tasks}
        if rows:
            groups.append(replace(group, rows=tuple(rows), protocols=protocols))
    return replace(board, groups=tuple(groups), columns=chosen)
