"""Build the data of the HTML page as plain JSON, from a board and the files of its runs.

Training curves, per-class scores and reconstructions are read from the run directories or the archive; missing
files are skipped.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from simmim_bench import __version__
from simmim_bench.files import read_lines
from simmim_bench.leaderboard.archive import find_archived_checkpoint
from simmim_bench.leaderboard.board import Board, ProtocolGroup, Row, ScoreCell
from simmim_bench.leaderboard.reported import ReportedRow
from simmim_bench.leaderboard.tables import describe_group, explain_marks, plain_published
from simmim_bench.results.record import Record
from simmim_bench.tasks import columns

CURVE_POINTS = 80
IMAGE_WIDTH = 900  # pixels; wider reconstructions are scaled down for the page
PROVENANCE_KEYS = (
    *("method", "recipe", "deviates", "data", "images", "epochs"),
    *("held_out_loss", "psnr", "ssim", "effective_rank", "avg_dist"),
)


def page_data(board: Board, reported: Sequence[ReportedRow] = ()) -> dict[str, Any]:
    """Return the page's data.

    Returns:
        `version`; `columns` (title, task, metric); `groups` (name, protocols by task; rows of one group are
        ranked together); `rows` (one per checkpoint, with a cell or null per column, rank, provenance as
        `lineage`, and cost); `records`, which the cells refer to by index; `reconstructions` (data URLs of
        images by checkpoint hash); `problems` (one sentence per damaged record) and `notes` (footnotes).
    """
    record_numbers = {path: number for number, path in enumerate(board.records)}
    rows = [(group, row) for group in board.groups for row in group.rows]
    images: dict[str, str | None] = {}
    for _, row in rows:
        if row.checkpoint not in images:
            path = row.records[0]
            images[row.checkpoint] = _reconstruction(path, board.records[path])
    return {
        "version": __version__,
        "columns": [vars(column) for column in columns()],
        "groups": [{"name": group.name, "protocols": _protocols(group)} for group in board.groups],
        "rows": [
            *(_row(f"row-{i}", g, r, board, record_numbers) for i, (g, r) in enumerate(rows, 1)),
            *(_reported_row(f"row-{i}", r) for i, r in enumerate(reported, len(rows) + 1)),
        ],
        "records": [_record(path, record) for path, record in board.records.items()],
        "reconstructions": {sha256: url for sha256, url in images.items() if url is not None},
        "problems": list(board.problems),
        "notes": explain_marks(board.rows),
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
    seconds = provenance.get("wall_time_s")
    if not isinstance(seconds, int | float):
        return None
    return transfers + seconds * provenance.get("devices", 1) / 3600


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


def _record(path: Path, record: Record) -> dict[str, Any]:
    environment, memory = record.environment, record.cost["peak_memory_bytes"]
    return {
        "path": path.as_posix(),
        "task": record.task,
        "metrics": record.metrics,
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
        "curve": _curve(path.parent / "metrics.jsonl"),
        "by_class": _scores_by_class(path.parent),
    }


def _curve(path: Path) -> list[tuple[int, float]] | None:
    """Read at most `CURVE_POINTS` (step, loss) pairs of a run; None for fewer than two."""
    points = []
    for line in read_lines(path):
        # Lines without a loss are skipped, and a last line that an interrupted run did not complete.
        with suppress(ValueError, KeyError, TypeError):
            metrics = json.loads(line)
            points.append((int(metrics["step"]), float(metrics["loss"])))
    stride = max(1, -(-len(points) // CURVE_POINTS))
    return points[::stride] if len(points) > 1 else None


def _scores_by_class(folder: Path) -> dict[str, float] | None:
    """Read a run's scores by class: the IoU, or the AP of boxes and of masks; None if it has none."""
    for name in ("iou_by_class.json", "ap_by_class.json"):
        with suppress(OSError, ValueError):
            stored = json.loads((folder / name).read_text(encoding="utf-8"))
            by_kind = stored if name.startswith("ap") else {"": stored}
            return {
                f"{label}, {kind}" if kind else label: float(value)
                for kind, values in by_kind.items()
                for label, value in values.items()
            }
    return None


def _reconstruction(path: Path, record: Record) -> str | None:
    """Read the reconstructions that a checkpoint's pretraining wrote, as a data URL; None if there are none.

    Args:
        path: the path of `record`, whose folder or archive may contain the image.
    """
    from PIL import Image

    run = Path(record.checkpoint["name"])
    archived = find_archived_checkpoint(path, record)
    for folder in (run, run.parent.parent, *([archived] if archived is not None else [])):
        with suppress(OSError, ValueError), Image.open(folder / "reconstructions.png") as image:
            thumbnail = image.convert("RGB")
            thumbnail.thumbnail((IMAGE_WIDTH, 4 * IMAGE_WIDTH))
            out = io.BytesIO()
            thumbnail.save(out, "WEBP", quality=80)
            return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
    return None
