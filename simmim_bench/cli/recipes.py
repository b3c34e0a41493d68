"""`simmim-bench recipes`: list the named recipes, or print one with its sources."""

from __future__ import annotations

import json

import click

from simmim_bench.cli.options import complete_among, pretrain_recipes, scoring_recipes
from simmim_bench.recipe import Recipe


def _recipes() -> dict[str, Recipe]:
    return {**pretrain_recipes(), **scoring_recipes()}


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List all recipes; `recipes show NAME` prints one with its sources."""
    if context.invoked_subcommand is None:
        found = _recipes()
        width = max(map(len, found))
        for name, recipe in found.items():
            click.echo(f"{name:<{width}}  {type(recipe).__name__:<14}  {recipe.source}")


@recipes.command("show")
@click.argument("name", shell_complete=complete_among(_recipes))
@click.option("--json", "as_json", is_flag=True, help="Print the recipe as JSON.")
def recipes_show(name: str, as_json: bool) -> None:
    """Print a recipe: every number with its source, and the published score.

    \b
      simmim-bench recipes show swin_b_800ep
      simmim-bench recipes show imagenet_swin_b_800ep --json
    """
    from simmim_bench.recipe import ABOUT, find_recipe

    recipe = find_recipe(_recipes(), name)
    plain = recipe.to_json()
    if as_json:
        click.echo(json.dumps(plain, indent=2))
        return
    shown = {key: json.dumps(value) for key, value in plain.items() if key not in ABOUT}
    width, value_width = max(map(len, shown)), min(32, max(map(len, shown.values())))
    click.echo(f"{recipe.name}\nsource     {recipe.source}")
    click.echo(f"published  {recipe.published or 'no score'}\nsha256     {recipe.sha256()}\n")
    for key, value in shown.items():
        source = recipe.source_of(key) if key in recipe.sources else ""
        click.echo(f"{key:<{width}}  {value:<{value_width}}  {source}".rstrip())
