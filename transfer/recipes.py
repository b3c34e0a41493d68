"""Transfer recipes: one dataclass a task, named constants, and which one a task takes for an arch.

The numbers, each with its source, are in `finetune_recipes`, `frozen_recipes` and `dense_recipes`.
"""

from __future__ import annotations

from typing import get_args

from simmim_bench.errors import UsageError, nearest
from simmim_bench.models.archs import BackboneSpec, Family
from transfer.detection import recipes as dense_recipes
from transfer.detection.recipes import CocoRecipe
from transfer.finetune import recipes as finetune_recipes
from transfer.finetune.recipes import FinetuneRecipe
from transfer.frozen import recipes as frozen_recipes
from transfer.frozen.recipes import KnnRecipe, LinearRecipe, LogisticRecipe
from transfer.segmentation.recipes import Ade20kRecipe

TransferRecipe = (
    FinetuneRecipe | LinearRecipe | LogisticRecipe | KnnRecipe | CocoRecipe | Ade20kRecipe
)
RECIPES: dict[str, TransferRecipe] = {
    recipe.name: recipe
    for module in (finetune_recipes, frozen_recipes, dense_recipes)
    for recipe in vars(module).values()
    if isinstance(recipe, TransferRecipe)
}


FAMILIES = get_args(Family)
# task -> whose recipe, by family; small archs have their own
_DEFAULTS: dict[str, dict[str, str]] = {
    "imagenet": {
        "pocket": "imagenet_pocket",
        "vit": "imagenet_vit_b_800ep",
        "swin": "imagenet_swin_b_800ep",
        "swinv2": "imagenet_swinv2_b_800ep",
        "convnext": "imagenet_convnext_b_100ep",
        "resnet": "imagenet_resnet50_100ep",
    },
    "linear": {"pocket": "linear_pocket", **dict.fromkeys(FAMILIES, "linear")},
    "knn": {"pocket": "knn_pocket", **dict.fromkeys(FAMILIES, "knn")},
    "fewshot": {"pocket": "logistic_pocket", **dict.fromkeys(FAMILIES, "logistic")},
    "coco": {
        "pocket": "coco_pocket",
        "vit": "coco_vit_100ep",
        "swin": "coco_swin_3x",
        "swinv2": "coco_swin_3x",
        "convnext": "coco_convnext_3x",
        "resnet": "coco_resnet50_1x",
    },
    "ade20k": {
        "pocket": "ade20k_pocket",
        "vit": "ade20k_vit_160k",
        "swin": "ade20k_swin_160k",
        "swinv2": "ade20k_swin_160k",
        "convnext": "ade20k_convnext_160k",
        "resnet": "ade20k_resnet50_160k",
    },
}
TASKS = tuple(_DEFAULTS)
_KINDS: dict[str, tuple[type[TransferRecipe], ...]] = {
    "imagenet": (FinetuneRecipe,),
    "linear": (LinearRecipe, LogisticRecipe),
    "knn": (KnnRecipe,),
    "fewshot": (LogisticRecipe, LinearRecipe, FinetuneRecipe),
    "coco": (CocoRecipe,),
    "ade20k": (Ade20kRecipe,),
}
_OF_ARCH: dict[tuple[str, str], TransferRecipe] = {
    ("imagenet", "swin_l"): finetune_recipes.IMAGENET_SWIN_L_800EP,
    ("coco", "vit_l"): dense_recipes.COCO_VIT_L_100EP,
}


def default_recipe(task: str, spec: BackboneSpec) -> TransferRecipe:
    """Give the recipe that a task takes for an arch when none is named."""
    if spec.arch.endswith("_pocket"):
        return RECIPES[_DEFAULTS[task]["pocket"]]
    if (task, spec.arch) in _OF_ARCH:
        return _OF_ARCH[task, spec.arch]
    return RECIPES[_DEFAULTS[task][spec.family]]


def check_kind(task: str, recipe: TransferRecipe) -> None:
    """Refuse a recipe of another task.

    Raises:
        UsageError: that, or the task is unknown.
    """
    if task not in TASKS:
        raise UsageError(f"unknown task '{task}'; {nearest(task, TASKS)}")
    if not isinstance(recipe, _KINDS[task]):
        raise UsageError(
            f"recipe '{recipe.name}' is not for {task}; `simmim-bench recipes` lists which is."
        )
