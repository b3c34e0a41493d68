"""Claims about the leaderboard page, made of what a browser shows of it."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from simmim_bench.leaderboard.figures import pareto_front
from simmim_bench.leaderboard.page import differences, render_page

COLUMNS = (
    ("ImageNet top-1", "imagenet", "top1"),
    ("linear", "linear", "top1"),
    ("k-NN", "knn", "top1"),
    ("1 %", "fewshot-1%", "top1"),
    ("10 %", "fewshot-10%", "top1"),
    ("COCO box AP", "coco", "box_ap"),
    ("mask AP", "coco", "mask_ap"),
    ("ADE20K mIoU", "ade20k", "miou"),
)
FIRST_SCORE = 3  # columns of the table before the scores: backbone, group, rank
LINEAR = 1
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)
NASTY = (
    " <img src=x onerror=window.__pwned=1> </script><script>window.__pwned=1</script> </template>"
    ' " onmouseover="window.__pwned=1 \' $\\frac{ {{7*7}} {% raw %} \u2028 javascript:window.__pwned=1'
)


def make_cell(mean: float, records: list[int], **fields: Any) -> dict[str, Any]:
    marks = {"best": False, "deviates": False, "partial": False, "dirty": False}
    return {
        "mean": mean,
        "std": None,
        "seeds": max(len(records), 1),
        "text": f"{mean:.1f}",
        "records": records,
        **marks,
        **fields,
    }


def make_protocol(task: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": "0123456789ab",
        "recipe": f"{task}_cifar",
        "source": "ours: for a CPU",
        "deviates": {},
        "data": "cifar10",
        "fingerprint": "f" * 64,
        "images": 5000,
        "fields": {"epochs": 90, "optimizer": {"name": "sgd", "lr": 0.1}, "img_size": [32, 32]},
        **fields,
    }


def make_board(linear: dict[str, list[tuple[str, float | None]]]) -> dict[str, Any]:
    """Make a board with a row for every (arch, linear top-1) of a group; "" is for reported rows."""
    records: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for group, scores in linear.items():
        for rank, (arch, score) in enumerate(scores, 1):
            name = f"row-{len(rows) + 1}"
            row: dict[str, Any] = {
                "id": name,
                "group": group or None,
                "rank": rank if group else None,
                "label": f"{arch}, {name.replace('-', ' ')}",
                "arch": arch,
                "status": "reproduced" if group else "reported",
                "checkpoint": f"{len(rows):064x}" if group else "",
                "lineage": {"method": "simmim", "deviates": {"epochs": 11}} if group else {},
                "cost": {"device_hours": 0.5 * rank if group else None, "params_m": 2.0 * rank},
                "cells": [None] * len(COLUMNS),
                "inapplicable": [False] * len(COLUMNS),
                "source": f"a paper, table {rank}",
                "confidence": "medium",
                "protocol_text": f"probed for {rank} epochs",
            }
            if score is not None:
                behind = [len(records), len(records) + 1] if group else []
                records += [make_record(name, seed, score) for seed in range(len(behind))]
                row["cells"][LINEAR] = make_cell(score, behind, best=bool(group) and rank == 1)
            rows.append(row)
    return {
        "version": "0.1.0",
        "columns": [dict(zip(("title", "task", "metric"), c, strict=True)) for c in COLUMNS],
        "groups": [
            {"name": name, "protocols": {"linear": make_protocol("linear")}}
            for name in linear
            if name
        ],
        "rows": rows,
        "records": records,
        "reconstructions": {},
        "problems": ["record lost/record.json is damaged (no seed)"],
        "notes": ["± is over seeds."],
    }


def make_record(row: str, seed: int, score: float) -> dict[str, Any]:
    return {
        "path": f"records/{row}/{seed}/record.json",
        "task": "linear",
        "metrics": {"top1": score + seed / 8, "top5": 90.0},
        "seed": seed,
        "recipe": "linear_cifar",
        "deviates": {"epochs": 11},
        "evaluated": 4000,
        "expected": 4000,
        "device": "a CPU",
        "device_hours": 0.25,
        "wall_time_s": 900.0,
        "peak_memory_gib": None,
        "images_per_s": 811.0,
        "date": "2026-11-20T12:00:00Z",
        "version": "0.1.0",
        "commit": "c0ffee",
        "dirty": seed == 1,
        "libraries": {"torch": "2.14.1"},
        "predictions_sha256": f"{row}-{seed}-hash",
        "command": f"simmim-bench transfer linear --ckpt '{row}' --seed {seed} && echo <done>",
        "curve": [[step, 2 / (1 + step)] for step in range(400)],
        "by_class": {"road": 40.25, "sky": 91.5, "pole": None},
    }


@pytest.fixture
def board() -> dict[str, Any]:
    """Give rows whose scores sort otherwise as text, with ties, a missing one and other protocols."""
    board = make_board(
        {
            "A": [("vit_pocket", 56.25), ("swin_pocket", 9.5), ("vit_pocket", None)],
            "B": [("vit_pocket", 100.0), ("swin_pocket", 10.25)],
            "": [("vit_b", 80.5), ("vit_l", None), ("vit_b", 7.0)],
        }
    )
    changed = {"data": "stl10", "deviates": {"optimizer.lr": 0.5}}
    fields = {"epochs": 90, "optimizer": {"name": "sgd", "lr": 0.5}, "img_size": [32, 32]}
    board["groups"][1]["protocols"]["linear"] |= {**changed, "fields": fields}
    board["groups"][0]["protocols"]["knn"] = make_protocol("knn")
    board["rows"][0]["cells"][5] = make_cell(30.0, [], deviates=True, partial=True, dirty=True)
    board["rows"][0]["inapplicable"][6] = True
    board["rows"][2] |= {"status": "partial", "rank": None}
    board["rows"][5]["cost"]["device_hours"] = 0.1  # an hour elsewhere is not one of ours
    board["reconstructions"] = {board["rows"][0]["checkpoint"]: PIXEL}
    return board


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start the system's Chromium once for all claims of this file."""
    required = os.environ.get("BROWSER_TESTS") == "required"
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    if binary is None:
        give_up: Callable[[str], object] = pytest.fail if required else pytest.skip
        give_up("no Chromium is on PATH (on Debian: apt-get install chromium)")
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Give a function that opens a board's page, and find that the browser had nothing to complain of."""
    complaints: list[str] = []
    requests: list[str] = []
    contexts = []
    file = tmp_path / "leaderboard.html"

    def open_page(board: dict[str, Any], hash: str = "", **options: Any) -> Page:
        file.write_text(render_page(board), encoding="utf-8")
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1300, "height": 800}, **options})
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri() + hash)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    request = {url.partition("#")[0] for url in requests if not url.startswith("data:")}
    assert request == {file.as_uri()}


