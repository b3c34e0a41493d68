"""Tables of named data sets: one row per checkpoint, one column per data set, and the mean of complete rows.

A record whose data set has a name (`transfer --data NAME=DIR`) is not in the main table. Each metric of a task has a
table for every recipe: scores under different recipes, with other deviations, or of classifiers of different tasks are
never in one table, and data that differ are never in one column, even under the same name.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from simmim_bench.files import sha256_json
from simmim_bench.leaderboard.protocols import (
    checkpoint_key,
    checkpoint_names,
    data_identity,
    describe_recipe,
)
from simmim_bench.leaderboard.ranking import IsHigher, rank_cells, rank_rows
from simmim_bench.leaderboard.rows import Row, ScoreCell, build_cell, merge_pretrainings
from simmim_bench.leaderboard.samples import ColumnSample, RunKey, add_samples, compare_means
from simmim_bench.results.per_image import ImageScores
from simmim_bench.results.record import Record
from simmim_bench.shift_sets import SHIFT_TASK
from simmim_bench.tasks import Column, columns
from simmim_bench.uncertainty.interval import Uncertainty

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
        rows: complete rows first, the best mean first, unsound ones after; their cells are in the order of
            `data_sets`.
        samples: for every data set, how the rows' scores vary.
    """

    column: Column
    example: Record
    data_sets: tuple[str, ...]
    rows: tuple[Row, ...]
    # Arrays have no truth value, by which two boards could be compared.
    samples: tuple[ColumnSample | None, ...] = field(default=(), compare=False, repr=False)

    @property
    def title(self) -> str:
        """The task and the metric."""
        return f"{self.column.task}, {self.column.metric}"

    @property
    def protocol(self) -> str:
        """The recipe and its deviations."""
        return describe_recipe(self.example)


def build_tables(
    records: Mapping[Path, Record], runs: Mapping[RunKey, ImageScores]
) -> list[SmallSetTable]:
    """Build the tables of the records with named data sets, in the order of the leaderboard's columns.

    Args:
        records: records by the path of their file.
        runs: their scores by image, see `samples.read_runs`.
    """
    names = checkpoint_names(records)
    by_protocol: dict[tuple[str, str], dict[Path, Record]] = {}
    for path, record in records.items():
        if record.data.get("name") is not None:
            followed = [record.recipe["sha256"], record.deviates, record.data.get("classifier")]
            protocol = sha256_json(followed)
            by_protocol.setdefault((record.task, protocol), {})[path] = record
    return [
        table
        for column in (*columns(), OWN_FOLDERS)
        for (task, _), followers in by_protocol.items()
        if task == column.task
        if (table := _build_table(column, followers, names, runs)) is not None
    ]


def _build_table(
    column: Column,
    records: Mapping[Path, Record],
    names: Mapping[tuple[str, str], str],
    runs: Mapping[RunKey, ImageScores],
) -> SmallSetTable | None:
    """Build the table of records of one task and recipe; None if none of them has the metric."""
    paths_of: dict[tuple[str, str], dict[DataSetKey, list[Path]]] = {}
    for path, record in records.items():
        if column.metric in record.metrics:
            data_set = (record.data["name"], sha256_json(data_identity(record)))
            paths_of.setdefault(checkpoint_key(record), {}).setdefault(data_set, []).append(path)
    if not paths_of:
        return None
    data_sets = sorted({data_set for paths in paths_of.values() for data_set in paths})
    rows = []
    for checkpoint, paths in paths_of.items():
        first = records[next(iter(paths.values()))[0]]
        cells = tuple(build_cell(column, paths.get(one, []), records) for one in data_sets)
        rows.append(Row(names[checkpoint], checkpoint[1], first.checkpoint["arch"], cells))
    merged = merge_pretrainings(rows, records)
    of_sets = [column] * len(data_sets)
    sampled, samples = add_samples(merged, of_sets, records, runs)
    ranked = rank_rows([_with_mean(row, records) for row in sampled], samples)
    means = rank_cells([row.mean for row in ranked], _compare_means(ranked, samples))
    ranked = [replace(row, mean=mean) for row, mean in zip(ranked, means, strict=True)]
    example = next(iter(records.values()))
    return SmallSetTable(column, example, _titles(data_sets), _sort(ranked), samples)


