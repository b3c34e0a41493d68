"""Render what reproducing SimMIM's published scores takes: recipes, expected scores and GPU-hours.

The scores are those of `simmim_bench/leaderboard/reported.json` whose pretraining and transfer both have a recipe; the
hours are those of results/costs.json, on the card that it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simmim_bench.leaderboard.reported import ReportedRow
from simmim_bench.tasks import columns

UNKNOWN = "–"


def markdown(rows: Sequence[ReportedRow], costs: Sequence[Mapping[str, Any]]) -> str:
    """Render a Markdown table with one line per published score.

    Args:
        rows: all published rows.
        costs: of results/costs.json.
    """
    by_recipe = {cost["recipe"]: cost for cost in costs}
    lines = [
        "| backbone | pretraining | transfer | published | pretraining, GPU-hours | transfer, GPU-hours | source |",
        "| --- | --- | --- | --- | ---: | ---: | --- |",
    ]
    for row in rows:
        for column, score in zip(columns(), row.scores, strict=True):
            if score is None or score.recipe is None or score.pretraining_recipe is None:
                continue
            hours = [
                _hours(by_recipe.get(name)) for name in (score.pretraining_recipe, score.recipe)
            ]
            source = score.source.partition(" (")[0]
            lines.append(
                f"| {row.backbone} | `{score.pretraining_recipe}` | `{score.recipe}` | {column.title} {score.value} "
                f"| {hours[0]} | {hours[1]} | `{source}` |"
            )
    return "\n".join(lines)


def _hours(cost: Mapping[str, Any] | None) -> str:
    """Format the hours of one GPU, with a star where the rate was not measured."""
    if cost is None:
        return UNKNOWN
    hours = cost["images"] / cost["images_per_s"] / 3600
    return f"{hours:,.0f}{'' if cost['measured'] else ' *'}"
