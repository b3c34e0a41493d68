"""Tables of named data sets: one row per checkpoint, one column per data set, and the mean of complete rows.

A record whose data set has a name (`transfer --data NAME=DIR`) is not in the main table. Each metric of a task has a
table for every recipe: scores under different recipes, with other deviations, or of classifiers of different tasks are
never in one table, and data that differ are never in one column, even under the same name.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simmim_bench.files import sha256_json
from simmim_bench.leaderboard.board import (
    Board,
    Row,
    ScoreCell,
    best_row,
    build_cell,
    checkpoint_names,
    data_identity,
    describe_recipe,
)
from simmim_bench.results.record import Record
from simmim_bench.shift_sets import SHIFT_TASK
from simmim_bench.tasks import Column, columns

# Scores of `transfer shift` on a user's own folders, which no column of the main table has.
OWN_FOLDERS = Column("shift", SHIFT_TASK, "top1")
DataSetKey = tuple[str, str]  # name, hash of the data


@dataclass(frozen=True)
class SmallSetTable:
    """The scores of one metric under one recipe on named data sets.

    Attributes:
        column: the task and the metric.
        example: a record that follows the recipe.
        data_sets: titles of the columns.
        rows: complete rows first, the best mean first; their cells are in the order of `data_sets`.
    """

    column: Column
    example: Record
    data_sets: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """The task and the metric."""
        return f"{self.column.task}, {self.column.metric}"

    @property
    def protocol(self) -> str:
        """The recipe and its deviations."""
        return describe_recipe(self.example)

    def best_rows(self) -> list[Row | None]:
        """Return the row with the best score in every column, the mean last."""
        by_column = [[row.cells[i] for row in self.rows] for i in range(len(self.data_sets))]
        by_column.append([mean_cell(row) for row in self.rows])
        return [best_row(zip(self.rows, cells, strict=True)) for cells in by_column]


def mean_cell(row: Row) -> ScoreCell | None:
    """Return the mean over the data sets of a complete row, with the marks of its cells.

    Returns:
        None if a score is missing: means over different data sets cannot be compared.
    """
    cells = [cell for cell in row.cells if cell is not None]
    if not cells or len(cells) < len(row.cells):
        return None
    return ScoreCell(
        values=(statistics.fmean([cell.mean for cell in cells]),),
        deviates=any(cell.deviates for cell in cells),
        partial=any(cell.partial for cell in cells),
        dirty=any(cell.dirty for cell in cells),
    )


def small_set_tables(board: Board) -> list[SmallSetTable]:
    """Build the tables of the records with named data sets, in the order of the leaderboard's columns."""
    names = checkpoint_names(board.records)
    by_protocol: dict[tuple[str, str], dict[Path, Record]] = {}
    for path, record in board.records.items():
        if record.data.get("name") is not None:
            followed = [record.recipe["sha256"], record.deviates, record.data.get("classifier")]
            protocol = sha256_json(followed)
            by_protocol.setdefault((record.task, protocol), {})[path] = record
    return [
        table
        for column in (*columns(), OWN_FOLDERS)
        for (task, _), records in by_protocol.items()
        if task == column.task
        if (table := _build_table(column, records, names)) is not None
    ]


def _build_table(
    column: Column, records: Mapping[Path, Record], names: Mapping[tuple[str, str], str]
) -> SmallSetTable | None:
    """Build the table of records of one task and recipe; None if none of them has the metric."""
    paths_of: dict[tuple[str, str], dict[DataSetKey, list[Path]]] = {}
    for path, record in records.items():
        if column.metric in record.metrics:
            checkpoint = (record.checkpoint["label"], record.checkpoint["sha256"])
            data_set = (record.data["name"], sha256_json(data_identity(record)))
            paths_of.setdefault(checkpoint, {}).setdefault(data_set, []).append(path)
    if not paths_of:
        return None
    data_sets = sorted({data_set for paths in paths_of.values() for data_set in paths})
    rows = []
    for checkpoint, paths in paths_of.items():
        first = records[next(iter(paths.values()))[0]]
        cells = tuple(build_cell(column, paths.get(one, []), records) for one in data_sets)
        rows.append(Row(names[checkpoint], checkpoint[1], first.checkpoint["arch"], cells))
    example = next(iter(records.values()))
    return SmallSetTable(column, example, _titles(data_sets), _rank(rows))


def _titles(data_sets: list[DataSetKey]) -> tuple[str, ...]:
    """Return the names of data sets, with the hash of the data where several have one name."""
    names = [name for name, _ in data_sets]
    return tuple(
        name if names.count(name) == 1 else f"{name} [{sha256[:8]}]" for name, sha256 in data_sets
    )


def _rank(rows: list[Row]) -> tuple[Row, ...]:
    """Sort rows by their means, and number those whose mean may be ranked."""

    def key(row: Row) -> tuple[bool, bool, float, str]:
        mean = mean_cell(row)
        if mean is None:
            return True, True, 0.0, row.label
        return False, not mean.is_rankable, -mean.mean, row.label

    ordered = sorted(rows, key=key)
    rankable = [row for row in ordered if (mean := mean_cell(row)) and mean.is_rankable]
    if len(rankable) < 2:
        return tuple(ordered)
    return tuple(
        replace(row, rank=number) if number <= len(rankable) else row
        for number, row in enumerate(ordered, 1)
    )


def plain_tables(board: Board) -> list[dict[str, Any]]:
    """Return the tables as plain JSON."""
    return [
        {
            "task": table.column.task,
            "metric": table.column.metric,
            "recipe": table.example.recipe["name"],
            "recipe_sha256": table.example.recipe["sha256"],
            "deviates": table.example.deviates,
            **{
                key: table.example.data[key] for key in ("classifier",) if key in table.example.data
            },
            "data_sets": list(table.data_sets),
            "rows": [_plain_row(table, row) for row in table.rows],
        }
        for table in small_set_tables(board)
    ]


def _plain_row(table: SmallSetTable, row: Row) -> dict[str, Any]:
    mean = mean_cell(row)
    scores = zip(table.data_sets, row.cells, strict=True)
    return {
        "rank": row.rank,
        "label": row.label,
        "arch": row.arch,
        "checkpoint": row.checkpoint,
        "scores": {name: None if cell is None else plain_score(cell) for name, cell in scores},
        "mean": None if mean is None else mean.mean,
    }


def plain_score(cell: ScoreCell) -> dict[str, Any]:
    """Return a score and its marks as plain JSON."""
    return {
        "mean": cell.mean,
        "std": cell.std,
        "seeds": len(cell.values),
        "deviates": cell.deviates,
        "partial": cell.partial,
        "dirty": cell.dirty,
    }
