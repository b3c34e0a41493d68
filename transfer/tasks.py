"""Map each task of `simmim_bench.tasks` to its recipes, runner, cost estimator and data check.

To add a task, first add its entry to `simmim_bench/tasks.py`, then its recipes to `TASK_RECIPES` here; a new type of
recipe also needs an entry in `RUNNERS`, and a new data layout one in `DATA_CHECKS`.

Functions are named as `module:function` and imported when they are called, so that Detectron2 and MMSegmentation are
imported only by the tasks that need them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simmim_bench.imports import without_collection
from simmim_bench.recipe import Recipe
from simmim_bench.tasks import TASKS, Task
from transfer.attentive.recipes import AttentiveRecipe
from transfer.dense.recipes import DenseKnnRecipe, DenseLogisticRecipe
from transfer.detection.recipes import CocoRecipe
from transfer.finetune.recipes import FinetuneRecipe
from transfer.frozen.recipes import KnnRecipe, LinearRecipe, LogisticRecipe
from transfer.segmentation.recipes import Ade20kRecipe


@dataclass(frozen=True, kw_only=True)
class TaskRunner:
    """The functions that run and estimate transfers under one type of recipe.

    Attributes:
        run: `(RunContext, TransferJob) -> Record | None`; the record on rank 0.
        estimate: `(recipe, checkpoint, DataSize, device) -> Work`.
        shares_features: whether seeds and tasks share one pass of the frozen backbone; a suite then
            runs all seeds of the task in one process, and one such task of a checkpoint at a time.
        frameworks: packages beyond the core installation that must be importable.
    """

    run: str
    estimate: str
    shares_features: bool = False
    frameworks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskRecipes:
    """The recipes of one task.

    Attributes:
        recipe_types: the types of recipe that the task takes; the first is that of the default recipes.
        defaults: name of the default recipe, looked up by architecture, then by `recipe_family`.
        recipe_modules: modules whose constants are the task's named recipes.
        after: name of the default recipe after a pretraining recipe that the task has a published recipe
            for; it comes before `defaults`.
    """

    recipe_types: tuple[type[Recipe], ...]
    defaults: Mapping[str, str]
    recipe_modules: tuple[str, ...]
    after: Mapping[str, str] = field(default_factory=dict)


_PROBE = "transfer.frozen.run:run_probe"
_PROBE_ESTIMATE = "transfer.frozen.estimate:plan_frozen"
_DENSE = "transfer.dense.run:run_dense"
_DENSE_ESTIMATE = "transfer.dense.estimate:plan_dense"
_FROZEN_RECIPES = ("transfer.frozen.recipes", "transfer.frozen.published_recipes")
_FINETUNE_RECIPES = tuple(
    f"transfer.finetune.{module}"
    for module in (
        "recipes",
        "simmim_recipes",
        "mae_recipes",
        "beit_recipes",
        "convnet_recipes",
        "semivit_recipes",
        "any_recipes",
    )
)
_EXTERNAL = ("timm", "python")  # families of networks of other code
_FAMILIES = ("vit", "swin", "swinv2", "convnext", "resnet", *_EXTERNAL)

RUNNERS: dict[type[Recipe], TaskRunner] = {
    FinetuneRecipe: TaskRunner(
        run="transfer.finetune.run:run_finetune",
        estimate="transfer.finetune.estimate:plan_finetune",
    ),
    LinearRecipe: TaskRunner(run=_PROBE, estimate=_PROBE_ESTIMATE, shares_features=True),
    LogisticRecipe: TaskRunner(run=_PROBE, estimate=_PROBE_ESTIMATE, shares_features=True),
    AttentiveRecipe: TaskRunner(
        run="transfer.attentive.run:run_attentive",
        estimate="transfer.attentive.estimate:plan_attentive",
    ),
    KnnRecipe: TaskRunner(run=_PROBE, estimate=_PROBE_ESTIMATE, shares_features=True),
    CocoRecipe: TaskRunner(
        run="transfer.detection.run:run_coco",
        estimate="transfer.detection.estimate:plan_coco",
        frameworks=("detectron2",),
    ),
    Ade20kRecipe: TaskRunner(
        run="transfer.segmentation.run:run_ade20k",
        estimate="transfer.segmentation.estimate:plan_ade20k",
        frameworks=("mmengine", "mmcv", "mmseg"),
    ),
    DenseKnnRecipe: TaskRunner(run=_DENSE, estimate=_DENSE_ESTIMATE),
    DenseLogisticRecipe: TaskRunner(run=_DENSE, estimate=_DENSE_ESTIMATE),
}

TASK_RECIPES: dict[str, TaskRecipes] = {
    "imagenet": TaskRecipes(
        recipe_types=(FinetuneRecipe,),
        defaults={
            "vit_b": "imagenet_vit_b_800ep",
            "vit_l": "imagenet_vit_l_800ep",
            "vit_h": "imagenet_mae_vit_h",
            "swin_b": "imagenet_swin_b_800ep",
            "swin_l": "imagenet_swin_l_800ep",
            "swinv2_b": "imagenet_swinv2_b_800ep_prefix",
            "convnext_b": "imagenet_convnext_b_100ep",
            "resnet50": "imagenet_resnet50_100ep",
            "pocket": "imagenet_pocket",
            "64px": "imagenet_64px",
            "vit": "imagenet_vit_b_800ep",
            "swin": "imagenet_swin_b_800ep",
            "swinv2": "imagenet_swinv2_b_800ep_prefix",
            "convnext": "imagenet_convnext_b_100ep",
            "resnet": "imagenet_resnet50_100ep",
            **dict.fromkeys(_EXTERNAL, "imagenet_any"),
        },
        recipe_modules=_FINETUNE_RECIPES,
        # SimMIM: README.md (Main Results); the folders of configs/ hold the recipes that belong together.
        after={
            "vit_b_800ep": "imagenet_vit_b_800ep",
            "swin_b_100ep": "imagenet_swin_b_100ep",
            "swin_b_800ep": "imagenet_swin_b_800ep",
            "swin_l_800ep": "imagenet_swin_l_800ep",
            "swinv2_b_800ep": "imagenet_swinv2_b_800ep_prefix",
            "resnet50_300ep": "imagenet_resnet50_rsb_a2",
        },
    ),
    "linear": TaskRecipes(
        recipe_types=(LinearRecipe, LogisticRecipe),
        defaults={
            "pocket": "linear_pocket",
            "64px": "linear_64px",
            **dict.fromkeys(_FAMILIES, "linear"),
        },
        recipe_modules=_FROZEN_RECIPES,
    ),
    "attentive": TaskRecipes(
        recipe_types=(AttentiveRecipe,),
        defaults={
            "pocket": "attentive_pocket",
            "64px": "attentive_64px",
            **dict.fromkeys(_FAMILIES, "attentive"),
        },
        recipe_modules=("transfer.attentive.recipes",),
    ),
    "knn": TaskRecipes(
        recipe_types=(KnnRecipe,),
        defaults={
            "pocket": "knn_pocket",
            "64px": "knn_64px",
            **dict.fromkeys(_FAMILIES, "knn"),
        },
        recipe_modules=_FROZEN_RECIPES,
    ),
    "fewshot": TaskRecipes(
        recipe_types=(LogisticRecipe, LinearRecipe, FinetuneRecipe),
        defaults={
            "pocket": "logistic_pocket",
            "64px": "logistic_64px",
            **dict.fromkeys(_FAMILIES, "logistic"),
        },
        recipe_modules=(*_FROZEN_RECIPES, *_FINETUNE_RECIPES),
    ),
    "coco": TaskRecipes(
        recipe_types=(CocoRecipe,),
        defaults={
            "vit_l": "coco_vitdet_l",
            "vit_h": "coco_vitdet_h",
            "swin_l": "coco_swin_od_3x_own_window",
            "pocket": "coco_pocket",
            "64px": "coco_144px",
            "vit": "coco_vitdet_b",
            "swin": "coco_swin_od_3x",
            "swinv2": "coco_swin_od_3x_own_window",
            "convnext": "coco_convnext_3x",
            "resnet": "coco_resnet50_1x",
            **dict.fromkeys(_EXTERNAL, "coco_any"),
        },
        recipe_modules=(
            "transfer.detection.own_recipes",
            "transfer.detection.vitdet_recipes",
            "transfer.detection.swin_recipes",
            "transfer.detection.any_recipes",
        ),
    ),
    "ade20k": TaskRecipes(
        recipe_types=(Ade20kRecipe, DenseKnnRecipe, DenseLogisticRecipe),
        defaults={
            "vit_l": "ade20k_mae_vit_l",
            "vit_h": "ade20k_mae_vit_h",
            "swin_l": "ade20k_swin_w12",
            "convnext_t": "ade20k_convnext_t_512",
            "convnext_s": "ade20k_convnext_s_512",
            "pocket": "ade20k_pocket",
            "64px": "ade20k_96px",
            "vit": "ade20k_mae_vit_b",
            "swin": "ade20k_swin_w7",
            "swinv2": "ade20k_swinv2",
            "convnext": "ade20k_convnext_512",
            "resnet": "ade20k_resnet50_160k",
            **dict.fromkeys(_EXTERNAL, "ade20k_any"),
        },
        recipe_modules=(
            "transfer.segmentation.recipes",
            "transfer.segmentation.mmseg_recipes",
            "transfer.segmentation.beit_recipes",
            "transfer.segmentation.dinov2_recipes",
            "transfer.segmentation.any_recipes",
            "transfer.dense.recipes",
        ),
    ),
}

# Checks of a data set, by layout: `(folder, Reading) -> list[Finding]`.
DATA_CHECKS: dict[str, str] = {
    "imagenet": "transfer.finetune.doctor_checks:check_imagenet",
    "coco": "transfer.detection.doctor_checks:check_coco",
    "ade20k": "transfer.segmentation.doctor_checks:check_ade20k",
}


def load_function(name: str) -> Callable[..., Any]:
    """Import the function that `module:function` names."""
    module, _, function = name.partition(":")
    with without_collection():
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def runner_of(recipe: Recipe) -> TaskRunner:
    """Return the runner of a recipe's type."""
    return RUNNERS[type(recipe)]


def task_of(recipe: Recipe) -> Task:
    """Return the first task that takes a recipe; it has the data layout."""
    name = next(
        n for n, transfer in TASK_RECIPES.items() if isinstance(recipe, transfer.recipe_types)
    )
    return TASKS[name]


def frameworks_for(task: Task, recipe: Recipe | None = None) -> set[str]:
    """Return the packages that a task needs beyond the core installation.

    Args:
        recipe: the recipe that is used; one of another task, or None, for the task's default recipe.
    """
    recipe_types = TASK_RECIPES[task.name].recipe_types
    used = type(recipe) if isinstance(recipe, recipe_types) else recipe_types[0]
    return set(RUNNERS[used].frameworks)
