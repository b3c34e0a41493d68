"""The record: one task's result, with everything that is needed to verify and repeat it, in one JSON file.

`record.schema.json` describes each key of `record.json`. The scores are computed from the stored predictions, so
that `leaderboard check` can compute them again.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import math
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.data.named import DataSet
from simmim_bench.errors import DataError
from simmim_bench.files import sha256_file, write_json
from simmim_bench.library import is_library_call
from simmim_bench.results.metrics import scores_from_predictions
from simmim_bench.results.record_html import record_to_html
from simmim_bench.shift_sets import SHIFT_SETS, SHIFT_TASK
from simmim_bench.tasks import TASKS, format_metric
from simmim_bench.untrusted.json_text import read_json
from simmim_bench.untrusted.text import shorten, visible

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

    from simmim_bench.checkpoints.checkpoint import Checkpoint
    from simmim_bench.distributed import DistContext
    from simmim_bench.models.spec import BackboneSpec
    from simmim_bench.recipe import Recipe
    from simmim_bench.runs.run_dir import RunDir

SCHEMA = 2
# Figures that may be infinite, such as the PSNR of a perfect reconstruction; nothing is computed from them.
MAY_BE_INFINITE = ("details", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One task's result; `record.schema.json` describes every key.

    Attributes:
        task: the task, such as "linear" or "fewshot-1%".
        metrics: scores in percent by name, such as "top1", each computed from the stored predictions.
        details: figures of the run that do not follow from the predictions, such as the chosen block.
        status: "reproduced", or "partial" where not every image of the split was scored.
        checkpoint: label, CKPT, hash, architecture and provenance of the transferred checkpoint.
        recipe: name, hash, source and fields of the recipe.
        deviates: differences from the named recipe.
        seed: of everything that the run samples.
        data: folder, name, split and fingerprints of the data set.
        evaluated: number of scored images.
        expected: number of images of the split.
        predictions: file and SHA-256 of the stored predictions.
        environment: version and commit of the code, libraries, device and threads.
        cost: device-hours, peak memory in bytes, images seen and images per second; None where unknown.
        command: the words of the command that reproduces the record.
        wall_time_s: seconds from start to score, of all sessions of a resumed run.
        date: time of scoring, UTC.
        schema: version of the schema.
    """

    task: str
    metrics: dict[str, float]
    details: dict[str, Any]
    status: str
    checkpoint: dict[str, Any]
    recipe: dict[str, Any]
    deviates: dict[str, Any]
    seed: int
    data: dict[str, Any]
    evaluated: int
    expected: int
    predictions: dict[str, str]
    environment: dict[str, Any]
    cost: dict[str, Any]
    command: list[str]
    wall_time_s: float
    date: str
    schema: int = SCHEMA

    def _repr_html_(self) -> str:
        """Return the record as an HTML table, for a notebook."""
        return record_to_html(dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """The model that a record is of, where it is not a backbone of `BackboneSpec`.

    Attributes:
        label: name of the row in a leaderboard.
        name: CKPT as given on the command line.
        sha256: hash of the weights file.
        arch: architecture.
        params: parameters without classification head.
        provenance: as of a checkpoint; its "method" is the pretraining method, or where the model is from.
    """

    label: str
    name: str
    sha256: str
    arch: str
    params: int
    provenance: dict[str, Any]


def write_record(
    run: RunDir,
    *,
    task: str,
    checkpoint: Checkpoint | ScoredModel,
    recipe: Recipe,
    deviates: dict[str, Any],
    seed: int,
    data: dict[str, Any],
    predictions: Path,
    evaluated: int,
    expected: int,
    images_seen: int,
    dist: DistContext,
    details: dict[str, Any] | None = None,
    command: list[str] | None = None,
) -> Record:
    """Score the stored predictions and write the run's record.

    Args:
        task: the task as records name it, such as `fewshot-1%`.
        data: `root`, `name` and `title` (as given), `fingerprint`, and for `coco` the `annotations` file.
        predictions: the file under the run's `predictions/` that the score is computed from.
        evaluated, expected: images that were scored, and images of the split.
        images_seen: images that the model processed in training and scoring, counting repetitions.
        dist: the processes of the run, one device each.
        details: figures of the run that do not follow from the predictions.
        command: reproduces the record; None for `simmim-bench transfer`.
    """
    from simmim_bench.runs.environment import environment

    annotations = Path(data["annotations"]) if "annotations" in data else None
    metrics = scores_from_predictions(task, predictions, annotations, masks=with_masks(details))
    wall_time_s = run.wall_time_s()
    record = Record(
        task=task,
        metrics=metrics,
        details=details or {},
        status="reproduced" if evaluated == expected else "partial",
        checkpoint=dataclasses.asdict(describe_checkpoint(checkpoint)),
        recipe=_describe_recipe(recipe),
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
        cost=_compute_cost(wall_time_s, images_seen, dist),
        command=command
        or reproduction_command(task, checkpoint.name, data, recipe, deviates, seed),
        wall_time_s=round(wall_time_s, 1),
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    write_json(run.path / "record.json", dataclasses.asdict(record))
    scores = " ".join(f"{k}={format_metric(k, v)}" for k, v in metrics.items() if "_ap_" not in k)
    # The command line prints the scores with their uncertainty.
    run.log(f"{task}: scored images={evaluated:,} {scores}", shown=is_library_call())
    run.log_scores(metrics)
    return record


def describe_checkpoint(checkpoint: Checkpoint | ScoredModel) -> ScoredModel:
    """Return what a record stores of a checkpoint."""
    if isinstance(checkpoint, ScoredModel):
        return checkpoint
    return ScoredModel(
        label=checkpoint.label,
        name=checkpoint.name,
        sha256=checkpoint.sha256,
        arch=checkpoint.spec.arch,
        params=count_params(checkpoint.spec),
        provenance=checkpoint.provenance,
    )


def _describe_recipe(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "sha256": recipe.sha256(),
        "source": recipe.source,
        "fields": recipe.fields(),
    }


def _compute_cost(wall_time_s: float, images_seen: int, dist: DistContext) -> dict[str, Any]:
    from simmim_bench.training.memory import peak_memory

    return {
        "devices": dist.size,
        "device_hours": wall_time_s * dist.size / 3600,
        "peak_memory_bytes": peak_memory(dist.device),
        "images_seen": images_seen,
        "images_per_s": images_seen / wall_time_s,
    }


def count_params(spec: BackboneSpec) -> int:
    """Count the parameters of a backbone without heads."""
    from simmim_bench.models.build import build_backbone
    from simmim_bench.models.shapes import shapes_only

    with shapes_only():
        return sum(p.numel() for p in build_backbone(spec).parameters())


def reproduction_command(
    task: str,
    ckpt: str,
    data: dict[str, Any],
    recipe: Recipe,
    deviates: dict[str, Any],
    seed: int,
) -> list[str]:
    """Return the command that reproduces the record of a transfer."""
    name, _, fraction = task.partition("-")
    data_set = DataSet(Path(data["root"]), data.get("name"))
    command = ["simmim-bench", "transfer", name, "--ckpt", ckpt, "--data", str(data_set)]
    if "title" in data:
        command += ["--data-name", data["title"]]
    if "listed_split" in data:
        command += ["--split", data["listed_split"]]
    elif fraction:
        command += ["--fraction", fraction]
    command += ["--recipe", recipe.name]
    for key, value in deviates.items():
        shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        command += ["-o", f"{key}={shown or '()'}"]
    return [*command, "--seed", str(seed)]


def with_masks(details: dict[str, Any] | None) -> bool:
    """Return whether the detector of a record predicts masks; `details` are the record's."""
    return bool((details or {}).get("masks", True))


def _schema() -> Validator:
    return _schema_of(tuple(TASKS))


@functools.cache
def _schema_of(tasks: tuple[str, ...]) -> Validator:
    from jsonschema import Draft202012Validator

    text = resources.files("simmim_bench.results").joinpath("record.schema.json").read_text("utf-8")
    schema = json.loads(text)
    # A few-shot fraction is a part of the task's name; records of fractions without a column are valid too.
    # The same of the sets of `transfer shift`; a folder of a user's own has the name in `data`.
    shifted = "|".join(map(re.escape, SHIFT_SETS))
    schema["properties"]["task"]["pattern"] = (
        f"^(({'|'.join(map(re.escape, tasks))})(-[0-9]{{1,3}}%)?|{SHIFT_TASK}(-({shifted}))?)$(?!\\n)"
    )
    return Draft202012Validator(schema)


def read_record(path: Path) -> Record:
    """Read a record of the current schema or an older one.

    Raises:
        DataError: the file is damaged, or has a newer schema.
    """
    from jsonschema.exceptions import best_match

    fields = read_json(path, "record", finite=False)
    found = fields.get("schema") if isinstance(fields, dict) else type(fields).__name__
    if type(found) is int and found == 1:
        fields = _from_version_1(fields)
    elif type(found) is not int or found != SCHEMA:
        raise DataError(
            f"record {path} has schema {shorten(repr(found))}; this version of simmim-bench reads schemas 1 to "
            f"{SCHEMA}."
        )
    elif isinstance(recipe := fields.get("recipe"), dict) and recipe.get("fields") == {}:
        raise damaged(path, "recipe.fields: it is empty")
    fault = best_match(_schema().iter_errors(fields))
    if fault is not None:
        where = ".".join(map(str, fault.absolute_path)) or "its keys"
        raise damaged(path, f"{where}: {fault.message}")
    for name, value in fields.items():
        number = None if name in MAY_BE_INFINITE else _find_non_finite(value)
        if number is not None:
            raise damaged(path, f"{name}: {number} is not a finite number")
    return Record(**fields)


def damaged(path: Path, reason: str) -> DataError:
    """Return the error for a record that cannot be used."""
    return DataError(f"record {path} is damaged ({visible(shorten(reason))}); run its task again.")


def _find_non_finite(value: Any) -> float | None:
    """Return a number of a JSON value that is NaN or infinite, if there is one."""
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((n for item in inner if (n := _find_non_finite(item)) is not None), None)


def _from_version_1(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert a record of schema version 1 to the current one; figures that it lacks are None."""
    recipe, wall_time_s = fields.get("recipe"), fields.get("wall_time_s")
    details = fields.get("details")
    missing = ("devices", "device_hours", "peak_memory_bytes", "images_seen", "images_per_s")
    complete = fields.get("evaluated") == fields.get("expected")
    devices = details.get("processes") if isinstance(details, dict) else None
    cost: dict[str, Any] = dict.fromkeys(missing)
    if isinstance(devices, int) and isinstance(wall_time_s, int | float):
        cost |= {"devices": devices, "device_hours": wall_time_s * devices / 3600}
    return {
        **fields,
        "schema": SCHEMA,
        "status": "reproduced" if complete else "partial",
        "recipe": {"fields": {}, **recipe} if isinstance(recipe, dict) else recipe,
        "cost": cost,
        "command": [],
    }
