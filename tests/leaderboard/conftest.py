"""Fixtures of the page's tests: a board, and a browser that opens its page."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.pages import LINEAR, make_board, make_cell, make_protocol

from simmim_bench.leaderboard.page import render_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)

WINDOW: dict[str, Any] = {"viewport": {"width": 1300, "height": 800}}


@pytest.fixture
def board() -> dict[str, Any]:
    """Build a board whose scores sort differently as text, with missing scores and several protocols."""
    board = make_board(
        {
            "A": [("vit_pocket", 56.25), ("swin_pocket", 9.5), ("vit_pocket", None)],
            "B": [("vit_pocket", 100.0), ("swin_pocket", 10.25)],
            "": [("vit_b", 80.5), ("vit_l", None), ("vit_b", 7.0)],
        }
    )
    # A third measured score in a group, without which it has no plot.
    (last,) = make_board({"A": [("vit_s", 33.5)]})["rows"]
    last |= {"id": "row-9", "label": "vit_s, row 9", "checkpoint": "9" * 64}
    last["cells"][LINEAR] |= {"best": False, "records": []}
    last["cost"] = {"device_hours": 3.0, "params_m": 9.0}
    board["rows"].append(last)
    changed = {"data": "stl10", "deviates": {"optimizer.lr": 0.5}}
    fields = {"epochs": 90, "optimizer": {"name": "sgd", "lr": 0.5}, "img_size": [32, 32]}
    board["groups"][1]["protocols"]["linear"] |= {**changed, "fields": fields}
    board["groups"][0]["protocols"]["knn"] = make_protocol("knn")
    board["rows"][1]["cells"][5] = make_cell(30.0, [], deviates=True, partial=True, dirty=True)
    board["rows"][1] |= {"sound": False, "status": "partial"}
    board["rows"][1]["inapplicable"][6] = True
    board["rows"][2] |= {"status": "partial", "rank": None}
    board["rows"][5]["cost"]["device_hours"] = 0.1  # must not be compared with reproduced rows
    # Differences in the columns linear and k-NN: index, points, low, high, p, Holm's p, images, units, kinds, alone.
    pairs = {
        "0-1": [
            0,
            [
                [1, 46.75, 40.0, 53.5, 0.0001, 0.0002, 4000, 3, 2, 0, 0, 0],
                [2, -2.0, -9.0, 5.0, 0.4, 0.4, 4000, 1, 1, 0, 0, 0],
            ],
            [[5, 1]],
        ],
        "0-2": [0, [[1, -1.0, -2.0, -0.5, 0.01, None, 4000, 1, 1, 0, 0, 1]], []],
    }
    scores: list[list[str | None]] = [["56.2"] * 8, ["9.5"] * 8, ["57.2"] * 8]
    ids = [row["id"] for row in board["rows"][:3]]
    board["comparisons"] = {
        "texts": ["About these checkpoints.", "only B has a score"],
        "groups": [
            {"name": "A", "rows": ids, "scores": scores, "compared": 1, "pairs": pairs},
            {
                "name": "B",
                "rows": ["row-4", "row-5"],
                "scores": scores,
                "compared": 2,
                "pairs": {
                    "0-1": [0, [[1, 90.0, 80.0, 100.0, 0.01, 0.01, 10, 2, 3, 1, 0, 0]], []],
                },
            },
        ],
        "shown": (0, 0, 1),
    }
    board["reconstructions"] = {board["rows"][0]["checkpoint"]: PIXEL}
    return board


@functools.cache
def render(board: str) -> str:
    """Render a board in JSON once for all tests that open its page."""
    return render_page(json.loads(board))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Start the system's Chromium once for all tests of the page."""
    from playwright.sync_api import sync_playwright

    required = os.environ.get("BROWSER_TESTS") == "required"
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    if binary is None:
        stop: Callable[[str], object] = pytest.fail if required else pytest.skip
        stop("no Chromium is on PATH (on Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def window(browser: Browser) -> Iterator[Page]:
    """Open one window for the pages of all tests, as a new one takes longer than most pages."""
    with browser.new_context(**WINDOW) as context:
        yield context.new_page()


@pytest.fixture
def show(browser: Browser, window: Page, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a board's page; fail on console messages, errors and requests.

    The first page without options is opened in the shared window.
    """
    messages: list[str] = []
    requests: list[str] = []
    contexts: list[BrowserContext] = []
    unused = [window]
    file = tmp_path / "leaderboard.html"
    listeners: dict[Any, Callable[[Any], None]] = {
        "console": lambda message: messages.append(message.text),
        "pageerror": lambda error: messages.append(str(error)),
        "request": lambda request: requests.append(request.url),
    }

    def open_page(board: dict[str, Any], hash: str = "", **options: Any) -> Page:
        file.write_text(render(json.dumps(board)), encoding="utf-8")
        if options or not unused:
            contexts.append(browser.new_context(**{**WINDOW, **options}))
            page = contexts[-1].new_page()
        else:
            page = unused.pop()
        page.set_default_timeout(5000)
        for event, listener in listeners.items():
            page.on(event, listener)
        page.goto(file.as_uri() + hash)
        return page

    yield open_page
    for context in contexts:
        context.close()
    if not unused:
        for event, listener in listeners.items():
            window.remove_listener(event, listener)
        window.mouse.move(0, 0)
        window.goto("about:blank")
    assert messages == []
    requested = {url.partition("#")[0] for url in requests if not url.startswith("data:")}
    assert requested == {file.as_uri()}
