"""The named transfer recipes, and which one a task takes for an architecture.

The numbers, each with its source, are in the rooms of the tasks: `finetune/recipes.py`, `frozen/recipes.py`,
`detection/recipes.py` and `segmentation/recipes.py`. `tasks.py` says which task takes which type of recipe.
"""

from __future__ import annotations

import importlib

from simmim_bench.errors import UsageError, nearest
from simmim_bench.models.archs import BackboneSpec
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


def default_recipe(task: str, spec: BackboneSpec) -> Recipe:
    """Return the recipe that a task takes for an architecture where none is named."""
    defaults = TASK_RECIPES[task].defaults
    family = "pocket" if spec.arch.endswith("_pocket") else spec.family
    return RECIPES[defaults.get(spec.arch, defaults[family])]


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
