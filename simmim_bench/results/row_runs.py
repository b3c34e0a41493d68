"""The runs of one row of a table, by seed or pretraining, with their scores image by image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.results.per_image import ImageScores, join_runs, read_image_scores
from simmim_bench.results.record import Record, with_masks
from simmim_bench.results.run_files import find_scored_files
from simmim_bench.tasks import TASKS, Task, find_variant
from simmim_bench.uncertainty.interval import Side, Unit
from simmim_bench.uncertainty.run_scores import RunScores

# Percentage points by which a stated score may differ from its predictions; tables show one decimal.
TOLERANCE = 0.01


def read_run(path: Path, record: Record, metrics: Iterable[str]) -> dict[str, ImageScores]:
    """Read the scores of a run image by image, from the predictions that were scored.

    Args:
        path: the path of `record`, which may be in an archive.
        metrics: those without data by image, and those that the record lacks, are left out.

    Raises:
        MissingFileError: the predictions or the annotations do not exist.
        DataError: the predictions are damaged, or are not those of the scores.
    """
    predictions, annotations = find_scored_files(path, record)
    found = {}
    for metric in metrics:
        if metric not in record.metrics:
            continue
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
                f"{metric} is {record.metrics[metric]} in the record but {run.score} when recomputed from the "
                "predictions; run `simmim-bench leaderboard check`."
            )
        found[metric] = run
    return found


@dataclass(frozen=True)
class RowRuns:
    """The runs of one row, whose files are those of `read_run`.

    Attributes:
        units: the records of the runs of each unit, after what identifies the unit, such as its seed.
        unit: what the units are.
        varies: whether another unit would have another score.
    """

    units: Sequence[tuple[int | str, Sequence[Path]]]
    unit: Unit = "seed"
    varies: bool = True

    @property
    def paths(self) -> list[Path]:
        """The records of all units."""
        return [path for _, of_unit in self.units for path in of_unit]


def join_rows(
    rows: Sequence[RowRuns], scores: Mapping[Path, ImageScores]
) -> tuple[RunScores, list[Side]]:
    """Join the runs of rows that were scored on the same images, and return each row's side of a difference.

    Raises:
        DataError: the runs were scored on different images.
    """
    paths = list(dict.fromkeys(path for row in rows for path in row.paths))
    return join_runs([scores[path] for path in paths]), number_runs(rows, paths)


def number_runs(rows: Sequence[RowRuns], paths: Sequence[Path]) -> list[Side]:
    """Return each row's side of a difference.

    Args:
        paths: the records of all runs, in the order of their scores.
    """
    number_of = {path: number for number, path in enumerate(paths)}
    return [
        Side(
            units=tuple(tuple(number_of[path] for path in of_unit) for _, of_unit in row.units),
            keys=tuple(key for key, _ in row.units),
            unit=row.unit,
            varies=row.varies,
        )
        for row in rows
    ]


def find_task(record: Record) -> Task | None:
    """Find the task of a record, and of a score of shift the task that trained the classifier."""
    name = str(record.data.get("classifier", record.task))
    variant = find_variant(name)
    # A few-shot fraction without a column has no variant.
    return TASKS.get(name.partition("-")[0]) if variant is None else variant.task


def is_random(record: Record) -> bool:
    """Return whether a record's backbone has random weights."""
    checkpoint = record.checkpoint
    named = str(checkpoint["name"]).startswith("random:")
    return named or checkpoint["provenance"].get("method") == "random"


def varies_with_seed(record: Record) -> bool:
    """Return whether a run with another seed would have another score."""
    # Every seed initialises random weights anew.
    task = find_task(record)
    return task is None or task.varies_with_seed or is_random(record)
