"""Boards as the page receives them, and actions on an open page."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page

COLUMNS = (
    ("fine-tuned top-1", "imagenet", "top1"),
    ("linear", "linear", "top1"),
    ("k-NN", "knn", "top1"),
    ("1 %", "fewshot-1%", "top1"),
    ("10 %", "fewshot-10%", "top1"),
    ("detection box AP", "coco", "box_ap"),
    ("mask AP", "coco", "mask_ap"),
    ("segmentation mIoU", "ade20k", "miou"),
)
FIRST_SCORE = 1  # columns of the table before the scores
LINEAR = 1  # index of the column "linear" among the scores
LINEAR_SHOWN = 0  # among those that a table of a test board shows


def make_cell(mean: float, records: list[int], **fields: Any) -> dict[str, Any]:
    marks = {"best": False, "deviates": False, "partial": False, "dirty": False}
    return {
        "mean": mean,
        "std": None,
        "seeds": max(len(records), 1),
        "text": f"{mean:.1f}",
        "spread": [],
        "standard_error": None,
        "rank": None,
        "records": records,
        "published": None,
        "comparison": None,
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
    """Build the page's data with one row per (arch, linear top-1) of every group.

    Args:
        linear: architectures and scores by group name; the rows of "" are reported ones.
    """
    records: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for group, scores in linear.items():
        for rank, (arch, score) in enumerate(scores, 1):
            name = f"row-{len(rows) + 1}"
            row: dict[str, Any] = {
                "id": name,
                "group": group or None,
                "rank": None,
                "sound": True,
                "pretrainings": [],
                "label": f"{arch}, {name.replace('-', ' ')}",
                "family": "simmim" if group else "MAE",
                "arch": arch,
                "status": "reproduced" if group else "reported",
                "checkpoint": f"{len(rows):064x}" if group else "",
                "lineage": {"method": "simmim", "deviates": {"epochs": 11}} if group else {},
                "cost": {"device_hours": 0.5 * rank if group else None, "params_m": 2.0 * rank},
                "cells": [None] * len(COLUMNS),
                "inapplicable": [False] * len(COLUMNS),
                "source": f"a paper, table {rank}",
                "confidence": "medium",
                "protocol_text": f"linear probe, {rank} epochs",
            }
            if score is not None:
                record_numbers = [len(records), len(records) + 1] if group else []
                records += [
                    make_page_record(name, seed, score) for seed in range(len(record_numbers))
                ]
                row["cells"][LINEAR] = make_cell(
                    score, record_numbers, best=bool(group) and rank == 1
                )
            rows.append(row)
    return {
        "version": "0.1.0",
        "overall": False,
        "comparisons": {"texts": [], "groups": [], "shown": None},
        "columns": [dict(zip(("title", "task", "metric"), c, strict=True)) for c in COLUMNS],
        "groups": [
            {
                "name": name,
                "title": f"cifar10 of {name}",
                "protocols": {"linear": make_protocol("linear")},
            }
            for name in linear
            if name
        ],
        "rows": rows,
        "small_sets": [],
        "records": records,
        "reconstructions": {},
        "problems": ["record lost/record.json is damaged (no seed)"],
        "notes": ["* Deviates.", "† Partial.", "‡ Dirty.", "seeds ± is over seeds."],
    }


def make_page_record(row: str, seed: int, score: float) -> dict[str, Any]:
    return {
        "path": f"records/{row}/{seed}/record.json",
        "checkpoint": f"runs/{row}",
        "task": "linear",
        "data_set": None,
        "metrics": {"top1": score + seed / 8, "top5": 90.0},
        "calibration": f"ECE 3.{seed} %, NLL 1.5 nats, Brier score 0.4",
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


def rows_shown(page: Page) -> list[str]:
    """Return the ids of the table's rows in their order."""
    return page.evaluate(
        "[...document.querySelectorAll('#scores tbody tr[data-row]')].map(r => r.dataset.row)"
    )


def sort_by(page: Page, column: int, order: str, keyboard: bool = False) -> None:
    """Activate a column's header, and wait until it shows the order."""
    header = page.locator("#scores thead th").nth(column)
    if keyboard:
        header.get_by_role("button").focus()
        page.keyboard.press("Enter")
    else:
        header.click()
    mark = {"ascending": "dt-ordering-asc", "descending": "dt-ordering-desc"}[order]
    page.locator(f"#scores thead th:nth-child({column + 1}).{mark}").wait_for()


def go_to(page: Page, name: str) -> None:
    """Change the address to a row's, and wait until the page has handled the change."""
    page.evaluate(
        "name => new Promise(done => {"
        " addEventListener('hashchange', () => setTimeout(done), {once: true});"
        " location.hash = name })",
        name,
    )
