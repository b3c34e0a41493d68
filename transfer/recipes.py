"""Transfer recipes: one dataclass a task, named constants, and which one a task takes for an arch.

The numbers, each with its source, are in `finetune_recipes`, `frozen_recipes` and `dense_recipes`.
"""

from __future__ import annotations

from simmim_bench.archs import BackboneSpec
from simmim_bench.errors import UsageError, nearest
from transfer import dense_recipes, finetune_recipes, frozen_recipes
from transfer.dense_recipes import Ade20kRecipe, CocoRecipe
from transfer.finetune_recipes import FinetuneRecipe
from transfer.frozen_recipes import KnnRecipe, LinearRecipe, LogisticRecipe

TransferRecipe = (
    FinetuneRecipe | LinearRecipe | LogisticRecipe | KnnRecipe | CocoRecipe | Ade20kRecipe
)
RECIPES: dict[str, TransferRecipe] = {
    recipe.name: recipe
    for module in (finetune_recipes, frozen_recipes, dense_recipes)
    for recipe in vars(module).values()
    if isinstance(recipe, TransferRecipe)
}


# task -> whose recipe: small archs, ViT, Swin, Swin V2
_DEFAULTS = {
    "imagenet": (
        "imagenet_pocket",
        "imagenet_vit_b_800ep",
        "imagenet_swin_b_800ep",
        "imagenet_swinv2_b_800ep",
    ),
    "linear": ("linear_pocket", "linear", "linear", "linear"),
    "knn": ("knn_pocket", "knn", "knn", "knn"),
    "fewshot": ("logistic_pocket", "logistic", "logistic", "logistic"),
    "coco": ("coco_pocket", "coco_vit_100ep", "coco_swin_3x", "coco_swin_3x"),
    "ade20k": ("ade20k_pocket", "ade20k_vit_160k", "ade20k_swin_160k", "ade20k_swin_160k"),
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
    pocket, vit, swin, swinv2 = _DEFAULTS[task]
    if spec.arch.endswith("_pocket"):
        return RECIPES[pocket]
    if (task, spec.arch) in _OF_ARCH:
        return _OF_ARCH[task, spec.arch]
    return RECIPES[{"vit": vit, "swin": swin, "swinv2": swinv2}[spec.family]]


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
