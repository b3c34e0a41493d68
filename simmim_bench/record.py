"""The record: one task's result with all that is needed to trust it; one JSON file.

In: what a runner knows at its end. Out: `record.json`. The scores in it are computed from the stored
predictions, so that `leaderboard check` can compute them again.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_bench.checkpoint import Checkpoint
from simmim_bench.errors import DataError
from simmim_bench.files import read_json, sha256_file, write_json
from simmim_bench.metrics import scores_from_predictions
from simmim_bench.recipe import Recipe
from simmim_bench.rundir import RunDir, environment

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """One task's result.

    Attributes:
        schema: version of this layout.
        task: `imagenet`, `linear`, `knn`, `fewshot-1%`, `fewshot-10%`, `coco` or `ade20k`.
        metrics: scores in percent, recomputable from the predictions.
        details: figures of the run that cannot be recomputed, such as a chosen block.
        checkpoint: label, name, sha256, arch and provenance of what was transferred.
        recipe: name and hash of the resolved recipe.
        deviates: what differs from the named recipe.
        seed: the seed of the run.
        data: folder name, fingerprint and annotations of the data, and the hash of a listed split.
        evaluated, expected: images scored, and images that the split has.
        predictions: file below the run directory, and its sha256.
        environment: code version, libraries, machine.
        wall_time_s: seconds from start to score.
        date: UTC.
    """

    task: str
    metrics: dict[str, float]
    details: dict[str, Any]
    checkpoint: dict[str, Any]
    recipe: dict[str, Any]
    deviates: dict[str, Any]
    seed: int
    data: dict[str, Any]
    evaluated: int
    expected: int
    predictions: dict[str, str]
    environment: dict[str, Any]
    wall_time_s: float
    date: str
    schema: int = SCHEMA


def write_record(
    run: RunDir,
    *,
    task: str,
    checkpoint: Checkpoint,
    recipe: Recipe,
    deviates: dict[str, Any],
    seed: int,
    data: dict[str, Any],
    predictions: Path,
    evaluated: int,
    expected: int,
    wall_time_s: float,
    details: dict[str, Any] | None = None,
) -> Record:
    """Score the stored predictions and write the run's record.

    Args:
        data: `root` (as given), `fingerprint`, and for `coco` the `annotations` file.
        predictions: the file under the run's `predictions/` that the score is computed from.
    """
    annotations = Path(data["annotations"]) if "annotations" in data else None
    record = Record(
        task=task,
        metrics=scores_from_predictions(task, predictions, annotations, masks=with_masks(details)),
        details=details or {},
        checkpoint={
            "label": checkpoint.label,
            "name": checkpoint.name,
            "sha256": checkpoint.sha256,
            "arch": checkpoint.spec.arch,
            "provenance": checkpoint.provenance,
        },
        recipe={"name": recipe.name, "sha256": recipe.sha256(), "source": recipe.source},
        deviates=deviates,
        seed=seed,
        data=data,
        evaluated=evaluated,
        expected=expected,
        predictions={
            "file": predictions.relative_to(run.path).as_posix(),
            "sha256": sha256_file(predictions),
        },
        environment=environment(),
        wall_time_s=round(wall_time_s, 1),
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    write_json(run.path / "record.json", dataclasses.asdict(record))
    shown = ", ".join(f"{k} {v:.2f}" for k, v in record.metrics.items() if "_ap_" not in k)
    run.log(f"{task}: {shown}")
    return record


def with_masks(details: dict[str, Any] | None) -> bool:
    """Say whether the detector of a record gives masks."""
    return bool((details or {}).get("masks", True))


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        DataError: the file is damaged, or of a schema that this version does not know.
    """
    fields = read_json(path, "record")
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        found = fields.get("schema") if isinstance(fields, dict) else type(fields).__name__
        raise DataError(f"record {path} has schema {found}, this version reads {SCHEMA}.")
    try:
        record = Record(**fields)
        texts = (
            *(record.checkpoint[key] for key in ("label", "sha256")),
            *(record.recipe[key] for key in ("name", "sha256")),
            *(record.predictions[key] for key in ("file", "sha256")),
            record.data["fingerprint"],
        )
        scores = record.metrics.values()
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name or hash is not a text")
        if not all(isinstance(s, int | float) and math.isfinite(s) for s in scores):
            raise TypeError("a score is not a finite number")
        record.deviates.items()
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"record {path} is damaged ({error}); run its task again.") from error
    return record
