"""How the scores of a column vary with images, seeds and pretrainings, read from the predictions of its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.leaderboard.rows import Row, ScoreCell, with_pretrainings
from simmim_bench.results.per_image import ImageScores
from simmim_bench.results.record import Record
from simmim_bench.results.row_runs import RowRuns, find_task, join_rows, read_run
from simmim_bench.results.run_files import MissingFileError
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
from simmim_bench.untrusted.text import describe_error

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
            found |= {
                (path, metric): run for metric, run in read_run(path, record, metrics).items()
            }
        except MissingFileError:
            pass
        except DataError as error:
            problems.append(f"{path} has no uncertainty: {error}")
        except Exception as error:  # a record of others must not keep the rest from being read
            problems.append(f"{path} has no uncertainty: {describe_error(error)}.")
        advance()
    return found, problems


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
    found: dict[tuple[str, int], ScoreCell] = {}
    samples = []
    for index, column in enumerate(columns):
        scores: dict[Path, ImageScores] = {}
        read: dict[str, RowRuns] = {}
        for row in with_pretrainings(rows):
            cell = row.cells[index]
            if cell is None or not all((path, column.metric) in runs for path in cell.records):
                continue
            of_row = {path: runs[path, column.metric] for path in cell.records}
            if len(set(map(_images, of_row.values()))) > 1:
                continue
            scores |= of_row
            read[row.label] = _row_runs(row, index, cell, records)
            joined, (side,) = join_rows([read[row.label]], of_row)
            found[row.label, index] = replace(cell, uncertainty=uncertainty(joined, side))
        samples.append(_sample(rows, read, scores, records))
    return [_with_cells(row, found) for row in rows], tuple(samples)


def _sample(
    rows: Sequence[Row],
    read: Mapping[str, RowRuns],
    scores: Mapping[Path, ImageScores],
    records: Mapping[Path, Record],
) -> ColumnSample | None:
    """Join the runs on the images that most sound rows were scored on; None if fewer than two rows were.

    Args:
        read: by label, the runs of the rows that have scores by image.
    """
    if not read:
        return None
    images = {label: _images(scores[row.paths[0]]) for label, row in read.items()}
    sound = {row.label for row in with_pretrainings([row for row in rows if row.is_sound])}
    of_sound = [images[row.label] for row in rows if row.label in images and row.label in sound]
    common = Counter(of_sound or images.values()).most_common(1)[0][0]
    chosen = {label: row for label, row in read.items() if images[label] == common}
    if len(chosen) < 2:
        return None
    joined, sides = join_rows([*chosen.values()], scores)
    task = find_task(records[next(iter(chosen.values())).paths[0]])
    pool = [
        side
        for label, side in zip(chosen, sides, strict=True)
        if label in sound and side.varies and side.unit == "seed"
    ]
    return ColumnSample(
        joined,
        dict(zip(chosen, sides, strict=True)),
        paired=task is not None and task.samples_images,
        spread=pooled_spread(joined, pool),
    )


def _images(run: ImageScores) -> tuple[int, str]:
    """Return what two runs that can be compared have in common."""
    return run.images, run.identity


def _row_runs(row: Row, index: int, cell: ScoreCell, records: Mapping[Path, Record]) -> RowRuns:
    """Return the runs of a row in a column, by seed or pretraining."""
    if not row.pretrainings:
        units = [(records[path].seed, [path]) for path in cell.records]
        return RowRuns(units, varies=cell.varies)
    of_pretrainings = [
        (str(one.pretraining_seed), part.records)
        for one in row.pretrainings
        if (part := one.cells[index]) is not None
    ]
    return RowRuns(of_pretrainings, unit="pretraining")


def _with_cells(row: Row, found: Mapping[tuple[str, int], ScoreCell]) -> Row:
    """Return a row, and the rows of its pretrainings, with those cells that are found."""
    return replace(
        row,
        cells=tuple(found.get((row.label, i), cell) for i, cell in enumerate(row.cells)),
        pretrainings=tuple(_with_cells(one, found) for one in row.pretrainings),
    )
