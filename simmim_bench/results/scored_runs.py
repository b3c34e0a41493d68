"""Read the finished runs of one checkpoint and task, one per seed, with their scores image by image."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.files import sha256_file
from simmim_bench.results.per_image import ImageScores, join_runs, read_image_scores
from simmim_bench.results.record import Record, read_record, with_masks
from simmim_bench.tasks import TASKS, Task, find_variant, format_metric
from simmim_bench.uncertainty.interval import Side, uncertainty


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
        named = {"": self.mean, "seeds ±": self.seeds, "images ±": self.images}
        return {k: format_metric(self.metric, v) for k, v in named.items() if v is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {text}".strip() for name, text in self.parts().items())


@dataclass(frozen=True)
class ScoredRuns:
    """The runs of one checkpoint and task.

    Attributes:
        run_dirs, records: one per seed.
        by_image: by metric, the scores of every run in the order of the records; metrics without data by image, such
            as a calibration error, are left out.
        unknown: why the predictions cannot be read; empty where they are.
    """

    run_dirs: Sequence[Path]
    records: Sequence[Record]
    by_image: Mapping[str, Sequence[ImageScores]]
    unknown: str = ""

    def side(self, start: int = 0) -> Side:
        """Return the runs as a side of a comparison.

        Args:
            start: index of the first run in the joined scores.
        """
        return Side(
            units=tuple((start + index,) for index in range(len(self.records))),
            keys=tuple(record.seed for record in self.records),
            varies=varies_with_seed(self.records[0]),
        )

    def scores(self) -> dict[str, Score]:
        """Compute the mean of every metric that all runs have, with its uncertainty."""
        return {metric: self._score(metric) for metric in _common_metrics(self.records)}

    def _score(self, metric: str) -> Score:
        values = [record.metrics[metric] for record in self.records]
        images = None
        if metric in self.by_image:
            with contextlib.suppress(DataError):  # too few objects to resample the images
                images = uncertainty(join_runs(self.by_image[metric]), self.side()).images
        seeds = statistics.stdev(values) if len(values) > 1 else None
        return Score(metric, statistics.fmean(values), seeds, images)


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


def read_scored_runs(
    run_dirs: Sequence[Path], advance: Callable[[], None] = lambda: None
) -> ScoredRuns:
    """Read the records and predictions of finished runs.

    Without its predictions, or the annotations of COCO, a run keeps the scores that it recorded: `unknown` has the
    reason.

    Args:
        advance: called after each run.

    Raises:
        DataError: a record cannot be read.
    """
    records = [read_record(run / "record.json") for run in run_dirs]
    found: list[dict[str, ImageScores]] = []
    try:
        for run_dir, record in zip(run_dirs, records, strict=True):
            found.append(_read_by_image(run_dir, record))
            advance()
    except DataError as error:
        return ScoredRuns(run_dirs, records, {}, str(error))
    common = [metric for metric in found[0] if all(metric in scores for scores in found)]
    return ScoredRuns(run_dirs, records, {m: [scores[m] for scores in found] for m in common})


def _read_by_image(run_dir: Path, record: Record) -> dict[str, ImageScores]:
    """Read the metrics of a run that have data by image, from the predictions that were scored.

    Raises:
        DataError: the predictions cannot be read, or are not the record's.
    """
    predictions = run_dir / record.predictions["file"]
    annotations = Path(record.data["annotations"]) if "annotations" in record.data else None
    scores = {}
    for metric in record.metrics:
        if "_ap_" in metric:
            continue  # an AP of a size or threshold, whose resampling would take as long again
        one = read_image_scores(
            record.task,
            predictions,
            annotations,
            metric,
            masks=with_masks(record.details),
            images=record.evaluated,
        )
        if one is not None:
            scores[metric] = one
    if scores and sha256_file(predictions) != record.predictions["sha256"]:
        raise DataError(
            f"predictions {predictions} are not the ones that were scored; run {run_dir} again."
        )
    return scores


def _common_metrics(records: Sequence[Record]) -> list[str]:
    return [m for m in records[0].metrics if all(m in record.metrics for record in records)]
