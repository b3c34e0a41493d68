"""Tests of the page's first figure: families, labels, places of dots and intervals, and what a row is copied as."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page
from support.pages import LINEAR, make_board, make_cell

from simmim_bench.leaderboard.overview import (
    OTHER,
    RANDOM,
    build_overview,
    family_of,
    legend_names,
    short_labels,
)


def test_spellings_of_a_method_are_one_family_and_rare_ones_have_no_colour() -> None:
    assert family_of("MAE (released PyTorch ckpt)") == "MAE"
    assert family_of("random") == RANDOM
    rows = [{"family": family_of("simmim"), "status": "reproduced"}]
    rows += [{"family": name, "status": "reported"} for name in ("SimMIM", "MAE", "MAE", *"abcdef")]
    rows.append({"family": RANDOM, "status": "reproduced"})
    names = legend_names(rows)
    assert list(names.values()) == ["SimMIM", "MAE", *"abcd", OTHER, OTHER, RANDOM]


def test_labels_are_shortened_only_where_they_stay_different() -> None:
    hashes = [f"vit, SimMIM [{number:08x}]" for number in (1, 2)]
    short = short_labels([*hashes, "vit, random [00000003]"])
    assert [*short.values()] == ["SimMIM [00000001]", "SimMIM [00000002]", "random"]
    assert short_labels(["vit, random"]) == {"vit, random": "vit, random"}


def test_dots_and_intervals_are_placed_on_a_common_axis() -> None:
    board = make_board({"A": [("vit_s", 40.0), ("vit_b", 60.0), ("vit_l", None), ("vit_ti", 90.0)]})
    board["rows"][0]["cells"][LINEAR]["standard_error"] = 5.0
    board["rows"][3]["cells"][LINEAR]["partial"] = True
    (view,) = build_overview(board)["views"]
    (panel,) = view["panels"]
    # The interval is 40 ± 1.96 * 5, from 30.2 to 49.8, and the scores end at 90.
    assert [label for _, label in panel["ticks"]] == ["20", "40", "60", "80", "100"]
    lines = [(line["label"], line["x"], line["low"], line["high"]) for line in panel["lines"]]
    assert lines == [
        ("vit_b, row 2", 50.0, None, None),
        ("vit_s, row 1", 25.0, 12.75, 37.25),
        ("vit_ti, row 4", 87.5, None, None),  # incomplete scores are the last
    ]


def test_a_large_group_shows_its_highest_scores() -> None:
    board = make_board({"A": [("vit_s", float(score)) for score in range(30)]})
    (view,) = build_overview(board)["views"]
    (panel,) = view["panels"]
    assert [line["cell"]["mean"] for line in panel["lines"]] == [29, 28, 27, 26, 25, 24, 23, 22]
    assert panel["hidden"] == 22
    assert len(view["rows"]) == 8


def test_the_first_screen_of_a_phone_shows_scores(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board, viewport={"width": 390, "height": 844})
    score = page.locator(".dots b").first
    box = score.bounding_box()
    assert score.inner_text() == "56.2"
    assert box is not None
    assert box["y"] + box["height"] < 844
    assert page.locator(".view:visible").count() == 2
    page.locator("[name=group]").select_option("B")
    assert page.locator(".view:visible h3").all_inner_texts() == ["B cifar10 of B"]


def test_a_row_is_copied_in_several_formats_and_compared(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    board["rows"][0]["cells"][LINEAR]["spread"] = ["seeds ± 1.0", "images ± 0.7"]
    board["rows"][0]["cells"][4] = make_cell(7.0, [], deviates=True)
    board["rows"][0]["label"] = "=vit_s, 50%"
    page = show(board, hash="#row-1", permissions=["clipboard-read", "clipboard-write"])
    dialog = page.get_by_role("dialog")
    assert (dialog.inner_text().split("\n\n")[1]).startswith("vit_pocket pretrained by simmim")

    def copied(name: str) -> str:
        dialog.get_by_role("button", name=name, exact=True).click()
        dialog.get_by_role("button", name="Copied").wait_for()
        text: str = page.evaluate("navigator.clipboard.readText()")
        return text

    assert copied("Link") == page.url
    assert "note = {linear 56.2, seeds $\\pm$ 1.0, images $\\pm$ 0.7; 10 \\% 7.0*. " in copied(
        "BibTeX"
    )
    head, _, line = copied("Markdown").splitlines()
    assert head == "| checkpoint | linear | 10 % |"
    assert line == "| =vit\\_s, 50% | 56.2<br>seeds ± 1.0<br>images ± 0.7 | 7.0\\* |"
    rows = list(csv.DictReader(io.StringIO(copied("CSV"))))
    assert [(row["column"], row["score"]) for row in rows] == [("linear", "56.2"), ("10 %", "7.0*")]
    assert rows[0]["checkpoint"] == "'=vit_s, 50%"
    dialog.get_by_role("button", name="Compare").click()
    dialog.wait_for(state="hidden")
    assert page.locator("[name=a]").input_value() == "0"
    assert page.locator("[name=b]").evaluate("b => b === document.activeElement")


@pytest.mark.parametrize("fields", [{}, {"published": {"value": 50.0}}])
def test_a_published_counterpart_is_placed_next_to_the_score(fields: dict[str, Any]) -> None:
    board = make_board({"A": [("vit_s", 40.0)]})
    board["rows"][0]["cells"][LINEAR] |= fields
    (view,) = build_overview(board)["views"]
    (line,) = view["panels"][0]["lines"]
    assert (line["published"] is None) == (not fields)
    assert line["x"] == 0
    if fields:
        assert line["published"] == 100
