"""Read the finished runs of one checkpoint and task, one per seed, with their scores image by image."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.results.per_image import ImageScores
from simmim_bench.results.record import Record, read_record
from simmim_bench.results.row_runs import RowRuns, join_rows, read_run, varies_with_seed
from simmim_bench.results.run_files import MissingFileError
from simmim_bench.results.score_text import describe_uncertainty
from simmim_bench.tasks import format_metric
from simmim_bench.uncertainty.interval import uncertainty


@dataclass(frozen=True)
class Score:
    """One metric of one or several seeds, with its uncertainty in the metric's unit.

    Attributes:
        mean: mean over seeds.
        seeds: sample standard deviation over seeds; None for one seed.
        images: standard error from the finite number of images; None where it is unknown.
    """

    metric: str
    mean: float
    seeds: float | None = None
    images: float | None = None

    def parts(self) -> dict[str, str]:
        """Return the texts of the mean, under an empty name, and of what is known of its uncertainty."""
        text = partial(format_metric, self.metric)
        return {"": text(self.mean), **describe_uncertainty(self.seeds, self.images, format=text)}

    def __str__(self) -> str:
        return ", ".join(f"{name} {text}".strip() for name, text in self.parts().items())


@dataclass(frozen=True)
class ScoredRuns:
    """The runs of one checkpoint and task.

    Attributes:
        records: by the path of their file, one per seed.
        by_image: by metric, the scores of every run by the path of its record; metrics without data by image, such
            as a calibration error, are left out.
        unknown: why the predictions cannot be read; empty where they are.
    """

    records: Mapping[Path, Record]
    by_image: Mapping[str, Mapping[Path, ImageScores]]
    unknown: str = ""

    @property
    def first(self) -> Record:
        """The record of the first seed."""
        return next(iter(self.records.values()))

    @property
    def runs(self) -> RowRuns:
        """The runs as a row, by seed."""
        units = [(record.seed, [path]) for path, record in self.records.items()]
        return RowRuns(units, varies=varies_with_seed(self.first))

    def scores(self) -> dict[str, Score]:
        """Compute the mean of every metric that all runs have, with its uncertainty."""
        records = self.records.values()
        common = [m for m in self.first.metrics if all(m in record.metrics for record in records)]
        return {metric: self._score(metric) for metric in common}

    def _score(self, metric: str) -> Score:
        values = [record.metrics[metric] for record in self.records.values()]
        images = None
        if metric in self.by_image:
            with contextlib.suppress(DataError):  # the seeds were scored on different images
                runs, (side,) = join_rows([self.runs], self.by_image[metric])
                images = uncertainty(runs, side).images
        seeds = statistics.stdev(values) if len(values) > 1 else None
        return Score(metric, statistics.fmean(values), seeds, images)


def read_scored_runs(
    run_dirs: Sequence[Path],
    advance: Callable[[], None] = lambda: None,
    *,
    strict: bool = False,
) -> ScoredRuns:
    """Read the records and predictions of finished runs.

    Without its predictions, or the annotations of COCO, a run keeps the scores that it recorded: `unknown` has the
    reason.

    Args:
        advance: called after each run.
        strict: refuse predictions that exist but are not those of the scores.

    Raises:
        DataError: a record cannot be read, or strictly, does not match its predictions.
    """
    records = {path: read_record(path) for path in (run / "record.json" for run in run_dirs)}
    found: dict[Path, dict[str, ImageScores]] = {}
    unknown = ""
    for path, record in records.items():
        # An AP of a size or threshold without each group of images would take as long again.
        metrics = [metric for metric in record.metrics if "_ap_" not in metric]
        try:
            found[path] = read_run(path, record, metrics)
        except DataError as error:
            unknown = str(error)
            if not strict:
                break
            if not isinstance(error, MissingFileError):
                raise DataError(f"{path}: {error}") from error
        advance()
    if unknown:
        return ScoredRuns(records, {}, unknown)
    first, *others = found.values()
    common = [metric for metric in first if all(metric in scores for scores in others)]
    return ScoredRuns(
        records,
        {metric: {path: scores[metric] for path, scores in found.items()} for metric in common},
    )
