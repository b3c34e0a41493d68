"""Tests of the forest plot of two rows, in a browser and in the page's data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from support.records import board_of, make_record

from simmim_bench.leaderboard import page_comparisons
from simmim_bench.leaderboard.compare import compare_rows
from simmim_bench.leaderboard.page_data import page_data


def table_of(page: Page) -> list[list[str]]:
    rows = page.locator(".forest tbody tr").all()
    return [row.locator("th, td:not(.interval)").all_inner_texts() for row in rows]


def test_a_pair_is_preselected_and_shown_with_intervals_on_one_scale(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board)
    linear, knn = table_of(page)
    assert linear == [
        *("linear", "56.2", "9.5", "+46.8 (+40.0 to +53.5)"),
        *("< 0.001", "< 0.001", "3 and 2 seeds", "4,000", "higher"),
    ]
    assert knn[3:] == [
        *("−2.0 (−9.0 to +5.0)", "0.400", "0.400", "1 seed", "4,000", "not distinguishable"),
    ]
    assert page.inner_text("#pair-claim") == "About these checkpoints."
    assert page.locator("#pair-missing li").all_inner_texts() == [
        "detection box AP: only B has a score"
    ]
    assert page.inner_text("#pair-summary").startswith("A is higher in 1 of 2 columns, lower in 0")

    marks = page.locator(".forest tbody svg").evaluate_all(
        "all => all.map(svg => { const x = e => { const r = e.getBoundingClientRect();"
        " return r.x + r.width / 2 }; const bar = svg.querySelector('.bar').getBoundingClientRect();"
        " return [x(svg.querySelector('.zero')), x(svg.querySelector('circle')), bar.left, bar.right] })"
    )
    (zero, linear, low, high), (_, knn, knn_low, knn_high) = marks
    unit = (linear - zero) / 46.75
    for x, points in ((low, 40), (high, 53.5), (knn, -2), (knn_low, -9), (knn_high, 5)):
        assert (x - zero) / unit == pytest.approx(points, abs=0.5)
    axis = page.locator(".forest tfoot text")
    ticks = axis.evaluate_all(
        "all => all.map(e => { const r = e.getBoundingClientRect(); return [e.textContent, r.x + r.width / 2] })"
    )
    assert [(x - zero) / unit for _, x in ticks] == pytest.approx(
        [float(text.replace("−", "-")) for text, _ in ticks], abs=0.5
    )


def test_rows_are_chosen_by_keyboard_and_their_order_turns_the_sign(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board)
    assert "first 1 with all others" in page.inner_text("#pair-note")
    page.locator("[name=b]").focus()
    page.keyboard.press("ArrowDown")
    ((*_, alone, _, verdict),) = table_of(page)
    assert (alone, verdict) == ("one seed: images alone", "undecided")
    page.locator("[name=group]").select_option("B")  # both forms show the group
    ((_, _, _, before, *_, over, _, _),) = table_of(page)
    assert (before, over) == ("+90.0 (+80.0 to +100.0)", "2 pretrainings and 3 seeds")
    page.locator("[name=a]").focus()
    page.keyboard.press("ArrowDown")  # A becomes B's row, and B A's
    assert page.locator("[name=b]").input_value() == "0"
    ((*_, verdict),) = rows = table_of(page)
    assert (rows[0][3], verdict) == ("−90.0 (−100.0 to −80.0)", "lower")
    assert rows[0][6] == "3 seeds and 2 pretrainings"


def test_the_page_has_the_differences_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label, correct in (("a", 9), ("b", 7), ("c", 2), ("d", 4)):
        for task in ("linear", "knn"):
            make_record(tmp_path, label=label, task=task, correct=correct)
    board = board_of(tmp_path)
    found = page_data(board)["comparisons"]
    (group,) = found["groups"]
    assert len(group["pairs"]) == 6
    labels = [row.label for row in board.groups[0].rows]
    for pair, (claim, differences, _) in group["pairs"].items():
        i, j = map(int, pair.split("-"))
        expected = compare_rows(board, labels[i], labels[j])
        assert found["texts"][claim] == expected.claim
        assert [one[1:4] for one in differences] == [
            [
                round(one.difference.points, 3),
                round(one.difference.low, 3),
                round(one.difference.high, 3),
            ]
            for one in expected.differences
        ]
    monkeypatch.setattr(page_comparisons, "MAX_PAIRS", 5)
    (bounded,) = page_data(board)["comparisons"]["groups"]
    assert (bounded["compared"], list(bounded["pairs"])) == (1, ["0-1", "0-2", "0-3"])
