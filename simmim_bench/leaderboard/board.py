"""From records to rows: what stands in the leaderboard, and beside what.

In: records. Out: a `Board`: groups of rows (a checkpoint each) by columns (a metric). Rows of a group follow
the same protocols and are ranked together; a checkpoint that was measured under other protocols too has
a row in another group. Several seeds of a cell become mean and standard deviation. What is partial, or made
with sources that were changed since their commit, is shown, and ranked by nobody. `tables.py` and `page.py` draw it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.files import sha256_json
from simmim_bench.results.record import Record
from simmim_bench.tasks import Column, columns


@dataclass(frozen=True)
class ScoreCell:
    """One score with the records behind it; a published one has none.

    Attributes:
        values: percent, one a seed.
        deviates: the protocol differs from the recipe that it is named by.
        partial: not every image of the split was scored.
        dirty: made with sources that had been changed since their commit.
    """

    values: tuple[float, ...]
    records: tuple[Path, ...] = ()
    deviates: bool = False
    partial: bool = False
    dirty: bool = False

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def is_sound(self) -> bool:
        """Whether the cell may be ranked."""
        return not (self.partial or self.dirty)

    def __str__(self) -> str:
        text = f"{self.mean:.1f}" if self.std is None else f"{self.mean:.1f} ± {self.std:.1f}"
        marks = {"*": self.deviates, "†": self.partial, "‡": self.dirty}
        return text + "".join(mark for mark, given in marks.items() if given)


@dataclass(frozen=True)
class Row:
    """One checkpoint with its cells, in the order of `simmim_bench.tasks.columns()`.

    Attributes:
        rank: place in its group, from 1; None for the only row of a group, and where a cell that the group is
            ranked by is missing, partial or dirty.
        inapplicable: columns whose task was done on data that cannot give the metric, such as boxes without
            masks.
    """

    label: str
    checkpoint: str
    arch: str
    cells: tuple[ScoreCell | None, ...]
    rank: int | None = None
    inapplicable: frozenset[int] = frozenset()

    @property
    def records(self) -> tuple[Path, ...]:
        """The records behind its cells, each once."""
        paths = (path for cell in self.cells if cell is not None for path in cell.records)
        return tuple(dict.fromkeys(paths))

    @property
    def is_partial(self) -> bool:
        """Whether a cell is."""
        return any(cell is not None and cell.partial for cell in self.cells)


@dataclass(frozen=True)
class ProtocolGroup:
    """Rows that follow the same protocols, the best first.

    Attributes:
        name: A, B, ...
        protocols: of every task, a record that follows its protocol.
    """

    name: str
    protocols: Mapping[str, Record]
    rows: tuple[Row, ...]

    def best(self, index: int) -> Row | None:
        """Give the row with the highest mean in a column; None where none is higher as it is shown."""
        sound = [
            (cell.mean, row)
            for row in self.rows
            if (cell := row.cells[index]) is not None and cell.is_sound
        ]
        sound.sort(key=lambda pair: -pair[0])
        if len(sound) < 2 or f"{sound[0][0]:.1f}" == f"{sound[1][0]:.1f}":
            return None
        return sound[0][1]


@dataclass(frozen=True)
class Board:
    """All groups, what they come from, and what could not be read.

    Attributes:
        problems: a sentence for every record that is damaged.
    """

    groups: tuple[ProtocolGroup, ...]
    records: Mapping[Path, Record] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all groups."""
        return tuple(row for group in self.groups for row in group.rows)


def protocol_id(record: Record) -> str:
    """Give what must agree for two scores to be compared: recipe, deviations, data, a listed split."""
    keys = ("train_fingerprint", "listed_split_sha256")
    data = [record.data["fingerprint"], *(record.data.get(key) for key in keys)]
    return sha256_json([record.recipe["sha256"], record.deviates, data])


Pair = tuple[str, str]  # task, protocol


