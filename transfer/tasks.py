"""What carries out the tasks of `simmim_bench.tasks`: recipe types, runners, estimators and data checks.

Functions are named as `module:function` and imported when they are needed, so that a missing Detectron2 or
MMSegmentation is noticed only by who asks for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from simmim_bench.recipe import Recipe
from simmim_bench.tasks import TASKS, Task
from transfer.detection.recipes import CocoRecipe
from transfer.finetune.recipes import FinetuneRecipe
from transfer.frozen.recipes import KnnRecipe, LinearRecipe, LogisticRecipe
from transfer.segmentation.recipes import Ade20kRecipe


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How transfers under one type of recipe are carried out.

    Attributes:
        run: `(RunContext, TransferJob) -> Record | None`; the record on rank 0.
        estimate: `(recipe, checkpoint, DataSize, device) -> Work`.
        shares_features: whether seeds and tasks share one pass of the frozen backbone; a suite then
            runs all seeds of the task in one process, and one such task of a checkpoint at a time.
    """

    run: str
    estimate: str
    shares_features: bool = False


@dataclass(frozen=True, kw_only=True)
class TransferTask:
    """The recipes of one task.

    Attributes:
        recipe_types: the types of recipe that the task takes.
        defaults: name of the recipe that is taken where none is named, by architecture, else by
            "pocket" for the small architectures, else by family.
        recipe_modules: modules whose constants are the task's named recipes.
    """

    recipe_types: tuple[type[Recipe], ...]
    defaults: Mapping[str, str]
    recipe_modules: tuple[str, ...]


_PROBE = "transfer.frozen.run:run_probe"
_PROBE_ESTIMATE = "transfer.frozen.estimate:plan_frozen"
_FAMILIES = ("vit", "swin", "swinv2", "convnext", "resnet")

PROTOCOLS: dict[type[Recipe], Protocol] = {
    FinetuneRecipe: Protocol(
        run="transfer.finetune.run:run_finetune",
        estimate="transfer.finetune.estimate:plan_finetune",
    ),
    LinearRecipe: Protocol(run=_PROBE, estimate=_PROBE_ESTIMATE, shares_features=True),
    LogisticRecipe: Protocol(run=_PROBE, estimate=_PROBE_ESTIMATE, shares_features=True),
    KnnRecipe: Protocol(run=_PROBE, estimate=_PROBE_ESTIMATE, shares_features=True),
    CocoRecipe: Protocol(
        run="transfer.detection.run:run_coco", estimate="transfer.detection.estimate:plan_coco"
    ),
    Ade20kRecipe: Protocol(
        run="transfer.segmentation.run:run_ade20k",
        estimate="transfer.segmentation.estimate:plan_ade20k",
    ),
}

TRANSFERS: dict[str, TransferTask] = {
    "imagenet": TransferTask(
        recipe_types=(FinetuneRecipe,),
        defaults={
            "swin_l": "imagenet_swin_l_800ep",
            "pocket": "imagenet_pocket",
            "vit": "imagenet_vit_b_800ep",
            "swin": "imagenet_swin_b_800ep",
            "swinv2": "imagenet_swinv2_b_800ep",
            "convnext": "imagenet_convnext_b_100ep",
            "resnet": "imagenet_resnet50_100ep",
        },
        recipe_modules=("transfer.finetune.recipes",),
    ),
    "linear": TransferTask(
        recipe_types=(LinearRecipe, LogisticRecipe),
        defaults={"pocket": "linear_pocket", **dict.fromkeys(_FAMILIES, "linear")},
        recipe_modules=("transfer.frozen.recipes",),
    ),
    "knn": TransferTask(
        recipe_types=(KnnRecipe,),
        defaults={"pocket": "knn_pocket", **dict.fromkeys(_FAMILIES, "knn")},
        recipe_modules=("transfer.frozen.recipes",),
    ),
    "fewshot": TransferTask(
        recipe_types=(LogisticRecipe, LinearRecipe, FinetuneRecipe),
        defaults={"pocket": "logistic_pocket", **dict.fromkeys(_FAMILIES, "logistic")},
        recipe_modules=("transfer.frozen.recipes", "transfer.finetune.recipes"),
    ),
    "coco": TransferTask(
        recipe_types=(CocoRecipe,),
        defaults={
            "vit_l": "coco_vit_l_100ep",
            "pocket": "coco_pocket",
            "vit": "coco_vit_100ep",
            "swin": "coco_swin_3x",
            "swinv2": "coco_swin_3x",
            "convnext": "coco_convnext_3x",
            "resnet": "coco_resnet50_1x",
        },
        recipe_modules=("transfer.detection.recipes",),
    ),
    "ade20k": TransferTask(
        recipe_types=(Ade20kRecipe,),
        defaults={
            "pocket": "ade20k_pocket",
            "vit": "ade20k_vit_160k",
            "swin": "ade20k_swin_160k",
            "swinv2": "ade20k_swin_160k",
            "convnext": "ade20k_convnext_160k",
            "resnet": "ade20k_resnet50_160k",
        },
        recipe_modules=("transfer.segmentation.recipes",),
    ),
}

# Checks of a data set, by layout: `(folder, Reading) -> list[Finding]`.
EXAMINERS: dict[str, str] = {
    "imagenet": "transfer.finetune.examine:examine_imagenet",
    "coco": "transfer.detection.examine:examine_coco",
    "ade20k": "transfer.segmentation.examine:examine_ade20k",
}


def load_function(name: str) -> Callable[..., Any]:
    """Import the function that `module:function` names."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def protocol_of(recipe: Recipe) -> Protocol:
    """Return how transfers under a recipe are carried out."""
    return PROTOCOLS[type(recipe)]


def task_of(recipe: Recipe) -> Task:
    """Return the first task that takes a recipe; it tells the data layout and the frameworks."""
    name = next(n for n, transfer in TRANSFERS.items() if isinstance(recipe, transfer.recipe_types))
    return TASKS[name]
