"""Tests of the details dialog in a browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page


@pytest.mark.parametrize("opened_by", ["click", "enter", "address", "point"])
def test_details_show_every_record_and_return_the_focus(
    board: dict[str, Any], show: Callable[..., Page], opened_by: str
) -> None:
    page = show(board, hash="#row-1" if opened_by == "address" else "")
    link = page.locator("#row-1 a")
    if opened_by == "click":
        link.click()
    elif opened_by == "enter":
        link.focus()
        page.keyboard.press("Enter")
    elif opened_by == "point":
        page.locator("figure.plot:visible svg a[href='#row-1']").click()
    dialog = page.get_by_role("dialog", name=board["rows"][0]["label"])
    dialog.wait_for()
    assert page.url.endswith("#row-1")
    text = dialog.text_content() or ""
    records = [r for r in board["records"] if "/row-1/" in r["path"]]
    assert len(records) == 2
    for record in records:
        for field in (
            "path",
            "command",
            "predictions_sha256",
            "date",
            "device",
            "commit",
            "calibration",
        ):
            assert record[field] in text
        assert f"top1 {record['metrics']['top1']:.2f}" in text
    assert board["rows"][0]["checkpoint"] in text
    assert "row-2-0-hash" not in text
    assert dialog.locator("figure.reconstruction img").evaluate("image => image.naturalWidth") == 1
    classes = dialog.locator(".classes").first
    classes.locator("summary").click()
    assert classes.locator("tbody tr").all_inner_texts() == ["sky\t91.5", "road\t40.3", "pole\t–"]
    curve = (dialog.locator(".curve polyline").first.get_attribute("points") or "").split()
    assert curve[0] == "0.0,0.0"
    assert curve[-1] == "300.0,80.0"
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.wait_for_url(lambda url: "#" not in url)
    if opened_by != "point":
        assert link.evaluate("link => link === document.activeElement")


def test_going_back_closes_the_details(board: dict[str, Any], show: Callable[..., Page]) -> None:
    page = show(board)
    page.locator("#row-2 a").click()
    page.get_by_role("dialog").wait_for()
    page.go_back()
    page.get_by_role("dialog").wait_for(state="hidden")


def test_a_reported_row_shows_its_source(board: dict[str, Any], show: Callable[..., Page]) -> None:
    row = board["rows"][5]
    page = show(board, hash=f"#{row['id']}")
    text = page.get_by_role("dialog").inner_text()
    assert all(row[field] in text for field in ("source", "confidence", "protocol_text"))


def test_a_command_is_copied_verbatim(board: dict[str, Any], show: Callable[..., Page]) -> None:
    page = show(board, hash="#row-1", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == board["records"][0]["command"]
