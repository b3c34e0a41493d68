"""Build the data of the HTML page as plain JSON from a board; `page_files.py` reads the files of its runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simmim_bench import __version__
from simmim_bench.leaderboard.board import Board, ProtocolGroup, Row, ScoreCell
from simmim_bench.leaderboard.page_files import describe_record, is_number, read_reconstructions
from simmim_bench.leaderboard.reported import ReportedRow
from simmim_bench.leaderboard.small_sets import SmallSetTable, mean_cell, small_set_tables
from simmim_bench.leaderboard.tables import describe_group, explain_marks, plain_published
from simmim_bench.results.record import Record
from simmim_bench.tasks import columns

PROVENANCE_KEYS = (
    *("method", "recipe", "deviates", "data", "images", "epochs", "licence", "paper"),
    *("held_out_loss", "psnr", "ssim", "effective_rank", "avg_dist", "probe"),
)


def page_data(board: Board, reported: Sequence[ReportedRow] = ()) -> dict[str, Any]:
    """Return the page's data.

    Returns:
        `version`; `columns` (title, task, metric); `groups` (name, protocols by task; rows of one group are
        ranked together); `rows` (one per checkpoint, with a cell or null per column, rank, provenance as
        `lineage`, and cost); `small_sets` (a table per metric and recipe of named data sets); `records`, which the
        cells refer to by index; `reconstructions` (data URLs of images by checkpoint hash); `problems` (one sentence
        per damaged record or file) and `notes` (footnotes).
    """
    problems = list(board.problems)
    record_numbers = {path: number for number, path in enumerate(board.records)}
    rows = [(group, row) for group in board.groups for row in group.rows]
    tables = small_set_tables(board)
    images: dict[str, str | None] = {}
    for _, row in rows:
        if row.checkpoint not in images:
            path = row.records[0]
            images[row.checkpoint] = read_reconstructions(path, board.records[path], problems)
    return {
        "version": __version__,
        "columns": [vars(column) for column in columns()],
        "groups": [{"name": group.name, "protocols": _protocols(group)} for group in board.groups],
        "rows": [
            *(_row(f"row-{i}", g, r, board, record_numbers) for i, (g, r) in enumerate(rows, 1)),
            *(_reported_row(f"row-{i}", r) for i, r in enumerate(reported, len(rows) + 1)),
        ],
        "small_sets": [_small_sets(table, record_numbers) for table in tables],
        "records": [
            describe_record(path, record, problems) for path, record in board.records.items()
        ],
        "reconstructions": {sha256: url for sha256, url in images.items() if url is not None},
        "problems": problems,
        "notes": explain_marks([*board.rows, *(row for table in tables for row in table.rows)]),
    }


def _protocols(group: ProtocolGroup) -> dict[str, Any]:
    described = describe_group(group)
    return {
        task: {**described[task], "fields": record.recipe["fields"]}
        for task, record in group.protocols.items()
    }


def _row(
    name: str, group: ProtocolGroup, row: Row, board: Board, record_numbers: dict[Path, int]
) -> dict[str, Any]:
    records = [board.records[path] for path in row.records]
    provenance = records[0].checkpoint["provenance"]
    params = records[0].checkpoint.get("params")
    return {
        "id": name,
        "group": group.name,
        "rank": row.rank,
        "label": row.label,
        "arch": row.arch,
        "status": "partial" if row.is_partial else "reproduced",
        "checkpoint": row.checkpoint,
        "lineage": _flatten_provenance(provenance),
        "cost": {
            "device_hours": device_hours(records),
            "params_m": None if params is None else params / 1e6,
        },
        "cells": [
            None if cell is None else _cell(cell, group.best(i) is row, record_numbers)
            for i, cell in enumerate(row.cells)
        ],
        "inapplicable": [i in row.inapplicable for i in range(len(row.cells))],
    }


def _cell(cell: ScoreCell, best: bool, record_numbers: dict[Path, int]) -> dict[str, Any]:
    return {
        "mean": cell.mean,
        "std": cell.std,
        "seeds": len(cell.values),
        "text": str(cell),
        "best": best,
        "deviates": cell.deviates,
        "partial": cell.partial,
        "dirty": cell.dirty,
        "published": plain_published(cell),
        "comparison": cell.comparison,
        "records": [record_numbers[path] for path in cell.records],
    }


def _small_sets(table: SmallSetTable, record_numbers: dict[Path, int]) -> dict[str, Any]:
    best = table.best_rows()
    rows = [
        {
            "label": row.label,
            "rank": row.rank,
            "cells": [
                None if cell is None else _cell(cell, best[i] is row, record_numbers)
                for i, cell in enumerate((*row.cells, mean_cell(row)))
            ],
        }
        for row in table.rows
    ]
    return {
        "title": table.title,
        "recipe": table.protocol,
        "data_sets": table.data_sets,
        "rows": rows,
    }


def _flatten_provenance(provenance: dict[str, Any]) -> dict[str, Any]:
    """Return the known `PROVENANCE_KEYS` of a checkpoint, with names for its recipe and data set."""
    flat = dict(provenance)
    if isinstance(recipe := provenance.get("recipe"), dict):
        flat |= {"recipe": recipe.get("name"), "deviates": recipe.get("deviates")}
    if isinstance(data := provenance.get("data"), dict):
        flat |= {"data": Path(str(data.get("root"))).name, "images": data.get("images")}
    for key, value in flat.items():
        if isinstance(value, float):
            flat[key] = int(value) if value.is_integer() else float(f"{value:.4g}")
    return {key: flat[key] for key in PROVENANCE_KEYS if flat.get(key) not in (None, {}, "")}


def device_hours(records: Sequence[Record]) -> float | None:
    """Compute the cost of a row: its pretraining plus the mean over seeds of every task, in device-hours.

    Returns:
        None if the cost of the pretraining or of any record is unknown. Random weights have no pretraining.
    """
    by_task: dict[str, list[float]] = {}
    for record in records:
        hours = record.cost["device_hours"]
        if hours is None:
            return None
        by_task.setdefault(record.task, []).append(hours)
    provenance = records[0].checkpoint["provenance"]
    transfers = sum(map(statistics.fmean, by_task.values()))
    if provenance.get("method") == "random":
        return transfers
    seconds, devices = provenance.get("wall_time_s"), provenance.get("devices", 1)
    if not (is_number(seconds) and is_number(devices)):
        return None
    return transfers + seconds * devices / 3600


def _reported_row(name: str, row: ReportedRow) -> dict[str, Any]:
    scores = [score for score in row.scores if score is not None]
    protocols = [
        f"{column.title}: {score.protocol}" + (f" ({score.note})" if score.note else "")
        for column, score in zip(columns(), row.scores, strict=True)
        if score is not None
    ]
    return {
        "id": name,
        "group": None,
        "rank": None,
        "label": row.label,
        "arch": row.backbone,
        "status": "reported",
        "checkpoint": "",
        "lineage": {
            "method": row.method,
            "data": row.data,
            "epochs": row.epochs,
            "img_size": row.img_size,
        },
        "cost": {"device_hours": None, "params_m": row.params_m},
        "cells": [
            None
            if score is None
            else {
                **_cell(ScoreCell((score.value,)), best=False, record_numbers={}),
                "protocol": score.protocol,
                "source": score.source,
                "confidence": score.confidence,
                "note": score.note,
            }
            for score in row.scores
        ],
        "inapplicable": [False] * len(row.scores),
        "source": "; ".join(dict.fromkeys(score.source for score in scores)),
        "confidence": "medium" if any(s.confidence == "medium" for s in scores) else "high",
        "protocol_text": "; ".join(protocols),
        "recipes": ", ".join(row.recipes),
    }
