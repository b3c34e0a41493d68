"""Build the data of the HTML page as plain JSON, from a board and the files of its runs.

Training curves, per-class scores and reconstructions are read from the run directories or the archive. Missing files
are skipped, and damaged ones are listed among the page's problems.
"""

from __future__ import annotations

import base64
import io
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from simmim_bench import __version__
from simmim_bench.errors import DataError
from simmim_bench.leaderboard.archive import (
    RECONSTRUCTIONS,
    find_archived_checkpoint,
    find_reconstructions,
)
from simmim_bench.leaderboard.board import Board, ProtocolGroup, Row, ScoreCell
from simmim_bench.leaderboard.reported import ReportedRow
from simmim_bench.leaderboard.small_sets import SmallSetTable
from simmim_bench.leaderboard.tables import describe_group, plain_published
from simmim_bench.leaderboard.text_tables import explain_marks
from simmim_bench.results.record import Record
from simmim_bench.tasks import CALIBRATION_METRICS, columns, format_metric
from simmim_bench.untrusted.images import read_png
from simmim_bench.untrusted.json_text import parse_json, read_json
from simmim_bench.untrusted.paths import check_below, read_bytes
from simmim_bench.untrusted.text import describe_error

CURVE_POINTS = 80
MAX_CURVE_BYTES = 1 << 30  # of metrics.jsonl; 300,000 steps have 60 MB
MAX_CLASSES = 20_000  # whose scores a page can list
IMAGE_WIDTH = 900  # pixels; wider reconstructions are scaled down for the page
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
    tables = board.small_sets
    images: dict[str, str | None] = {}
    for _, row in rows:
        if row.checkpoint not in images:
            path = row.records[0]
            images[row.checkpoint] = _reconstruction(path, board.records[path], problems)
    return {
        "version": __version__,
        "columns": [vars(column) for column in columns()],
        "groups": [{"name": group.name, "protocols": _protocols(group)} for group in board.groups],
        "rows": [
            *(_row(f"row-{i}", g, r, board, record_numbers) for i, (g, r) in enumerate(rows, 1)),
            *(_reported_row(f"row-{i}", r) for i, r in enumerate(reported, len(rows) + 1)),
        ],
        "small_sets": [_small_sets(table, record_numbers) for table in tables],
        "records": [_record(path, record, problems) for path, record in board.records.items()],
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
        "rank": row.mean_rank,
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
            None if cell is None else _cell(cell, record_numbers)
            for i, cell in enumerate(row.cells)
        ],
        "inapplicable": [i in row.inapplicable for i in range(len(row.cells))],
    }


