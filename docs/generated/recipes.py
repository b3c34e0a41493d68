"""One page with all named recipes, and for each a section with every key, its value and its source."""

from __future__ import annotations

import functools

from generated.markdown import Page, escape
from simmim_bench.cli.options import all_recipes
from simmim_bench.cli.recipe_table import recipe_table
from simmim_bench.cli.recipes import tasks_of
from simmim_bench.recipe import Recipe


@functools.cache
def recipe_pages() -> list[Page]:
    """Return a page per group of recipes that the same tasks take."""
    pages = []
    collected: dict[str, list[Recipe]] = {}
    for recipe in all_recipes().values():
        collected.setdefault(", ".join(tasks_of(recipe)), []).append(recipe)
    for tasks, recipes in collected.items():
        path = f"recipes/{tasks.replace(', ', '-')}.md"
        parts = [
            f"# Recipes of {tasks}",
            "`simmim-bench recipes show NAME` prints the same. `-o key=value` changes a key; "
            "every difference from the named recipe is stored with the score.",
            *map(_section, recipes),
        ]
        pages.append((tasks, path, "\n\n".join(parts)))
    return pages


def _section(recipe: Recipe) -> str:
    lines = "\n".join(recipe_table(recipe))
    published = f"\n\nPublished: {escape(recipe.published)}." if recipe.published else ""
    return (
        f"## {recipe.name}\n\nSource: {escape(recipe.source)}{published}\n\n```text\n{lines}\n```"
    )
