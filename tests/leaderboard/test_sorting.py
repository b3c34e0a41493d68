"""Tests of sorting and filtering the page's table in a browser."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page
from support.pages import (
    COLUMNS,
    FIRST_SCORE,
    LINEAR,
    LINEAR_SHOWN,
    make_board,
    rows_shown,
    sort_by,
)

from simmim_bench.leaderboard.page import protocol_differences


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_a_column_sorts_by_mean_within_groups_with_missing_scores_last(
    board: dict[str, Any], show: Callable[..., Page], by: str
) -> None:
    page = show(board)
    assert rows_shown(page) == names(1, 2, 3, 9, 4, 5)
    # A score of B that is higher than all of A does not come before those of A.
    for order, expected in (("descending", (1, 9, 2, 3, 4, 5)), ("ascending", (2, 9, 1, 3, 5, 4))):
        sort_by(page, FIRST_SCORE + LINEAR_SHOWN, order, keyboard=by == "keyboard")
        assert page.locator("#scores [aria-sort]").all_inner_texts() == ["linear"]
        assert page.locator(f"#scores [aria-sort={order}]").count() == 1
        assert rows_shown(page) == names(*expected)
    assert page.locator(".group-head").count() == 2
    page.get_by_label("Published").check()
    assert rows_shown(page) == names(
        8, 6
    )  # in ascending order, and without the row that has no score
    assert "not a ranking" in page.inner_text("#count")
    page.locator("[name=task]").select_option("")
    assert rows_shown(page) == names(8, 6, 7)
    page.get_by_label("Measured").check()
    assert len(rows_shown(page)) == 6


def names(*numbers: int) -> list[str]:
    return [f"row-{number}" for number in numbers]


def test_rows_are_sorted_by_cost_and_by_label(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board)
    of_a = [row for row in board["rows"] if row["group"] == "A"]
    page.locator("[name=group]").select_option("A")
    sort_by(page, page.locator("#scores thead th").count() - 1, "ascending")
    ids = sorted(of_a, key=lambda row: row["cost"]["params_m"])
    assert rows_shown(page) == [row["id"] for row in ids]
    sort_by(page, 0, "ascending")
    ids = sorted(of_a, key=lambda row: row["label"])
    assert rows_shown(page) == [row["id"] for row in ids]


def test_columns_are_chosen_and_those_without_a_score_are_left_out(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board)

    detection = ["detection box AP", "mask AP"]

    def titles() -> list[str]:
        return page.locator("#scores thead th").all_inner_texts()

    assert titles() == ["Backbone", "linear", *detection, "Device-hours", "Params, M"]
    page.get_by_text("Columns", exact=True).click()
    page.get_by_role("checkbox", name="linear").uncheck()
    assert titles() == ["Backbone", *detection, "Device-hours", "Params, M"]


@pytest.mark.heavy
def test_a_thousand_records_are_shown(show: Callable[..., Page]) -> None:
    generator = random.Random(0)
    board = make_board({"A": [("vit_pocket", generator.uniform(1, 99)) for _ in range(500)]})
    assert len(board["records"]) == 1000
    page = show(board, hash="#row-500")
    assert "row-500-1-hash" in (page.get_by_role("dialog").text_content() or "")
    page.keyboard.press("Escape")
    sort_by(page, FIRST_SCORE + LINEAR_SHOWN, "descending")
    best_first = sorted(board["rows"], key=lambda row: -row["cells"][LINEAR]["mean"])
    assert rows_shown(page) == [row["id"] for row in best_first]


@pytest.mark.parametrize(
    ("set_filter", "matches"),
    [
        (lambda p: p.get_by_label("Search").fill("swin"), lambda r: "swin" in r["label"]),
        (lambda p: p.get_by_label("Search").fill(f"{3:064x}"), lambda r: r["id"] == "row-4"),
        (
            lambda p: p.locator("[name=arch]").select_option("vit_pocket"),
            lambda r: r["arch"] == "vit_pocket",
        ),
        (
            lambda p: p.locator("[name=task]").select_option("linear"),
            lambda r: r["cells"][LINEAR] is not None,
        ),
        (lambda p: p.locator("[name=group]").select_option("B"), lambda r: r["group"] == "B"),
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
    measured = sorted(
        (row for row in board["rows"] if row["status"] != "reported"), key=lambda r: r["group"]
    )
    rows = [row for row in measured if matches(row)]
    assert rows_shown(page) == [row["id"] for row in rows]
    assert page.inner_text("#count") == f"{len(rows)} of {len(measured)} rows."
    points = page.locator("figure.plot:visible svg a:visible")
    links = [point.get_attribute("href") or "" for point in points.all()]
    assert sorted(links) == sorted(f"#{row['id']}" for row in rows if row["cells"][LINEAR])
    listed = page.locator("figure.plot:visible li[data-row]:visible")
    ids = {row["id"] for row in rows}
    assert {item.get_attribute("data-row") for item in listed.all()} == ids & {"row-1", "row-4"}
    assert page.locator("figure.plot:visible h4:visible").count() == listed.count()
    page.get_by_role("button", name="Reset").click()
    page.locator("#scores tbody tr[data-row]").nth(len(measured) - 1).wait_for()


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
    page.get_by_text("Differences between the groups").click()
    cells = page.locator(".differences tbody tr").nth(2).locator("th, td").all_inner_texts()
    assert cells == ["optimizer.lr", "0.1", "0.5"]
