"""The named transfer recipes, and which one a task takes for a checkpoint.

The numbers, each with its source, are in the modules `*recipes.py` of `finetune/`, `frozen/`, `detection/` and
`segmentation/`, which `tasks.py` lists by task.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from simmim_bench.errors import UsageError, nearest
from simmim_bench.models.archs import recipe_family
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.recipe import Recipe
from transfer.tasks import RUNNERS, TASK_RECIPES


def _named_recipes() -> dict[str, Recipe]:
    """Collect the constants of every task's recipe modules, by name."""
    modules = [module for transfer in TASK_RECIPES.values() for module in transfer.recipe_modules]
    return {
        recipe.name: recipe
        for module in dict.fromkeys(modules)
        for recipe in vars(importlib.import_module(module)).values()
        if type(recipe) in RUNNERS
    }


RECIPES: dict[str, Recipe] = _named_recipes()


# TAG of the official pretraining configurations, which their files hold, and the recipe of the same numbers here.
# SimMIM: configs/*/simmim_pretrain__*.yaml; the last one is microsoft/Swin-Transformer's, in configs/simmim.
OFFICIAL_TAGS = {
    "simmim_pretrain__vit_base__img224__800ep": "vit_b_800ep",
    "simmim_pretrain__swin_base__img192_window6__100ep": "swin_b_100ep",
    "simmim_pretrain__swin_base__img192_window6__800ep": "swin_b_800ep",
    "simmim_pretrain__swin_large__img192_window12__800ep": "swin_l_800ep",
    "simmim_pretrain__swinv2_base__img192_window12__800ep": "swinv2_b_800ep",
}


def pretraining_recipe(provenance: Mapping[str, Any]) -> str | None:
    """Return the name of the recipe that a checkpoint was pretrained by, from its provenance.

    An official SimMIM file has its configuration's tag instead. None where neither is known.
    """
    recipe = provenance.get("recipe")
    name = recipe.get("name") if isinstance(recipe, Mapping) else None
    return name or OFFICIAL_TAGS.get(provenance.get("tag", ""))


class DefaultRecipe(NamedTuple):
    """The recipe that a task takes where none is named, and why, for the log."""

    recipe: Recipe
    reason: str


def choose_recipe(task: str, spec: BackboneSpec, pretraining: str | None) -> DefaultRecipe:
    """Choose the recipe that a task takes for a checkpoint where none is named.

    Args:
        pretraining: name of the checkpoint's pretraining recipe; None where it is not known.

    Returns:
        The recipe that is published for the pretraining recipe, else the architecture's, else the family's.
    """
    defaults, after = TASK_RECIPES[task].defaults, TASK_RECIPES[task].after
    family = recipe_family(spec)
    if pretraining is not None and pretraining in after:
        return DefaultRecipe(RECIPES[after[pretraining]], f"published after {pretraining}")
    if spec.arch in defaults:
        return DefaultRecipe(RECIPES[defaults[spec.arch]], f"default of {spec.arch}")
    reason = f"default of the family {family}; none is for {spec.arch} alone"
    return DefaultRecipe(RECIPES[defaults[family]], reason)


def default_recipe(task: str, spec: BackboneSpec, pretraining: str | None = None) -> Recipe:
    """Return the recipe of `choose_recipe`."""
    return choose_recipe(task, spec, pretraining).recipe


def check_recipe_type(task: str, recipe: Recipe) -> None:
    """Refuse a recipe of another task.

    Raises:
        UsageError: the recipe is of another task, or the task is unknown.
    """
    if task not in TASK_RECIPES:
        raise UsageError(f"unknown task '{task}'; {nearest(task, TASK_RECIPES)}")
    if not isinstance(recipe, TASK_RECIPES[task].recipe_types):
        raise UsageError(
            f"recipe '{recipe.name}' is not for {task}; `simmim-bench recipes` lists the type of each."
        )
