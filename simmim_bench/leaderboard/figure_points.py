"""Collect the points of the plots of score against cost, and their Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any, NamedTuple

SMALLEST_COST = 1e-9  # smaller ones are no costs, and a logarithmic axis cannot span all floats
COSTS = {"device_hours": "device-hours", "params_m": "parameters, millions"}
GROUP_STYLES = 6  # before they repeat; leaderboard.css defines --group-0 to --group-5


class Point(NamedTuple):
    """One row in a plot.

    Attributes:
        cost, score: in device-hours or millions of parameters, and in percent.
        error: standard error of the score; 0 if it is unknown.
        number: in the plot, if the row is on a Pareto front.
    """

    row: Mapping[str, Any]
    cost: float
    score: float
    error: float = 0.0
    number: int | None = None


class Series(NamedTuple):
    """Points that share a marker.

    Attributes:
        name: name in the legend.
        style: `group-N` with N < `GROUP_STYLES`, `reported` or `not-ranked`; also a CSS class.
        points: all points.
        front: numbered points on the group's Pareto front, the cheapest first.
    """

    name: str
    style: str
    points: list[Point]
    front: list[Point]


def pareto_front(points: Iterable[tuple[float, float]]) -> list[int]:
    """Return the indices of the (cost, score) points that no other point dominates, the cheapest first.

    A point dominates another if it is neither more expensive nor worse, and differs in cost or score.
    """
    front: list[int] = []
    last = (math.nan, -math.inf)
    for cost, minus_score, index in sorted((c, -s, i) for i, (c, s) in enumerate(points)):
        if -minus_score > last[1] or (cost, -minus_score) == last:
            front.append(index)
            last = (cost, -minus_score)
    return front


def collect_series(board: Mapping[str, Any], column: int, cost: str) -> list[Series]:
    """Collect the points of one plot, with a Pareto front per group because groups are not comparable.

    A front has sound rows only. A row with a partial or dirty score in another column is not sound: its cost is of all
    its runs.
    """
    styles = {group["name"]: k % GROUP_STYLES for k, group in enumerate(board["groups"])}
    by_name: dict[str | None, list[Point]] = {name: [] for name in (*styles, None, "reported")}
    for row in board["rows"]:
        cell, row_cost = row["cells"][column], row["cost"][cost]
        reported = row["status"] == "reported"
        # The hardware of published results differs, so their device-hours are not comparable.
        if (
            cell is None
            or not row_cost
            or row_cost < SMALLEST_COST
            or (reported and cost == "device_hours")
        ):
            continue
        point = Point(row, row_cost, cell["mean"], cell["standard_error"] or 0.0)
        by_name["reported" if reported else row["group"]].append(point)
    numbers = count(1)
    collected = []
    for name, points in by_name.items():
        if name in styles:
            sound = [point for point in points if point.row["sound"]]
            front = [
                sound[i]._replace(number=next(numbers))
                for i in pareto_front((p.cost, p.score) for p in sound)
            ]
            collected.append(Series(f"group {name}", f"group-{styles[name]}", points, front))
        else:
            label = "reported" if name else "not ranked"
            collected.append(Series(label, label.replace(" ", "-"), points, []))
    return [series for series in collected if series.points]
