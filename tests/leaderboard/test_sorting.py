"""Tests of sorting and filtering the page's table in a browser."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page
from support.pages import COLUMNS, FIRST_SCORE, LINEAR, make_board, rows_shown, sort_by

from simmim_bench.leaderboard.page import protocol_differences


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_a_column_sorts_by_mean_with_missing_scores_last(
    board: dict[str, Any], show: Callable[..., Page], by: str
) -> None:
    page = show(board)
    assert rows_shown(page) == [row["id"] for row in board["rows"]]
    means = {
        row["id"]: row["cells"][LINEAR]["mean"] for row in board["rows"] if row["cells"][LINEAR]
    }
    missing = len(board["rows"]) - len(means)
    for order in ("descending", "ascending"):
        sort_by(page, FIRST_SCORE + LINEAR, order, keyboard=by == "keyboard")
        assert page.locator("#scores [aria-sort]").all_inner_texts() == ["linear"]
        assert page.locator(f"#scores [aria-sort={order}]").count() == 1
        shown = rows_shown(page)
        assert shown[:-missing] == sorted(
            means, key=means.__getitem__, reverse=order == "descending"
        )
        assert set(shown[-missing:]) == {row["id"] for row in board["rows"]} - set(means)
    assert "not a ranking" in page.inner_text("#count")


def test_rows_are_sorted_within_groups_if_the_option_is_set(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board)
    page.get_by_label("within groups").check()
    sort_by(page, FIRST_SCORE + LINEAR, "descending")
    assert rows_shown(page) == [f"row-{n}" for n in (1, 2, 3, 4, 5, 6, 8, 7)]
    sort_by(page, FIRST_SCORE + LINEAR, "ascending")
    assert rows_shown(page) == [f"row-{n}" for n in (2, 1, 3, 5, 4, 8, 6, 7)]
    assert "not a ranking" not in page.inner_text("#count")


def test_rows_are_sorted_by_cost_and_by_label(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board)
    sort_by(page, FIRST_SCORE + len(COLUMNS) + 1, "ascending")
    ids = sorted(board["rows"], key=lambda row: row["cost"]["params_m"])
    assert rows_shown(page) == [row["id"] for row in ids]
    sort_by(page, 0, "ascending")
    ids = sorted(board["rows"], key=lambda row: row["label"])
    assert rows_shown(page) == [row["id"] for row in ids]


@pytest.mark.heavy
def test_a_thousand_records_are_shown(show: Callable[..., Page]) -> None:
    generator = random.Random(0)
    board = make_board({"A": [("vit_pocket", generator.uniform(1, 99)) for _ in range(500)]})
    assert len(board["records"]) == 1000
    page = show(board, hash="#row-500")
    assert "row-500-1-hash" in (page.get_by_role("dialog").text_content() or "")
    page.keyboard.press("Escape")
    sort_by(page, FIRST_SCORE + LINEAR, "descending")
    best_first = sorted(board["rows"], key=lambda row: -row["cells"][LINEAR]["mean"])
    assert rows_shown(page) == [row["id"] for row in best_first]


@pytest.mark.parametrize(
    ("set_filter", "matches"),
    [
        (lambda p: p.get_by_label("Search").fill("swin"), lambda r: "swin" in r["label"]),
        (lambda p: p.get_by_label("Search").fill(f"{3:064x}"), lambda r: r["id"] == "row-4"),
        (
            lambda p: p.locator("[name=arch]").select_option("vit_b"),
            lambda r: r["arch"] == "vit_b",
        ),
        (lambda p: p.locator("[name=group]").select_option("B"), lambda r: r["group"] == "B"),
        (
            lambda p: p.get_by_label("reproduced", exact=True).uncheck(),
            lambda r: r["status"] == "reported",
        ),
        (
            lambda p: p.get_by_label("reported", exact=True).uncheck(),
            lambda r: r["status"] != "reported",
        ),
    ],
)
def test_a_filter_shows_exactly_the_matching_rows_and_points(
    board: dict[str, Any],
    show: Callable[..., Page],
    set_filter: Callable[[Page], object],
    matches: Callable[[dict[str, Any]], bool],
) -> None:
    page = show(board)
    page.locator("[name=column]").select_option(label="linear")
    page.locator("[name=cost]").select_option("params_m")
    set_filter(page)
    rows = [row for row in board["rows"] if matches(row)]
    assert rows_shown(page) == [row["id"] for row in rows]
    assert page.inner_text("#count").startswith(f"{len(rows)} of {len(board['rows'])} rows.")
    points = page.locator("figure.plot:visible svg a:visible")
    links = [point.get_attribute("href") or "" for point in points.all()]
    assert sorted(links) == sorted(f"#{row['id']}" for row in rows if row["cells"][LINEAR])
    listed = page.locator("figure.plot:visible li[data-row]:visible")
    ids = {row["id"] for row in rows}
    assert {item.get_attribute("data-row") for item in listed.all()} == ids & {"row-1", "row-4"}
    assert page.locator("figure.plot:visible h4:visible").count() == listed.count()
    page.get_by_role("button", name="Reset").click()
    page.locator("#scores tbody tr").nth(len(board["rows"]) - 1).wait_for()


def test_selecting_a_task_shows_only_its_columns(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board)
    page.locator("[name=task]").select_option("coco")
    titles = page.locator("#scores thead th").all_inner_texts()
    scores = {title for title, *_ in COLUMNS}
    assert [t for t in titles if t in scores] == ["detection box AP", "mask AP"]
    assert len(titles) == FIRST_SCORE + 2 + 2


def test_selecting_a_group_shows_its_protocols_and_differences_are_listed(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    (found,) = protocol_differences(board)
    assert found == {
        "task": "linear",
        "groups": ["A", "B"],
        "fields": {
            "deviates": ["none", "optimizer.lr=0.5"],
            "data": ["cifar10", "stl10"],
            "optimizer.lr": ["0.1", "0.5"],
        },
    }
    page = show(board)
    assert page.locator(".selected-group:visible").count() == 0
    page.locator("[name=group]").select_option("B")
    assert "linear: linear_cifar on stl10, with optimizer.lr=0.5" in page.inner_text(
        ".selected-group:visible"
    )
    cells = page.locator(".differences tbody tr").nth(2).locator("th, td").all_inner_texts()
    assert cells == ["optimizer.lr", "0.1", "0.5"]
