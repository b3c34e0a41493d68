"""The option --help-recipe: print the keys of the recipe that a command would use, and exit.

Nothing here loads torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from simmim_bench.errors import UsageError

if TYPE_CHECKING:
    from simmim_bench.recipe import Recipe

HELP_RECIPE = "--help-recipe"
HELP_RECIPE_OPTION = click.option(
    HELP_RECIPE,
    is_flag=True,
    help="Print the keys of the recipe that the other arguments choose, with meaning, type and value, and exit.",
)
ChooseRecipe = Callable[[Mapping[str, Any]], "Recipe"]


class RecipeCommand(click.Command, ABC):
    """A command with --help-recipe, which needs no required option."""

    @abstractmethod
    def choose_recipe(self, given: Mapping[str, Any]) -> Recipe:
        """Return the recipe that the command's arguments choose, before -o."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; with --help-recipe, print the recipe and exit."""
        if HELP_RECIPE not in args:
            return super().parse_args(ctx, args)
        ctx.resilient_parsing = True  # required options may be missing
        super().parse_args(ctx, args)
        print_recipe(ctx.params, self.choose_recipe)
        ctx.exit()


def print_recipe(given: dict[str, Any], choose_recipe: ChooseRecipe) -> None:
    """Print the recipe that some arguments choose, with the changes that they make to it.

    Raises:
        UsageError: see `find_recipe` and `override`.
    """
    from simmim_bench.cli.recipe_options import pop_overrides
    from simmim_bench.cli.recipe_table import recipe_table
    from simmim_bench.overrides import override

    overrides, config = pop_overrides(given)
    named = choose_recipe({**given, "recipe": given["recipe"] or config.recipe})
    recipe = override(named, overrides)
    click.echo(f"{named.name}\nsource     {named.source}\n")
    click.echo("\n".join(recipe_table(recipe, named)))
    click.echo("\nChange a key with -o KEY=VALUE, or several with --config FILE.yaml.")


def pretraining_recipe(given: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a pretraining: the named one, or the default of --arch."""
    from pretrain.recipes import RECIPES, default_recipe, for_arch
    from simmim_bench.recipe import find_recipe

    arch = given.get("arch")
    if given["recipe"] is None:
        return default_recipe(arch or "vit_b")
    named = find_recipe(RECIPES, given["recipe"])
    return named if arch is None else for_arch(named, arch)


def transfer_recipe(given: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a transfer: the named one, or the task's default for --ckpt.

    Raises:
        UsageError: no task, or an unknown recipe or one of another task.
    """
    from simmim_bench.api.arguments import spec_of
    from simmim_bench.models.archs import ARCHS
    from simmim_bench.recipe import find_recipe
    from transfer.recipes import RECIPES, check_recipe_type, choose_recipe
    from transfer.tasks import TASK_RECIPES

    task = given.get("task")
    if task not in TASK_RECIPES:
        raise UsageError(f"{HELP_RECIPE} needs a task before it: {', '.join(TASK_RECIPES)}.")
    if given["recipe"] is not None:
        recipe = find_recipe(RECIPES, given["recipe"])
        check_recipe_type(task, recipe)
        return recipe
    spec, pretraining = spec_of(given.get("ckpt")) or (ARCHS["vit_b"], None)
    return choose_recipe(task, spec, pretraining).recipe


def evaluation_recipe(given: Mapping[str, Any]) -> Recipe:
    """Return the recipe of an evaluation: the named one, or that of the task's classifiers or models.

    Raises:
        UsageError: no task, or an unknown recipe.
    """
    from simmim_bench.recipe import find_recipe
    from transfer.evaluate.recipes import EVALUATE_IMAGENET, RECIPES
    from transfer.recipes import RECIPES as TRANSFER_RECIPES

    if given["recipe"] is not None:
        return find_recipe({**TRANSFER_RECIPES, **RECIPES}, given["recipe"])
    return EVALUATE_IMAGENET if given.get("task") == "imagenet" else transfer_recipe(given)