def rows_shown(page: Page) -> list[str]:
    return page.evaluate(
        "[...document.querySelectorAll('#scores tbody tr')].map(r => r.dataset.row)"
    )


def sort_by(page: Page, column: int, order: str, keyboard: bool = False) -> None:
    """Press a column's head, and wait until it says that the rows are in that order."""
    head = page.locator("#scores thead th").nth(column)
    if keyboard:
        head.get_by_role("button").focus()
        page.keyboard.press("Enter")
    else:
        head.click()
    mark = {"ascending": "dt-ordering-asc", "descending": "dt-ordering-desc"}[order]
    page.locator(f"#scores thead th:nth-child({column + 1}).{mark}").wait_for()


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_a_column_sorts_by_its_means_and_what_is_missing_comes_last(
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


def test_rows_are_sorted_within_their_group_where_that_is_asked_for(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board)
    page.get_by_label("within groups").check()
    sort_by(page, FIRST_SCORE + LINEAR, "descending")
    assert rows_shown(page) == [f"row-{n}" for n in (1, 2, 3, 4, 5, 6, 8, 7)]
    sort_by(page, FIRST_SCORE + LINEAR, "ascending")
    assert rows_shown(page) == [f"row-{n}" for n in (2, 1, 3, 5, 4, 8, 6, 7)]
    assert "not a ranking" not in page.inner_text("#count")


def test_cost_and_label_sort_too(board: dict[str, Any], show: Callable[..., Page]) -> None:
    page = show(board)
    sort_by(page, FIRST_SCORE + len(COLUMNS) + 1, "ascending")
    ids = sorted(board["rows"], key=lambda row: row["cost"]["params_m"])
    assert rows_shown(page) == [row["id"] for row in ids]
    sort_by(page, 0, "ascending")
    ids = sorted(board["rows"], key=lambda row: row["label"])
    assert rows_shown(page) == [row["id"] for row in ids]


@pytest.mark.parametrize(
    ("act", "wanted"),
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
def test_a_filter_leaves_exactly_its_rows_and_their_points(
    board: dict[str, Any],
    show: Callable[..., Page],
    act: Callable[[Page], object],
    wanted: Callable[[dict[str, Any]], bool],
) -> None:
    page = show(board)
    page.locator("[name=column]").select_option(label="linear")
    page.locator("[name=cost]").select_option("params_m")
    act(page)
    rows = [row for row in board["rows"] if wanted(row)]
    assert rows_shown(page) == [row["id"] for row in rows]
    assert page.inner_text("#count").startswith(f"{len(rows)} of {len(board['rows'])} rows.")
    points = page.locator("figure.plot:visible svg a:visible")
    found = [point.get_attribute("href") for point in points.all()]
    assert sorted(found) == sorted(f"#{row['id']}" for row in rows if row["cells"][LINEAR])
    listed = page.locator("figure.plot:visible li[data-row]:visible")
    ids = {row["id"] for row in rows}
    assert {item.get_attribute("data-row") for item in listed.all()} == ids & {"row-1", "row-4"}
    assert page.locator("figure.plot:visible h4:visible").count() == listed.count()
    page.get_by_role("button", name="Reset").click()
    page.locator("#scores tbody tr").nth(len(board["rows"]) - 1).wait_for()


def test_a_task_shows_its_columns_alone(board: dict[str, Any], show: Callable[..., Page]) -> None:
    page = show(board)
    page.locator("[name=task]").select_option("coco")
    titles = page.locator("#scores thead th").all_inner_texts()
    scores = {title for title, *_ in COLUMNS}
    assert [t for t in titles if t in scores] == ["COCO box AP", "mask AP"]
    assert len(titles) == FIRST_SCORE + 2 + 2


def test_a_chosen_group_says_its_protocols_and_the_page_what_differs(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    (found,) = differences(board)
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
    assert page.locator(".chosen:visible").count() == 0
    page.locator("[name=group]").select_option("B")
    assert "linear: linear_cifar on stl10, but optimizer.lr=0.5" in page.inner_text(
        ".chosen:visible"
    )
    cells = page.locator(".differences tbody tr").nth(2).locator("th, td").all_inner_texts()
    assert cells == ["optimizer.lr", "0.1", "0.5"]


def test_marks_ranks_and_crowns_are_those_of_the_board(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board)
    cells = page.locator("#row-1 > *").all_text_contents()
    assert cells[1:3] == ["A", "1"]
    assert cells[FIRST_SCORE + 5] == "30.0*†‡"
    assert cells[FIRST_SCORE + 6 : FIRST_SCORE + 8] == ["n/a", "–"]
    best = page.locator("#scores td.best").evaluate_all("all => all.map(c => c.parentElement.id)")
    assert best == ["row-1", "row-4"]
    for row in board["rows"]:
        shown = page.locator(f"#{row['id']} .badge").all_inner_texts()
        assert shown == ([] if row["status"] == "reproduced" else [row["status"]])
        if row["status"] == "reported":
            assert page.locator(f"#{row['id']} > *").all_inner_texts()[1:3] == ["–", "–"]
    legend = page.inner_text(".legend")
    assert all(f"{mark} " in legend for mark in "*†‡±")
    assert board["problems"][0] in page.inner_text(".notice")


@pytest.mark.parametrize("way", ["click", "enter", "address", "point"])
def test_the_details_open_show_every_record_and_give_the_focus_back(
    board: dict[str, Any], show: Callable[..., Page], way: str
) -> None:
    page = show(board, hash="#row-1" if way == "address" else "")
    link = page.locator("#row-1 a")
    if way == "click":
        link.click()
    elif way == "enter":
        link.focus()
        page.keyboard.press("Enter")
    elif way == "point":
        page.locator("figure.plot:visible svg a[href='#row-1']").click()
    dialog = page.get_by_role("dialog", name=board["rows"][0]["label"])
    dialog.wait_for()
    assert page.url.endswith("#row-1")
    text = dialog.text_content()
    mine = [r for r in board["records"] if "/row-1/" in r["path"]]
    assert len(mine) == 2
    for record in mine:
        for field in ("path", "command", "predictions_sha256", "date", "device", "commit"):
            assert record[field] in text
        assert f"top1 {record['metrics']['top1']:.2f}" in text
    assert board["rows"][0]["checkpoint"] in text
    assert "row-2-0-hash" not in text
    assert dialog.locator("figure.picture img").evaluate("image => image.naturalWidth") == 1
    classes = dialog.locator(".classes").first
    classes.locator("summary").click()
    assert classes.locator("tbody tr").all_inner_texts() == ["sky\t91.5", "road\t40.3", "pole\t–"]
    curve = dialog.locator(".curve polyline").first.get_attribute("points").split()
    assert curve[0] == "0.0,0.0"
    assert curve[-1] == "300.0,80.0"
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.wait_for_url(lambda url: "#" not in url)
    if way != "point":
        assert link.evaluate("link => link === document.activeElement")


def test_going_back_closes_the_details(board: dict[str, Any], show: Callable[..., Page]) -> None:
    page = show(board)
    page.locator("#row-2 a").click()
    page.get_by_role("dialog").wait_for()
    page.go_back()
    page.get_by_role("dialog").wait_for(state="hidden")


def test_a_reported_row_says_where_it_is_from(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    row = board["rows"][5]
    page = show(board, hash=f"#{row['id']}")
    text = page.get_by_role("dialog").inner_text()
    assert all(row[field] in text for field in ("source", "confidence", "protocol_text"))


def test_a_command_is_copied_as_it_is(board: dict[str, Any], show: Callable[..., Page]) -> None:
    page = show(board, hash="#row-1", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == board["records"][0]["command"]


def made_nasty(value: Any, key: str = "") -> Any:
    """Append markup, script and template syntax to every text of a board but its structure."""
    if isinstance(value, dict):
        # Names of what ran are as free as their values; those of protocols are the columns' tasks.
        free = key in ("libraries", "by_class", "lineage", "deviates", "fields", "metrics")
        return {k + NASTY if free else k: made_nasty(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [made_nasty(item, key) for item in value]
    if isinstance(value, str) and key not in ("id", "status", "task", "checkpoint"):
        return value + NASTY
    return value


def go_to(page: Page, name: str) -> None:
    """Change the address to a row's, and wait until the page has been told."""
    page.evaluate(
        "name => new Promise(done => {"
        " addEventListener('hashchange', () => setTimeout(done), {once: true});"
        " location.hash = name })",
        name,
    )


def tags_with_details_open(page: Page, ids: list[str]) -> list[list[str]]:
    tags = [page.evaluate("[...document.querySelectorAll('*')].map(e => e.tagName)")]
    for name in ids:
        go_to(page, name)
        tags.append(page.evaluate("[...document.querySelectorAll('dialog *')].map(e => e.tagName)"))
    return tags


def test_no_text_of_a_board_becomes_markup_or_runs(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    board["reconstructions"] = {}  # as in the other board, whose pictures are no pictures
    nasty = made_nasty(copy.deepcopy(board))
    nasty["reconstructions"] = {
        row["checkpoint"]: 'data:image/png;base64,AA" onerror="window.__pwned=1'
        for row in board["rows"]
        if row["checkpoint"]
    }
    ids = ["row-1", "row-6"]
    page = show(nasty)
    assert tags_with_details_open(page, ids) == tags_with_details_open(show(board), ids)
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
        assert any((text + NASTY).strip() in t for t in texts), text
    assert not any("49" in t for t in texts)


def test_a_script_that_is_not_the_pages_own_does_not_run(
    board: dict[str, Any], browser: Browser, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    file.write_text(
        render_page(board).replace("</main>", "<script>window.__pwned = 1</script></main>")
    )
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.evaluate("window.__pwned") is None
    assert len(rows_shown(page)) == len(board["rows"])
    page.close()


@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1300), ("dark", 1300), ("light", 390), ("dark", 390)]
)
def test_the_page_is_accessible_and_no_wider_than_its_window(
    board: dict[str, Any], show: Callable[..., Page], scheme: str, width: int
) -> None:
    board["rows"][0]["label"] = "a_label_without_a_place_to_break_" * 4
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
        for part in ("html", "dialog"):
            assert page.locator(part).evaluate("part => part.scrollWidth - part.clientWidth") <= 0


def test_a_pareto_front_is_what_nothing_dominates() -> None:
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


def test_plots_compare_rows_of_one_group_alone(
    board: dict[str, Any], show: Callable[..., Page]
) -> None:
    page = show(board)
    page.locator("[name=column]").select_option(label="linear")
    page.locator("[name=cost]").select_option("device_hours")
    plot = page.locator("figure.plot:visible")
    # The dearer of each group's two is the worse; B's row that beats all of A's does not matter to A.
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
    assert plot.locator("h4").count() == 0  # a partial evaluation heads nothing


def test_points_stand_where_their_costs_and_scores_are(
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


def test_one_board_gives_one_page(board: dict[str, Any]) -> None:
    again = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json, sys; from simmim_bench.leaderboard.page import to_html;"
            "sys.stdout.buffer.write(to_html(json.load(sys.stdin)).encode())",
        ],
        input=json.dumps(board).encode(),
        capture_output=True,
        check=True,
    )
    assert again.stdout == render_page(board).encode()


def test_a_board_without_rows_is_a_page(show: Callable[..., Page]) -> None:
    page = show(make_board({}))
    assert "No row" in page.inner_text("#scores")
    assert page.locator("#cost").count() == 0


def test_a_thousand_records_are_shown(show: Callable[..., Page]) -> None:
    generator = random.Random(0)
    scores = [("vit_pocket", generator.uniform(1, 99)) for _ in range(500)]
    board = make_board({"A": scores})
    assert len(board["records"]) == 1000
    page = show(board, hash="#row-500")
    assert "row-500-1-hash" in page.get_by_role("dialog").text_content()
    page.keyboard.press("Escape")
    sort_by(page, FIRST_SCORE + LINEAR, "descending")
    best_first = sorted(board["rows"], key=lambda row: -row["cells"][LINEAR]["mean"])
    assert rows_shown(page) == [row["id"] for row in best_first]