def _cell(cell: ScoreCell, record_numbers: dict[Path, int]) -> dict[str, Any]:
    return {
        "mean": cell.mean,
        "std": cell.std,
        "seeds": len(cell.values),
        "text": str(cell),
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
                for i, cell in enumerate((*row.cells, row.mean))
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
    if not (_is_number(seconds) and _is_number(devices)):
        return None
    return transfers + seconds * devices / 3600


def _is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number from 0 that can be computed with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


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
                **_cell(ScoreCell((score.value,)), record_numbers={}),
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


def _record(path: Path, record: Record, problems: list[str]) -> dict[str, Any]:
    """Describe a record, and append the faults of its files to the problems."""
    environment, memory = record.environment, record.cost["peak_memory_bytes"]
    return {
        "path": path.as_posix(),
        "task": record.task,
        "data_set": record.data.get("name"),
        "metrics": {k: v for k, v in record.metrics.items() if k not in CALIBRATION_METRICS},
        "calibration": _calibration(record.metrics),
        "seed": record.seed,
        "recipe": record.recipe["name"],
        "deviates": record.deviates,
        "evaluated": record.evaluated,
        "expected": record.expected,
        "device": environment.get("device"),
        "device_hours": record.cost["device_hours"],
        "wall_time_s": record.wall_time_s,
        "peak_memory_gib": None if memory is None else memory / 2**30,
        "images_per_s": record.cost["images_per_s"],
        "date": record.date,
        "version": environment.get("simmim_bench"),
        "commit": environment.get("commit"),
        "dirty": environment.get("dirty"),
        "libraries": environment.get("libraries", {}),
        "predictions_sha256": record.predictions["sha256"],
        "command": shlex.join(record.command),
        "curve": _curve(path.parent / "metrics.jsonl", problems),
        "by_class": _scores_by_class(path.parent, problems),
    }


def _calibration(metrics: Mapping[str, float]) -> str | None:
    """Describe the calibration of a classifier; None for a record without these metrics."""
    if not {*CALIBRATION_METRICS} <= {*metrics}:
        return None
    ece, nll, brier = (format_metric(name, metrics[name]) for name in CALIBRATION_METRICS)
    return f"ECE {ece} %, NLL {nll} nats, Brier score {brier}"


def _curve(path: Path, problems: list[str]) -> list[tuple[int, float]] | None:
    """Read at most `CURVE_POINTS` (step, loss) pairs of a run; None for fewer than two."""
    if not path.exists():
        return None
    try:
        check_below(path.parent, path, "metrics")
        lines = read_bytes(path, "metrics", MAX_CURVE_BYTES).splitlines()
    except DataError as error:
        problems.append(str(error))
        return None
    points = [point for line in lines if (point := _point(line)) is not None]
    stride = max(1, -(-len(points) // CURVE_POINTS))
    return points[::stride] if len(points) > 1 else None


def _point(line: bytes) -> tuple[int, float] | None:
    """Return a step and its loss; None for a line without a loss, or one that an interrupted run did not complete."""
    try:
        metrics = parse_json(line, finite=False)
    except ValueError:
        return None
    if not isinstance(metrics, dict):
        return None
    step, loss = metrics.get("step"), metrics.get("loss")
    if not (_is_number(step) and isinstance(loss, int | float)):
        return None
    return int(step), float(loss)


def _scores_by_class(folder: Path, problems: list[str]) -> dict[str, float] | None:
    """Read a run's scores by class: the IoU, or the AP of boxes and of masks; None if it has none."""
    for name in ("iou_by_class.json", "ap_by_class.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            check_below(folder, path, "scores by class")
            stored = read_json(path, "scores by class")
            return _flatten_scores(stored if name.startswith("ap") else {"": stored})
        except DataError as error:
            problems.append(str(error))
        except (AttributeError, TypeError, ValueError) as error:
            problems.append(f"scores by class {path} cannot be read: {describe_error(error)}.")
    return None


def _flatten_scores(by_kind: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the scores by class and kind; raise TypeError or ValueError for what are no scores."""
    flat = {
        f"{label}, {kind}" if kind else label: float(value)
        for kind, values in by_kind.items()
        for label, value in values.items()
    }
    if len(flat) > 2 * MAX_CLASSES or not all(map(math.isfinite, flat.values())):
        raise ValueError(f"more than {MAX_CLASSES:,} classes, or a score that is not finite")
    return flat


def _reconstruction(path: Path, record: Record, problems: list[str]) -> str | None:
    """Read the reconstructions that a checkpoint's pretraining wrote, as a data URL; None if there are none.

    Args:
        path: the path of `record`, whose folder or archive may contain the image.
    """
    try:
        image = find_reconstructions(record)
        archived = find_archived_checkpoint(path, record)
        if image is None and archived is not None and (archived / RECONSTRUCTIONS).exists():
            image = archived / RECONSTRUCTIONS
            check_below(archived, image, "reconstructions")
        if image is None:
            return None
        thumbnail = read_png(image, "image")
        thumbnail.thumbnail((IMAGE_WIDTH, 4 * IMAGE_WIDTH))
        out = io.BytesIO()
        thumbnail.save(out, "WEBP", quality=80)
    except DataError as error:
        problems.append(str(error))
        return None
    except (OSError, ValueError) as error:  # a side of 0 or more than WebP's 16,383 pixels
        problems.append(f"reconstructions of {path} cannot be shown: {describe_error(error)}.")
        return None
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
