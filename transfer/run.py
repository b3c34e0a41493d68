"""From a task's name to its recipe and its runner.

In: what `simmim-bench transfer` is given. Out: the record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.distributed import DistContext
from simmim_bench.errors import UsageError
from simmim_bench.results.record import Record
from simmim_bench.runs.run_dir import RunDir
from transfer.detection.recipes import CocoRecipe
from transfer.finetune.recipes import FinetuneRecipe
from transfer.frozen.recipes import KnnRecipe, LinearRecipe, LogisticRecipe
from transfer.recipes import TransferRecipe, check_kind
from transfer.segmentation.recipes import Ade20kRecipe


def run_transfer(
    task: str,
    *,
    checkpoint: Checkpoint,
    data: Path,
    run: RunDir,
    recipe: TransferRecipe,
    deviates: dict[str, Any],
    seed: int,
    resume: bool = False,
    fraction: float = 1.0,
    split: Path | None = None,
    features: Path | None = None,
    dist: DistContext | None = None,
    accumulate: int | None = None,
    grad_checkpointing: bool = False,
    label_maps: bool = False,
) -> Record | None:
    """Run one task with a recipe of its kind.

    Args:
        fraction: share of the training images that `fewshot` may see.
        split: a file that lists them instead.
        features: folder of kept features; spares `linear`, `knn` and `fewshot` a pass of the backbone each.
        team: the processes of this run; the record is the main one's. None for this one alone.
        accumulate, grad_checkpointing: see `run_coco`.
        label_maps: see `run_ade20k`.

    Raises:
        UsageError: the recipe or an option is for another task.
        MissingEngineError: Detectron2 or MMSegmentation is not installed.
        DataError: images, annotations or weights that cannot be used.
        DivergedError: the loss is not finite.
    """
    common: dict[str, Any] = {
        "checkpoint": checkpoint,
        "data": data,
        "run": run,
        "deviates": deviates,
        "seed": seed,
    }
    check_kind(task, recipe)
    if split is not None and task != "fewshot":
        raise UsageError(f"--split {split} is for fewshot; {task} learns from all training images.")
    few: dict[str, Any] = {"fraction": fraction, "split": split, "team": dist}
    match task, recipe:
        case "imagenet" | "fewshot", FinetuneRecipe():
            from transfer.finetune.run import run_finetune

            return run_finetune(task, recipe=recipe, resume=resume, **few, **common)
        case "linear" | "fewshot", (LinearRecipe() | LogisticRecipe()) as frozen:
            from transfer.frozen.run import run_probe

            return run_probe(task, recipe=frozen, features=features, **few, **common)
        case "knn", KnnRecipe():
            from transfer.frozen.run import run_probe

            return run_probe(task, recipe=recipe, features=features, **few, **common)
        case "coco", CocoRecipe():
            from transfer.detection.run import run_coco

            return run_coco(
                recipe=recipe,
                resume=resume,
                dist=dist,
                accumulate=accumulate,
                grad_checkpointing=grad_checkpointing,
                **common,
            )
        case "ade20k", Ade20kRecipe():
            from transfer.segmentation.run import run_ade20k

            return run_ade20k(
                recipe=recipe, resume=resume, dist=dist, label_maps=label_maps, **common
            )
    raise AssertionError(f"{task} is not done with recipe {recipe.name}")
