"""Tests of the plots of score against cost."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page
from support.pages import LINEAR

from simmim_bench.leaderboard.figures import pareto_front


def test_the_pareto_front_contains_exactly_the_undominated_points() -> None:
    generator = random.Random(0)
    for _ in range(50):
        points = [(generator.randint(1, 6), generator.randint(1, 6)) for _ in range(12)]
        naive = {
            i
            for i, (cost, score) in enumerate(points)
            if not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
        }
        front = pareto_front(points)
        assert set(front) == naive
        assert len(front) == len(naive)
        assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_pareto_fronts_are_computed_within_groups(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board)
    page.locator("[name=column]").select_option(label="linear")
    page.locator("[name=cost]").select_option("device_hours")
    plot = page.locator("figure.plot:visible")
    # In each group, the cheaper row has the higher score; B's best row does not remove A's from A's front.
    fronts = [plot.locator("ol").nth(k).locator("li").all_inner_texts() for k in range(2)]
    assert plot.locator("h4").all_inner_texts() == [
        "Pareto front of group A",
        "Pareto front of group B",
    ]
    assert fronts == [
        ["vit_pocket, row 1: 56.2 % at 0.5 h"],
        ["vit_pocket, row 4: 100.0 % at 0.5 h"],
    ]
    hrefs = plot.locator("svg a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert hrefs == ["#row-1", "#row-2", "#row-4", "#row-5"]
    titles = plot.locator("svg a title").all_text_contents()
    assert titles[1] == "swin_pocket, row 2: 9.5 at 1"
    page.locator("[name=cost]").select_option("params_m")
    hrefs = plot.locator("svg a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert hrefs == ["#row-1", "#row-2", "#row-4", "#row-5", "#row-6", "#row-8"]
    assert plot.locator("h4").count() == 2
    page.locator("[name=column]").select_option(label="COCO box AP")
    assert plot.locator("h4").count() == 0  # partial evaluations are on no front


def test_points_are_positioned_by_cost_and_score(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board)
    page.locator("[name=column]").select_option(label="linear")
    page.locator("[name=cost]").select_option("params_m")
    boxes = page.locator("figure.plot:visible svg a").evaluate_all(
        "all => Object.fromEntries(all.map(a => [a.dataset.row, a.getBoundingClientRect()])"
        ".map(([name, box]) => [name, [box.x + box.width / 2, box.y + box.height / 2]]))"
    )
    points = {row["id"]: row for row in board["rows"] if row["id"] in boxes}
    ids = list(points)
    by_x = sorted(ids, key=lambda i: boxes[i][0])
    by_y = sorted(ids, key=lambda i: -boxes[i][1])
    costs = [points[i]["cost"]["params_m"] for i in by_x]
    assert costs == sorted(costs)
    scores = [points[i]["cells"][LINEAR]["mean"] for i in by_y]
    assert scores == sorted(scores)
