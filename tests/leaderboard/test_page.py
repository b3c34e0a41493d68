"""Tests of the whole page in a browser: marks, escaping, accessibility, reproducibility."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from support.pages import FIRST_SCORE, go_to, make_board, rows_shown

from simmim_bench.leaderboard.page import render_page
from simmim_bench.untrusted.text import visible

HOSTILE = (
    " <img src=x onerror=window.__pwned=1> </script><script>window.__pwned=1</script> </template>"
    ' " onmouseover="window.__pwned=1 \' $\\frac{ {{7*7}} {% raw %} \u2028 javascript:window.__pwned=1'
)


def test_the_page_shows_the_boards_marks_and_best_scores(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board)
    cells = page.locator("#row-2 > *").all_text_contents()
    assert cells[FIRST_SCORE : FIRST_SCORE + 3] == ["9.5", "30.0*†‡", "n/a"]
    best = page.locator("#scores td.best").evaluate_all("all => all.map(c => c.parentElement.id)")
    assert best == ["row-1", "row-4"]
    for row in board["rows"]:
        if row["status"] != "reported":
            shown = page.locator(f"#{row['id']} .badge").all_inner_texts()
            assert shown == ([] if row["status"] == "reproduced" else [row["status"]])
    heads = page.locator(".group-head").all_inner_texts()
    assert heads == ["A: cifar10 of A", "B: cifar10 of B"]
    legend = page.inner_text(".legend")
    assert all(f"{mark} " in legend for mark in "*†‡±")
    assert board["problems"][0] in page.inner_text(".notice")


def make_hostile(value: Any, key: str = "") -> Any:
    """Append markup, script and template syntax to every text of a board that is not an identifier."""
    if isinstance(value, dict):
        # The keys of these mappings are texts too; the keys of protocols are task names.
        is_text = key in ("libraries", "by_class", "lineage", "deviates", "fields", "metrics")
        return {k + HOSTILE if is_text else k: make_hostile(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [make_hostile(item, key) for item in value]
    if isinstance(value, str) and key not in ("id", "status", "task", "checkpoint"):
        return value + HOSTILE
    return value


def element_tags(page: Page, ids: list[str]) -> list[list[str]]:
    """Return the tags of all elements, and those of the dialog for every row."""
    tags = [page.evaluate("[...document.querySelectorAll('*')].map(e => e.tagName)")]
    for name in ids:
        go_to(page, name)
        tags.append(page.evaluate("[...document.querySelectorAll('dialog *')].map(e => e.tagName)"))
    return tags


@pytest.mark.heavy
def test_texts_of_a_board_are_neither_parsed_nor_executed(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    board["reconstructions"] = {}  # the hostile board has no valid image either
    hostile = make_hostile(copy.deepcopy(board))
    hostile["reconstructions"] = {
        row["checkpoint"]: 'data:image/png;base64,AA" onerror="window.__pwned=1'
        for row in board["rows"]
        if row["checkpoint"]
    }
    ids = ["row-1", "row-6"]
    page = show(hostile)
    assert element_tags(page, ids) == element_tags(show(board), ids)
    page.locator("dialog").hover()
    assert page.evaluate("window.__pwned") is None
    go_to(page, "row-1")
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    texts = page.evaluate(
        "[...document.querySelectorAll('dialog dd, dialog code, dialog summary, dialog h2, .classes th,"
        " #scores a, .notice li, .legend li, figure title, option, .differences td')]"
        ".map(e => e.textContent)"
    )
    shown = [
        board["rows"][0]["label"],
        *board["notes"],
        *board["problems"],
        "cifar10",
        "road",
        "a CPU",
    ]
    shown += [record["command"] for record in board["records"][:2]]
    for text in shown:
        hostile = (text + HOSTILE).strip()  # the script shows classes as they are
        assert any(visible(hostile) in t or hostile in t for t in texts), text
    assert not any("49" in t for t in texts)


def test_an_injected_script_does_not_run(
    board: dict[str, Any], browser: Browser, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    file.write_text(
        render_page(board).replace("</main>", "<script>window.__pwned = 1</script></main>")
    )
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.evaluate("window.__pwned") is None
    assert rows_shown(page)
    page.close()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1300), ("dark", 1300), ("light", 390), ("dark", 390)]
)
def test_the_page_is_accessible_and_fits_its_window(
    board: dict[str, Any], show: Callable[..., Page], scheme: str, width: int
) -> None:
    board["rows"][0]["label"] = "a_label_without_a_line_break_" * 4
    page = show(
        board,
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
        reduced_motion="reduce",
    )
    page.locator("[name=group]").select_option("A")
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    for opened in (False, True):
        if opened:
            go_to(page, "row-1")
            page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        found = Axe().run(page).response
        assert len(found["passes"]) > 10
        serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
        assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in serious] == []
        for selector in ("html", "dialog"):
            assert page.locator(selector).evaluate("e => e.scrollWidth - e.clientWidth") <= 0


@pytest.mark.heavy
def test_rendering_a_board_twice_gives_the_same_bytes(board: dict[str, Any]) -> None:
    again = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json, sys; from simmim_bench.leaderboard.page import render_page;"
            "sys.stdout.buffer.write(render_page(json.load(sys.stdin)).encode())",
        ],
        input=json.dumps(board).encode(),
        capture_output=True,
        check=True,
    )
    assert again.stdout == render_page(board).encode()


def test_an_empty_board_is_rendered(show: Callable[..., Page]) -> None:
    page = show(make_board({}))
    assert "No row" in page.inner_text("#scores")
    assert page.locator("#cost").count() == 0
