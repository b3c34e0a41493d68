"""Render what reproducing SimMIM's published scores takes: recipes, expected scores and GPU-hours.

The scores are those of `simmim_bench/leaderboard/reported.json` whose pretraining and transfer both have a recipe; the
hours are those of results/costs.json, on the card that it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simmim_bench.leaderboard.reported import ReportedRow
from simmim_bench.leaderboard.text_tables import MISSING, plain_table
from simmim_bench.tasks import columns


def markdown(rows: Sequence[ReportedRow], costs: Sequence[Mapping[str, Any]]) -> str:
    """Render a Markdown table with one line per published score.

    Args:
        rows: all published rows.
        costs: of results/costs.json.
    """
    by_recipe = {cost["recipe"]: cost for cost in costs}
    lines = []
    for row in rows:
        for column, score in zip(columns(), row.scores, strict=True):
            if score is None or score.recipe is None or score.pretraining_recipe is None:
                continue
            names = (score.pretraining_recipe, score.recipe)
            lines.append(
                [
                    row.backbone,
                    *(f"`{name}`" for name in names),
                    f"{column.title} {score.value}",
                    *(_hours(by_recipe.get(name)) for name in names),
                    f"`{score.source.partition(' (')[0]}`",
                ]
            )
    hours = ("pretraining, GPU-hours", "transfer, GPU-hours")
    titles = ["backbone", "pretraining", "transfer", "published", *hours, "source"]
    return plain_table(titles, lines, right=(4, 5))


def _hours(cost: Mapping[str, Any] | None) -> str:
    """Format the hours of one GPU, with a star where the rate was not measured."""
    if cost is None:
        return MISSING
    hours = cost["images"] / cost["images_per_s"] / 3600
    return f"{hours:,.0f}{'' if cost['measured'] else ' *'}"
