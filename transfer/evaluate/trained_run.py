"""Find the run of ours that a CKPT is of: its recipe, its seed, its data and the score that training recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.read import checkpoint_path
from simmim_bench.errors import DataError, UsageError
from simmim_bench.recipe import Recipe, with_deviations
from simmim_bench.results.record import read_record
from simmim_bench.untrusted.json_text import read_json
from transfer.recipes import RECIPES, check_recipe_type

# Descriptions of the training data in a record, which an evaluated score must share to be compared with it.
TRAINING_DATA = ("train_fingerprint", "listed_split", "listed_split_sha256")


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A transfer run that has trained a model.

    Attributes:
        path: run directory.
        named: the named recipe.
        recipe: the resolved recipe.
        seed: of the run.
        metrics: scores of the run's record, in percent; empty where it has none.
        training_data: what the run's record stores of the data that it was trained on.
    """

    path: Path
    named: Recipe
    recipe: Recipe
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    training_data: Mapping[str, Any] = field(default_factory=dict)


def find_trained_run(ckpt: str, task: str) -> TrainedRun | None:
    """Find the run that a CKPT is of: a run directory, or a checkpoint directory in it.

    Args:
        task: the task to evaluate.

    Returns:
        None for another CKPT, such as a file, and for a pretraining run.

    Raises:
        DataError: the run is of another task, its files are damaged, or its recipe has changed since.
    """
    path = checkpoint_path(ckpt)
    folders = [path, path.parent.parent] if path.parent.name == "checkpoints" else [path]
    folder = next((f for f in folders if (f / "recipe.json").is_file()), None)
    if folder is None or (folder / "config.json").is_file():
        return None
    description = read_json(folder / "recipe.json", "run description", finite=False)
    try:
        name, deviates = description["recipe"]["name"], description["deviates"]
        sha256, arguments = description["recipe_sha256"], description["arguments"]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"run description {folder / 'recipe.json'} is damaged; use another copy of the run."
        ) from error
    if name not in RECIPES:
        return None  # a pretraining run, whose checkpoint has no head
    named = RECIPES[name]
    found = arguments.get("task", task)
    if found != task:
        raise DataError(
            f"{ckpt} is a run of {found}, not of {task}; use a run of `simmim-bench transfer {task}`."
        )
    try:
        check_recipe_type(task, named)
        recipe = with_deviations(named, deviates)
    except (TypeError, UsageError) as error:
        raise DataError(f"{ckpt} cannot be evaluated as {task}: {error}") from error
    if recipe.sha256() != sha256:
        raise DataError(
            f"recipe '{name}' is not the recipe that {folder} was trained with: hash mismatch; evaluate it with the "
            "version of simmim-bench that trained it."
        )
    record = read_record(folder / "record.json") if (folder / "record.json").is_file() else None
    return TrainedRun(
        path=folder,
        named=named,
        recipe=recipe,
        seed=int(arguments.get("seed", 0)) if record is None else record.seed,
        metrics={} if record is None else record.metrics,
        training_data={}
        if record is None
        else {key: record.data[key] for key in TRAINING_DATA if key in record.data},
    )
