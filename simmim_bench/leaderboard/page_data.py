"""Build the data of the HTML page as plain JSON from a board; `page_files.py` reads the files of its runs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simmim_bench import __version__
from simmim_bench.files import sha256_json
from simmim_bench.leaderboard.board import Board, ProtocolGroup
from simmim_bench.leaderboard.group_names import group_titles
from simmim_bench.leaderboard.overview import family_of
from simmim_bench.leaderboard.page_comparisons import plain_comparisons
from simmim_bench.leaderboard.page_files import describe_record, is_number, read_reconstructions
from simmim_bench.leaderboard.reported import ReportedRow
from simmim_bench.leaderboard.rows import Row, ScoreCell
from simmim_bench.leaderboard.small_sets import SmallSetTable
from simmim_bench.leaderboard.tables import describe_group, explain_board, plain_published
from simmim_bench.leaderboard.text_tables import explain_marks
from simmim_bench.results.record import Record
from simmim_bench.tasks import columns

PROVENANCE_KEYS = (
    *("method", "recipe", "deviates", "data", "images", "epochs", "licence", "paper"),
    *("held_out_loss", "psnr", "ssim", "effective_rank", "avg_dist", "probe"),
)


def page_data(board: Board, reported: Sequence[ReportedRow] = ()) -> dict[str, Any]:
    """Return the page's data.

    Returns:
        `version`; `columns` (title, task, metric); `groups` (name, title, protocols by task; rows of one group can
        be compared); `rows` (one per checkpoint or method, with a cell or null per column, the method's `family`,
        provenance as `lineage`, cost, and the `pretrainings` of a method); `overall`, whether rows have a mean rank;
        `comparisons` (differences of pairs of rows; see `page_comparisons.py`); `small_sets` (a table per metric and
        recipe of named data sets); `records`, which the cells refer to by index; `reconstructions` (data URLs of
        images by checkpoint hash); `problems` (one sentence per damaged record or file) and `notes` (footnotes).
    """
    problems = list(board.problems)
    record_numbers = {path: number for number, path in enumerate(board.records)}
    rows = [(group, row) for group in board.groups for row in group.rows]
    tables = board.small_sets
    images: dict[str, str | None] = {}
    for one in (one for _, row in rows for one in row.pretrainings or (row,)):
        if one.checkpoint not in images:
            path = one.records[0]
            images[one.checkpoint] = read_reconstructions(path, board.records[path], problems)
    titles = group_titles(board)
    ids = _row_ids(board, reported, titles)
    return {
        "version": __version__,
        "overall": board.overall,
        "comparisons": plain_comparisons(board, ids),
        "columns": [vars(column) for column in columns()],
        "groups": [
            {"name": group.name, "title": titles[group.name], "protocols": _protocols(group)}
            for group in board.groups
        ],
        "rows": [
            *(_row(ids[g.name, r.label], g, r, board, record_numbers) for g, r in rows),
            *(_reported_row(ids["", str(i)], r) for i, r in enumerate(reported)),
        ],
        "small_sets": [_small_sets(table, record_numbers) for table in tables],
        "records": [
            describe_record(path, record, problems) for path, record in board.records.items()
        ],
        "reconstructions": {sha256: url for sha256, url in images.items() if url is not None},
        "problems": problems,
        "notes": list(
            dict.fromkeys(
                [
                    *explain_board(board),
                    *explain_marks([row for table in tables for row in table.rows]),
                ]
            )
        ),
    }


def _row_ids(
    board: Board, reported: Sequence[ReportedRow], titles: Mapping[str, str]
) -> dict[tuple[str, str], str]:
    """Return the id of every row, which stays the same when other rows are added, so that it can be linked to.

    Returns:
        Ids by the name of the group and the label, or "" and the number of a published row.
    """
    named: dict[tuple[str, str], list[Any]] = {
        (group.name, row.label): [row.checkpoint or row.label, titles[group.name]]
        for group in board.groups
        for row in group.rows
    }
    for number, row in enumerate(reported):
        scores = [score and [score.protocol, score.source] for score in row.scores]
        named["", str(number)] = [row.label, row.params_m, row.img_size, scores]
    ids: dict[tuple[str, str], str] = {}
    used = Counter[str]()
    for key, identity in named.items():
        name = f"row-{sha256_json(identity)[:10]}"
        used[name] += 1
        ids[key] = name if used[name] == 1 else f"{name}-{used[name]}"
    return ids


def _protocols(group: ProtocolGroup) -> dict[str, Any]:
    described = describe_group(group)
    return {
        task: {**described[task], "fields": record.recipe["fields"]}
        for task, record in group.protocols.items()
    }


def _row(
    name: str, group: ProtocolGroup, row: Row, board: Board, record_numbers: dict[Path, int]
) -> dict[str, Any]:
    first = board.records[row.records[0]]
    params = first.checkpoint.get("params")
    return {
        "id": name,
        "group": group.name,
        "rank": row.mean_rank,
        "label": row.label,
        "family": family_of(_lineage(row, board).get("method")),
        "arch": row.arch,
        "status": "partial" if row.is_partial else "reproduced",
        "sound": row.is_sound,
        "checkpoint": row.checkpoint,
        "lineage": _lineage(row, board),
        "cost": {
            "device_hours": _row_device_hours(row, board),
            "params_m": None if params is None else params / 1e6,
        },
        "cells": [None if cell is None else _cell(cell, record_numbers) for cell in row.cells],
        "inapplicable": [i in row.inapplicable for i in range(len(row.cells))],
        "pretrainings": [
            {
                "label": one.label,
                "seed": one.pretraining_seed,
                "checkpoint": one.checkpoint,
                "cells": [c and _cell(c, record_numbers) for c in one.cells],
            }
            for one in row.pretrainings
        ],
    }


def _cell(cell: ScoreCell, record_numbers: Mapping[Path, int]) -> dict[str, Any]:
    return {
        "mean": cell.mean,
        "std": cell.std,
        "seeds": len(cell.values),
        "text": f"{cell.mean:.1f}",
        "spread": cell.lines[1:],
        "standard_error": None if cell.uncertainty is None else cell.uncertainty.total,
        "rank": cell.rank,
        "best": cell.best,
        "deviates": cell.deviates,
        "partial": cell.partial,
        "dirty": cell.dirty,
        "published": plain_published(cell),
        "comparison": cell.comparison,
        "records": [record_numbers[path] for path in cell.records],
    }


def _small_sets(table: SmallSetTable, record_numbers: dict[Path, int]) -> dict[str, Any]:
    rows = [
        {
            "label": row.label,
            "rank": None if row.mean is None else row.mean.rank,
            "cells": [
                None if cell is None else _cell(cell, record_numbers)
                for cell in (*row.cells, row.mean)
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


def _lineage(row: Row, board: Board) -> dict[str, Any]:
    """Return the provenance of a checkpoint, or what the pretrainings of a method have in common."""
    first, *others = (
        _flatten_provenance(board.records[one.records[0]].checkpoint["provenance"])
        for one in row.pretrainings or (row,)
    )
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
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


def _row_device_hours(row: Row, board: Board) -> float | None:
    """Return the cost of a checkpoint, or the mean cost of the pretrainings of a method; None if one is unknown."""
    costs = [
        device_hours([board.records[path] for path in one.records])
        for one in row.pretrainings or (row,)
    ]
    known = [cost for cost in costs if cost is not None]
    return statistics.fmean(known) if len(known) == len(costs) else None


def device_hours(records: Sequence[Record]) -> float | None:
    """Compute the cost of a checkpoint: its pretraining plus the mean over seeds of every task, in device-hours.

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
        "family": family_of(row.method),
        "arch": row.backbone,
        "status": "reported",
        "sound": True,
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
                **_cell(ScoreCell((score.value,)), {}),
                "protocol": score.protocol,
                "source": score.source,
                "confidence": score.confidence,
                "note": score.note,
            }
            for score in row.scores
        ],
        "inapplicable": [False] * len(row.scores),
        "pretrainings": [],
        "source": "; ".join(dict.fromkeys(score.source for score in scores)),
        "confidence": "medium" if any(s.confidence == "medium" for s in scores) else "high",
        "protocol_text": "; ".join(protocols),
        "recipes": ", ".join(row.recipes),
    }
