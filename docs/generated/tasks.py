"""One page per transfer task: the text in `texts/`, then its recipes, the published scores and the costs."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

from generated.markdown import Page, escape
from simmim_bench.display import format_duration
from simmim_bench.leaderboard.reported import linked_scores, read_reported
from simmim_bench.leaderboard.text_tables import plain_table
from simmim_bench.models.archs import ARCHS
from simmim_bench.recipe import Recipe
from simmim_bench.tasks import TASKS
from transfer.recipes import RECIPES, choose_recipe
from transfer.tasks import TASK_RECIPES

HERE = Path(__file__).resolve().parent
COSTS = HERE.parents[1] / "benchmarks" / "results" / "costs.json"
MOST_LISTED = 8  # architectures in a cell of the table
OTHERS = ("shift",)  # pages with a text alone


@functools.cache
def task_pages() -> list[Page]:
    """Return a page per task."""
    pages = []
    for name in (*TASKS, *OTHERS):
        text = (HERE / "texts" / f"{name}.md").read_text(encoding="utf-8").rstrip()
        parts = [text, *_generated(name)] if name in TASKS else [text]
        title = text.splitlines()[0].lstrip("# ")
        pages.append((title, f"tasks/{name}.md", "\n\n".join(parts)))
    return pages


def _generated(task: str) -> Iterator[str]:
    """Yield the sections that follow from the registry, the recipes and the results."""
    recipes = [one for one in RECIPES.values() if isinstance(one, TASK_RECIPES[task].recipe_types)]
    yield "## Recipes\n\n" + plain_table(
        ["recipe", "default of", "source"],
        ([f"`{one.name}`", _default_of(task, one), escape(one.source)] for one in recipes),
    )
    scores = dict.fromkeys(_published(task, recipes))
    if scores:
        yield (
            "## Published scores that the recipes aim at\n\nThey are quoted, not computed here.\n\n"
            + plain_table(["recipe", "checkpoint", "metric", "score", "source"], scores, right=(3,))
        )
    costs = list(_costs({one.name for one in recipes}))
    if costs:
        device = json.loads(COSTS.read_text(encoding="utf-8"))["device"]
        yield (
            f"## Cost at full size\n\nOn one {device}, in bfloat16; * is estimated from the operations of a step.\n\n"
            + plain_table(["recipe", "images", "images/s", "time"], costs, right=(1, 2, 3))
        )


def _default_of(task: str, recipe: Recipe) -> str:
    archs = [a for a, spec in ARCHS.items() if choose_recipe(task, spec, None).recipe is recipe]
    after = [name for name, chosen in TASK_RECIPES[task].after.items() if chosen == recipe.name]
    listed = ", ".join(archs) if len(archs) <= MOST_LISTED else f"{len(archs)} architectures"
    texts = [listed, f"after {', '.join(after)}" if after else ""]
    return "; ".join(filter(None, texts))


def _published(task: str, recipes: list[Recipe]) -> Iterator[tuple[str, ...]]:
    """Yield the published scores of a task's recipes as lines of a table."""
    rows = read_reported()
    for recipe in recipes:
        for column, row, score in linked_scores(rows, recipe.name):
            if column.task.partition("-")[0] == task and score.recipe == recipe.name:
                yield (
                    f"`{recipe.name}`",
                    escape(row.label),
                    column.title,
                    f"{score.value:.1f}",
                    escape(score.source),
                )


def _costs(recipes: set[str]) -> Iterator[tuple[str, ...]]:
    """Yield the measured and estimated costs of some recipes as lines of a table."""
    for cost in json.loads(COSTS.read_text(encoding="utf-8"))["costs"]:
        if cost["recipe"] in recipes:
            yield (
                f"`{cost['recipe']}`, {cost['arch']}",
                f"{cost['images'] / 1e6:,.1f} M",
                f"{cost['images_per_s']:,.3g}{'' if cost['measured'] else ' *'}",
                format_duration(cost["images"] / cost["images_per_s"]),
            )