def _with_mean(row: Row, records: Mapping[Path, Record]) -> Row:
    """Return a row, and the rows of its pretrainings, with the mean over the data sets."""
    return replace(
        row,
        mean=_mean(row, records),
        pretrainings=tuple(_with_mean(one, records) for one in row.pretrainings),
    )


def _mean(row: Row, records: Mapping[Path, Record]) -> ScoreCell | None:
    """Return the mean over the data sets of a complete row, with the marks of its cells.

    It has one value per seed or pretraining if these are the same on all data sets. The data sets have different
    images, so that the variances add.

    Returns:
        None if a score is missing: means over different data sets cannot be compared.
    """
    cells = [cell for cell in row.cells if cell is not None]
    if not cells or len(cells) < len(row.cells):
        return None
    by_unit = [_by_unit(row, i, records) for i in range(len(cells))]
    units = by_unit[0].keys()
    if all(found.keys() == units for found in by_unit):
        values = [statistics.fmean([found[unit] for found in by_unit]) for unit in units]
    else:
        values = [statistics.fmean([cell.mean for cell in cells])]
    mean = ScoreCell(
        values=tuple(values),
        deviates=any(cell.deviates for cell in cells),
        partial=any(cell.partial for cell in cells),
        dirty=any(cell.dirty for cell in cells),
        unit=cells[0].unit,
        # As unreplicated as its scores, also where its only value is of different numbers of seeds.
        varies=any(cell.is_unreplicated for cell in cells),
    )
    errors = [None if cell.uncertainty is None else cell.uncertainty.images for cell in cells]
    known = [error for error in errors if error is not None]
    if len(known) == len(cells):
        images = math.hypot(*known) / len(known)
        mean = replace(mean, uncertainty=Uncertainty(mean.std, images))
    return mean


def _by_unit(row: Row, index: int, records: Mapping[Path, Record]) -> dict[str, float]:
    """Return the scores of a cell by seed or pretraining."""
    cell = row.cells[index]
    if cell is None:
        return {}
    if row.pretrainings:
        units = [str(one.pretraining_seed) for one in row.pretrainings if one.cells[index]]
    else:
        units = [str(records[path].seed) for path in cell.records]
    return dict(zip(units, cell.values, strict=True))


def _compare_means(rows: Sequence[Row], samples: Sequence[ColumnSample | None]) -> IsHigher:
    """Return the comparison of the means of complete rows."""

    def is_higher(ours: int, theirs: int) -> bool | None:
        pair = rows[ours].label, rows[theirs].label
        known = [sample for sample in samples if sample is not None]
        parts = [part for sample in known if (part := sample.compare(*pair)) is not None]
        if len(parts) < len(samples) or any(part.without_units for part in parts):
            return None
        found = compare_means(known, *pair)
        if found is not None and not found.without_units:
            return found.low > 0
        margins = [max(part.high - part.points, part.points - part.low) for part in parts]
        # Units that are not the same on all data sets. Transfer seeds are independent between data sets; a
        # pretraining may be good on all of them.
        shared = any(part.unit == "pretraining" for part in parts)
        total = math.fsum(margins) if shared else math.hypot(*margins)
        return math.fsum(part.points for part in parts) > total

    return is_higher


def _titles(data_sets: list[DataSetKey]) -> tuple[str, ...]:
    """Return the names of data sets, with the hash of the data where several have one name."""
    names = [name for name, _ in data_sets]
    return tuple(
        name if names.count(name) == 1 else f"{name} [{sha256[:8]}]" for name, sha256 in data_sets
    )


def _sort(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Sort rows by their means: sound ones first, incomplete rows last."""

    def key(row: Row) -> tuple[bool, bool, float, str]:
        if row.mean is None:
            return True, True, 0.0, row.label
        return False, not row.mean.is_sound, -row.mean.mean, row.label

    return tuple(sorted(rows, key=key))
