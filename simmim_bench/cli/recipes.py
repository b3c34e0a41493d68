"""`simmim-bench recipes`: list the named recipes, or print one with its sources and the scores it aims at."""

from __future__ import annotations

import json
from typing import Any

import click

from simmim_bench.cli.options import JSON_OPTION, complete_among, pretrain_recipes, scoring_recipes
from simmim_bench.recipe import Recipe


def _recipes() -> dict[str, Recipe]:
    return {**pretrain_recipes(), **scoring_recipes()}


@click.group(invoke_without_command=True)
@JSON_OPTION
@click.pass_context
def recipes(context: click.Context, as_json: bool) -> None:
    """List all recipes by the tasks that take them; `recipes show NAME` prints one with its sources."""
    if context.invoked_subcommand is not None:
        return
    found = _recipes()
    if as_json:
        listed = [
            {"name": name, "type": type(r).__name__, "source": r.source, "published": r.published}
            | {"tasks": tasks_of(r)}
            for name, r in found.items()
        ]
        click.echo(json.dumps(listed, indent=2))
        return
    width = max(map(len, found))
    by_task: dict[str, list[str]] = {}
    for name, recipe in found.items():
        line = f"  {name:<{width}}  {type(recipe).__name__:<14}  {recipe.source}"
        by_task.setdefault(", ".join(tasks_of(recipe)), []).append(line)
    click.echo("\n\n".join("\n".join([tasks, *lines]) for tasks, lines in by_task.items()))


def tasks_of(recipe: Recipe) -> list[str]:
    """Return the tasks that take a recipe; `pretrain` or `evaluate` for one of these commands."""
    from transfer.tasks import TASK_RECIPES

    tasks = [task for task, one in TASK_RECIPES.items() if isinstance(recipe, one.recipe_types)]
    return tasks or ["pretrain" if recipe.name in pretrain_recipes() else "evaluate"]


@recipes.command("show")
@click.argument("name", shell_complete=complete_among(_recipes))
@click.option("--json", "as_json", is_flag=True, help="Print the recipe as JSON.")
def recipes_show(name: str, as_json: bool) -> None:
    """Print a recipe: every key with its value, type, meaning and source, what the recipe is the default of, and the
    published scores that it aims at.

    \b
      simmim-bench recipes show swin_b_800ep
      simmim-bench recipes show imagenet_swin_b_800ep --json
    """
    from simmim_bench.cli.recipe_table import recipe_table
    from simmim_bench.recipe import find_recipe

    recipe = find_recipe(_recipes(), name)
    plain = recipe.to_json()
    defaults, scores = _defaults(name), _published_scores(name)
    if as_json:
        click.echo(
            json.dumps({**plain, "default_of": defaults, "published_scores": scores}, indent=2)
        )
        return
    click.echo(f"{recipe.name}\nsource     {recipe.source}")
    click.echo(f"published  {recipe.published or 'no score'}\nsha256     {recipe.sha256()}")
    click.echo(f"default of {_describe_defaults(defaults)}\n")
    click.echo("\n".join(recipe_table(recipe)))
    if scores:
        click.echo("\npublished scores that the recipe aims at")
        for score in scores:
            via = [score["recipe"], score["pretraining_recipe"]]
            other = ", ".join(other for other in via if other not in (None, name))
            click.echo(
                f"{score['value']}  {score['column']}, {score['row']}"
                + (f", with {other}" if other else "")
                + f"\n    {score['protocol']}\n    {score['confidence']} confidence: {score['source']}"
                + (f"\n    {score['note']}" if score["note"] else "")
            )


def _published_scores(name: str) -> list[dict[str, Any]]:
    """Return the published scores that a recipe aims at as plain JSON."""
    from simmim_bench.leaderboard.reported import linked_scores, read_reported

    return [
        {"column": column.title, "task": column.task, "metric": column.metric}
        | {"row": row.label, **vars(score)}
        for column, row, score in linked_scores(read_reported(), name)
    ]


def _defaults(name: str) -> dict[str, dict[str, list[str]]]:
    """Return the tasks that a recipe is the default of, for which `archs` and `after` which pretraining recipes."""
    from pretrain.recipes import default_recipe
    from simmim_bench.models.archs import ARCHS
    from transfer.recipes import choose_recipe
    from transfer.tasks import TASK_RECIPES

    pretrained = [arch for arch in ARCHS if default_recipe(arch).name.split("@")[0] == name]
    found = {"pretrain": {"archs": pretrained, "after": list[str]()}}
    for task, transfer in TASK_RECIPES.items():
        found[task] = {
            "archs": [
                a for a, s in ARCHS.items() if choose_recipe(task, s, None).recipe.name == name
            ],
            "after": [recipe for recipe, chosen in transfer.after.items() if chosen == name],
        }
    return {task: chosen for task, chosen in found.items() if chosen["archs"] or chosen["after"]}


def _describe_defaults(defaults: dict[str, dict[str, list[str]]]) -> str:
    """Describe what a recipe is the default of, such as `imagenet for vit_b, and after vit_b_800ep`."""
    texts = []
    for task, chosen in defaults.items():
        reasons = [("for", chosen["archs"]), ("after", chosen["after"])]
        parts = [f"{word} {', '.join(names)}" for word, names in reasons if names]
        texts.append(f"{task} {', and '.join(parts)}")
    return "; ".join(texts) or "nothing"
