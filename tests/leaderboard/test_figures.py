"""Tests of the plots of score against cost."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from support.pages import LINEAR
from support.records import board_of, change, make_record

from simmim_bench.leaderboard.figure_points import pareto_front
from simmim_bench.leaderboard.figures import plot_scores
from simmim_bench.leaderboard.page_data import page_data


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
    assert hrefs == ["#row-1", "#row-2", "#row-9", "#row-4", "#row-5"]
    titles = plot.locator("svg a title").all_text_contents()
    assert titles[1] == "swin_pocket, row 2: 9.5 at 1"
    page.locator("[name=cost]").select_option("params_m")
    hrefs = plot.locator("svg a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert hrefs == ["#row-1", "#row-2", "#row-9", "#row-4", "#row-5", "#row-6", "#row-8"]
    assert plot.locator("h4").count() == 2
    # A plot of one or two points of a group shows no trade-off.
    assert page.locator("[name=column] option").all_inner_texts() == ["linear"]
    page.get_by_label("Published").check()
    assert page.locator("#cost").is_hidden()


def test_rows_of_changed_sources_are_on_no_front(tmp_path: Path) -> None:
    for label, correct in (("clean", 5), ("cheap", 3), ("changed", 9)):
        for task in ("linear", "knn"):
            path = make_record(tmp_path, label=label, task=task, correct=correct)
    # The score in the column linear is of clean sources; the row's cost and another score are not.
    change(path, environment={"simmim_bench": "0.1.0", "dirty": True})
    plots = plot_scores(page_data(board_of(tmp_path)))
    assert {plot["column"]["task"] for plot in plots} == {"linear", "knn"}
    for plot in plots:
        (series,) = plot["series"]
        assert sorted(point.row["label"] for point in series.points) == [
            "changed",
            "cheap",
            "clean",
        ]
        assert "changed" not in [point.row["label"] for point in series.front]


def test_points_and_error_bars_are_positioned_by_cost_and_score(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    scores = [row["cells"][LINEAR] for row in board["rows"][:2]]
    scores[0]["standard_error"] = (scores[0]["mean"] - scores[1]["mean"]) / 2
    page = show(board)
    page.locator("[name=column]").select_option(label="linear")
    page.locator("[name=cost]").select_option("params_m")
    boxes = page.locator("figure.plot:visible svg a").evaluate_all(
        "all => Object.fromEntries(all.map(a => [a.dataset.row, a.getBoundingClientRect()])"
        ".filter(([, box]) => box.width).map(([name, box]) => [name, [box.x + box.width / 2, box.y + box.height / 2]]))"
    )
    points = {row["id"]: row for row in board["rows"] if row["id"] in boxes}
    ids = list(points)
    by_x = sorted(ids, key=lambda i: boxes[i][0])
    by_y = sorted(ids, key=lambda i: -boxes[i][1])
    costs = [points[i]["cost"]["params_m"] for i in by_x]
    assert costs == sorted(costs)
    scores = [points[i]["cells"][LINEAR]["mean"] for i in by_y]
    assert scores == sorted(scores)
    boxes = page.locator("figure.plot:visible svg [data-row]").evaluate_all(
        "all => all.map(e => [e.dataset.row, e.tagName, e.getBoundingClientRect()])"
        ".filter(([, tag]) => tag === 'a' || tag === 'path').map(([r, t, b]) => [r, t, b.y, b.height])"
    )
    middle = {row: y + height / 2 for row, tag, y, height in boxes if tag == "a"}
    ((row, _, y, height),) = [box for box in boxes if box[1] == "path"]
    assert row == "row-1"
    assert y + height / 2 == pytest.approx(middle["row-1"], abs=1)
    assert height == pytest.approx(abs(middle["row-1"] - middle["row-2"]), abs=2)
    page.locator("[name=group]").select_option("B")
    assert page.locator("figure.plot:visible svg path[data-row]:visible").count() == 0