def build_board(records: Mapping[Path, Record], problems: Sequence[str] = ()) -> Board:
    """Derive the groups and their rows.

    Raises:
        DataError: two records of one checkpoint, protocol and seed have different predictions.
    """
    # `random:ARCH` is drawn anew by every seed, so its records share the spec's hash and one row.
    measured: dict[tuple[str, str], dict[Pair, list[Path]]] = {}
    followed: dict[Pair, Record] = {}
    for path, record in records.items():
        pair = (record.task, protocol_id(record))
        followed.setdefault(pair, record)
        key = (record.checkpoint["label"], record.checkpoint["sha256"])
        measured.setdefault(key, {}).setdefault(pair, []).append(path)
    labels = [label for label, _ in measured]
    names = {
        (label, sha256): label if labels.count(label) == 1 else f"{label} [{sha256[:8]}]"
        for label, sha256 in measured
    }
    groups = []
    for number, protocols in enumerate(group_protocols([[*pairs] for pairs in measured.values()])):
        rows = [
            _row(
                names[key],
                {task: pairs[task, p] for task, p in protocols.items() if (task, p) in pairs},
                records,
            )
            for key, pairs in measured.items()
            if any((task, p) in pairs for task, p in protocols.items())
        ]
        shown = {
            column.task: followed[column.task, protocols[column.task]]
            for column in columns()
            if column.task in protocols
        }
        groups.append(ProtocolGroup(_letters(number), shown, _ranked(rows)))
    return Board(tuple(groups), records, tuple(problems))


def group_protocols(measured: Sequence[Sequence[Pair]]) -> list[dict[str, str]]:
    """Put protocols together, at most one of a task, by the checkpoints that were measured under them.

    A checkpoint with one protocol a task has a group of its own or fits into one; those with several, such as
    random weights that were measured on two data sets, then find a group for each. A protocol is in one
    group only.

    Args:
        measured: the (task, protocol) pairs of every checkpoint.
    """

    def most_protocols(pairs: Sequence[Pair]) -> int:
        tasks = [task for task, _ in pairs]
        return max(tasks.count(task) for task in tasks)

    groups: list[dict[str, str]] = []
    for pairs in sorted(measured, key=lambda pairs: (most_protocols(pairs), -len(pairs))):
        mine = [g for g in groups if any(g.get(task) == protocol for task, protocol in pairs)]
        for task, protocol in pairs:
            if any(group.get(task) == protocol for group in groups):
                continue
            group = next((g for g in mine if task not in g), None)
            if group is None:
                group = {}
                groups.append(group)
                mine.append(group)
            group[task] = protocol
    return groups


def _letters(number: int) -> str:
    """Count A to Z, AA, AB, ..."""
    head, tail = divmod(number, 26)
    return (_letters(head - 1) if head else "") + chr(ord("A") + tail)


def _row(label: str, tasks: Mapping[str, list[Path]], records: Mapping[Path, Record]) -> Row:
    cells = tuple(_cell(column, tasks.get(column.task, []), records) for column in columns())
    first = records[next(iter(tasks.values()))[0]]
    inapplicable = (i for i, c in enumerate(columns()) if c.task in tasks and cells[i] is None)
    return Row(
        label,
        first.checkpoint["sha256"],
        first.checkpoint["arch"],
        cells,
        inapplicable=frozenset(inapplicable),
    )


def _cell(column: Column, paths: list[Path], records: Mapping[Path, Record]) -> ScoreCell | None:
    by_seed: dict[int, Path] = {}
    for path in paths:
        if column.metric not in records[path].metrics:
            continue
        # A baseline that was run beside each of several checkpoints is one result.
        first = by_seed.setdefault(records[path].seed, path)
        if records[first].predictions["sha256"] != records[path].predictions["sha256"]:
            raise DataError(
                f"{path} and {first} are of one checkpoint, task and seed, and would count twice, with "
                "different predictions; remove one, or name other folders."
            )
    if not by_seed:
        return None
    behind = [records[path] for path in by_seed.values()]
    return ScoreCell(
        values=tuple(r.metrics[column.metric] for r in behind),
        records=tuple(by_seed.values()),
        deviates=any(r.deviates for r in behind),
        partial=any(r.status == "partial" for r in behind),
        dirty=any(r.environment.get("dirty") for r in behind),
    )


def _ranked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Order the rows by the mean of the columns that all have, and number those that may be ranked."""
    shared = [i for i in range(len(columns())) if all(row.cells[i] is not None for row in rows)]

    def cells(row: Row) -> list[ScoreCell]:
        return [cell for i in shared if (cell := row.cells[i]) is not None]

    def unsound(row: Row) -> bool:
        return not all(cell.is_sound for cell in cells(row))

    def score(row: Row) -> float:
        return -statistics.fmean([cell.mean for cell in cells(row)] or [0.0])

    ordered = sorted(rows, key=lambda row: (unsound(row), score(row), row.label))
    if len(rows) < 2 or not shared:
        return tuple(ordered)
    return tuple(
        row if unsound(row) else replace(row, rank=place) for place, row in enumerate(ordered, 1)
    )
