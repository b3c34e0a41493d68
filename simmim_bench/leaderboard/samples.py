"""How the scores of a column vary with images, seeds and pretrainings, read from the predictions of its records."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.leaderboard.archive import find_annotations, find_predictions
from simmim_bench.leaderboard.rows import Row, ScoreCell, with_pretrainings
from simmim_bench.results.per_image import ImageScores, join_runs, read_image_scores
from simmim_bench.results.record import Record, with_masks
from simmim_bench.results.scored_runs import find_task
from simmim_bench.tasks import Column
from simmim_bench.uncertainty.interval import (
    Difference,
    Side,
    Spread,
    difference,
    difference_of_means,
    is_estimable,
    pooled_spread,
    uncertainty,
)
from simmim_bench.uncertainty.run_scores import RunScores
from simmim_bench.untrusted.paths import path_below
from simmim_bench.untrusted.text import describe_error

# Percentage points by which a stated score may differ from its predictions; tables show one decimal.
TOLERANCE = 0.01
RunKey = tuple[Path, str]  # path of a record, metric


@dataclass(frozen=True)
class ColumnSample:
    """The runs of all comparable rows of a group in one column.

    Attributes:
        runs: the scores of all runs.
        sides: the runs of each row, by its label; the pretrainings of a method have sides, too.
        paired: whether runs of one seed share their training images.
        spread: the variance of one seed's score, pooled over the sound rows, for rows with a single seed; None if
            no row has several.
    """

    runs: RunScores
    sides: Mapping[str, Side]
    paired: bool
    spread: Spread | None = None

    def compare(self, ours: str, theirs: str) -> Difference | None:
        """Compute the difference of two rows, by their labels.

        Returns:
            None if one of them has no sample, or if their variance over images cannot be estimated.
        """
        if ours not in self.sides or theirs not in self.sides:
            return None
        pair = (self.sides[ours], self.sides[theirs])
        if not is_estimable(self.runs, *pair):
            return None
        if any(side.unit == "pretraining" for side in pair):
            # Neither do equal pretraining seeds share labelled images, nor do transfer seeds vary like pretrainings.
            return difference(self.runs, *pair)
        return difference(self.runs, *pair, paired=self.paired, spread=self.spread)


def compare_means(samples: Sequence[ColumnSample], ours: str, theirs: str) -> Difference | None:
    """Compute the difference of the means of two rows over columns in which both have a sample.

    Returns:
        None if a row has other seeds or pretrainings in another column.
    """
    pairs = [(sample.runs, sample.sides[ours], sample.sides[theirs]) for sample in samples]
    of_seeds = all(side.unit == "seed" for _, *pair in pairs for side in pair)
    return difference_of_means(pairs, paired=of_seeds and samples[0].paired)


def read_runs(
    records: Mapping[Path, Record],
    columns: Sequence[Column],
    advance: Callable[[], None] = lambda: None,
) -> tuple[dict[RunKey, ImageScores], list[str]]:
    """Read the scores by image of every record, from its predictions.

    Args:
        records: records by the path of their file.
        columns: whose metrics are read.
        advance: called after each record, such as for a progress bar.

    Returns:
        The scores by record and metric, and one sentence for each record with damaged predictions. Records without
        predictions, or without the annotations that they were scored against, are left out.
    """
    found: dict[RunKey, ImageScores] = {}
    problems = []
    for path, record in records.items():
        metrics = {c.metric for c in columns if c.task == record.task}
        try:
            found |= _read_run(path, record, [m for m in metrics if m in record.metrics])
        except DataError as error:
            problems.append(f"{path} has no uncertainty: {error}")
        except Exception as error:  # a record of others must not keep the rest from being read
            problems.append(f"{path} has no uncertainty: {describe_error(error)}.")
        advance()
    return found, problems


def _read_run(path: Path, record: Record, metrics: Iterable[str]) -> dict[RunKey, ImageScores]:
    """Read the scores by image of one record.

    Raises:
        DataError: the predictions are damaged, or are not those of the score.
    """
    predictions = path_below(path.parent, record.predictions["file"], "the record")
    if not os.path.isfile(predictions):
        return {}
    predictions = find_predictions(path, record)
    annotations = find_annotations(path, record)
    if "annotations" in record.data and annotations is None:
        return {}
    found = {}
    for metric in metrics:
        run = read_image_scores(
            record.task,
            predictions,
            annotations,
            metric,
            masks=with_masks(record.details),
            images=record.evaluated,
        )
        if run is None:
            continue
        if not abs(run.score - record.metrics[metric]) <= TOLERANCE:  # also of NaN
            raise DataError(
                f"its {metric} is {record.metrics[metric]}, that of its predictions {run.score}; run "
                "`simmim-bench leaderboard check`."
            )
        found[path, metric] = run
    return found


def add_samples(
    rows: Sequence[Row],
    columns: Sequence[Column],
    records: Mapping[Path, Record],
    runs: Mapping[RunKey, ImageScores],
) -> tuple[list[Row], tuple[ColumnSample | None, ...]]:
    """Join the runs of every column of a group, and compute the uncertainty of every score.

    Returns:
        The rows with their uncertainties, and a sample for every column; None where fewer than two rows have one.
    """
    shown = with_pretrainings(rows)
    found: dict[tuple[str, int], ScoreCell] = {}
    samples = []
    for index, column in enumerate(columns):
        sides = {}
        for row in shown:
            cell = row.cells[index]
            if cell is None or not all((path, column.metric) in runs for path in cell.records):
                continue
            parts = {path: runs[path, column.metric] for path in cell.records}
            if len({_images(run) for run in parts.values()}) > 1:
                continue
            side = _side(row, index, cell, {path: i for i, path in enumerate(parts)}, records)
            sides[row.label] = parts
            known = uncertainty(join_runs([*parts.values()]), side)
            found[row.label, index] = replace(cell, uncertainty=known)
        samples.append(_sample(rows, index, sides, records))
    return [_with_cells(row, found) for row in rows], tuple(samples)


def _sample(
    rows: Sequence[Row],
    index: int,
    parts_of: Mapping[str, Mapping[Path, ImageScores]],
    records: Mapping[Path, Record],
) -> ColumnSample | None:
    """Join the runs on the images that most sound rows were scored on; None if fewer than two rows were."""
    images = {label: _images(next(iter(parts.values()))) for label, parts in parts_of.items()}
    sound = [images[row.label] for row in rows if row.is_sound and row.label in images]
    if not images:
        return None
    common = Counter(sound or images.values()).most_common(1)[0][0]
    chosen = {label: parts for label, parts in parts_of.items() if images[label] == common}
    if len(chosen) < 2:
        return None
    joined = {path: run for parts in chosen.values() for path, run in parts.items()}
    run_of = {path: number for number, path in enumerate(joined)}
    sides = {
        row.label: _side(row, index, cell, run_of, records)
        for row in with_pretrainings(rows)
        if row.label in chosen and (cell := row.cells[index]) is not None
    }
    runs = join_runs([*joined.values()])
    task = find_task(records[next(iter(joined))])
    sound_rows = with_pretrainings([row for row in rows if row.is_sound])
    of_seeds = [sides[row.label] for row in sound_rows if row.label in sides]
    return ColumnSample(
        runs,
        sides,
        paired=task is not None and task.samples_images,
        spread=pooled_spread(runs, [s for s in of_seeds if s.varies and s.unit == "seed"]),
    )


def _images(run: ImageScores) -> tuple[int, str]:
    """Return what two runs that can be compared have in common."""
    return run.images, run.identity


def _side(
    row: Row,
    index: int,
    cell: ScoreCell,
    run_of: Mapping[Path, int],
    records: Mapping[Path, Record],
) -> Side:
    """Return the runs of a row in a column, by seed or pretraining."""
    if not row.pretrainings:
        return Side(
            units=tuple((run_of[path],) for path in cell.records),
            keys=tuple(records[path].seed for path in cell.records),
            varies=cell.varies,
        )
    parts = [(one, part) for one in row.pretrainings if (part := one.cells[index]) is not None]
    return Side(
        units=tuple(tuple(run_of[path] for path in part.records) for _, part in parts),
        keys=tuple(str(one.pretraining_seed) for one, _ in parts),
        unit="pretraining",
    )


def _with_cells(row: Row, found: Mapping[tuple[str, int], ScoreCell]) -> Row:
    """Return a row, and the rows of its pretrainings, with those cells that are found."""
    return replace(
        row,
        cells=tuple(found.get((row.label, i), cell) for i, cell in enumerate(row.cells)),
        pretrainings=tuple(_with_cells(one, found) for one in row.pretrainings),
    )
