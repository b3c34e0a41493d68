"""What the page shows, as plain JSON: the board, and what lies beside its records on disk.

In: a `Board`, published rows. Out: the dictionary that `page.py` draws: training curves, figures by class and
reconstructions are read where they are, and left out where they are not.
"""

from __future__ import annotations

import base64
import io
import json
import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from simmim_bench import __version__
from simmim_bench.files import read_lines
from simmim_bench.leaderboard.archive import checkpoint_folder
from simmim_bench.leaderboard.board import Board, ProtocolGroup, Row, ScoreCell
from simmim_bench.leaderboard.reported import ReportedRow
from simmim_bench.leaderboard.tables import command_line, describe_group, notes
from simmim_bench.results.record import Record
from simmim_bench.tasks import columns

CURVE_POINTS = 80
PICTURE_WIDTH = 900  # pixels; of wider reconstructions the page takes a smaller copy
LINEAGE = (
    *("method", "recipe", "deviates", "data", "images", "epochs"),
    *("held_out_loss", "psnr", "ssim", "effective_rank", "avg_dist"),
)


def page_data(board: Board, reported: Sequence[ReportedRow] = ()) -> dict[str, Any]:
    """Give the page's content; see `page.py` for its keys."""
    numbers = {path: number for number, path in enumerate(board.records)}
    rows = [(group, row) for group in board.groups for row in group.rows]
    pictures = {}
    for _, row in rows:
        record = board.records[row.records[0]]
        if row.checkpoint not in pictures:
            pictures[row.checkpoint] = _reconstruction(row.records[0], record)
    return {
        "version": __version__,
        "columns": [vars(column) for column in columns()],
        "groups": [{"name": group.name, "protocols": _protocols(group)} for group in board.groups],
        "rows": [
            *(_row(f"row-{i}", g, r, board, numbers) for i, (g, r) in enumerate(rows, 1)),
            *(_reported(f"row-{i}", r) for i, r in enumerate(reported, len(rows) + 1)),
        ],
        "records": [_record(path, record) for path, record in board.records.items()],
        "reconstructions": {sha256: data for sha256, data in pictures.items() if data is not None},
        "problems": list(board.problems),
        "notes": notes(board.rows),
    }


def _protocols(group: ProtocolGroup) -> dict[str, Any]:
    described = describe_group(group)
    return {
        task: {**described[task], "fields": record.recipe["fields"]}
        for task, record in group.protocols.items()
    }


def _row(
    name: str, group: ProtocolGroup, row: Row, board: Board, numbers: dict[Path, int]
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
        "lineage": _lineage(provenance),
        "cost": {
            "device_hours": device_hours(records),
            "params_m": None if params is None else params / 1e6,
        },
        "cells": [
            None if cell is None else _cell(cell, group.best(i) is row, numbers)
            for i, cell in enumerate(row.cells)
        ],
        "inapplicable": [i in row.inapplicable for i in range(len(columns()))],
    }


def _cell(cell: ScoreCell, best: bool, numbers: dict[Path, int]) -> dict[str, Any]:
    return {
        "mean": cell.mean,
        "std": cell.std,
        "seeds": len(cell.values),
        "text": str(cell),
        "best": best,
        "deviates": cell.deviates,
        "partial": cell.partial,
        "dirty": cell.dirty,
        "records": [numbers[path] for path in cell.records],
    }


def _lineage(provenance: dict[str, Any]) -> dict[str, Any]:
    """Flatten what a checkpoint says of its training, as far as it is known."""
    flat = dict(provenance)
    if isinstance(recipe := provenance.get("recipe"), dict):
        flat |= {"recipe": recipe.get("name"), "deviates": recipe.get("deviates")}
    if isinstance(data := provenance.get("data"), dict):
        flat |= {"data": Path(str(data.get("root"))).name, "images": data.get("images")}
    for key, value in flat.items():
        if isinstance(value, float):
            flat[key] = int(value) if value.is_integer() else float(f"{value:.4g}")
    return {key: flat[key] for key in LINEAGE if flat.get(key) not in (None, {}, "")}


def device_hours(records: Sequence[Record]) -> float | None:
    """Give what a row took: its pretraining, and of each task one seed; None where something is unknown."""
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


def _reported(name: str, row: ReportedRow) -> dict[str, Any]:
    figures = [figure for figure in row.figures if figure is not None]
    told = [
        f"{column.title}: {figure.protocol}" + (f" ({figure.note})" if figure.note else "")
        for column, figure in zip(columns(), row.figures, strict=True)
        if figure is not None
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
            if figure is None
            else {
                **_cell(ScoreCell((figure.value,)), best=False, numbers={}),
                "protocol": figure.protocol,
                "source": figure.source,
                "confidence": figure.confidence,
                "note": figure.note,
            }
            for figure in row.figures
        ],
        "inapplicable": [False] * len(columns()),
        "source": "; ".join(dict.fromkeys(figure.source for figure in figures)),
        "confidence": "medium" if any(f.confidence == "medium" for f in figures) else "high",
        "protocol_text": "; ".join(told),
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
        "command": command_line(record),
        "curve": _curve(path.parent / "metrics.jsonl"),
        "by_class": _by_class(path.parent),
    }


def _curve(path: Path) -> list[tuple[int, float]] | None:
    """Give at most `CURVE_POINTS` of a run's losses by step."""
    points = []
    for line in read_lines(path):
        with suppress(ValueError, KeyError, TypeError):  # a line that a kill cut short
            figures = json.loads(line)
            points.append((int(figures["step"]), float(figures["loss"])))
    stride = max(1, -(-len(points) // CURVE_POINTS))
    return points[::stride] if len(points) > 1 else None


def _by_class(folder: Path) -> dict[str, float] | None:
    """Give a run's figures by class: IoU, or the AP of boxes and of masks."""
    for name in ("iou_by_class.json", "ap_by_class.json"):
        with suppress(OSError, ValueError):
            stored = json.loads((folder / name).read_text(encoding="utf-8"))
            parts = stored if name.startswith("ap") else {"": stored}
            return {
                f"{label}, {kind}" if kind else label: float(value)
                for kind, values in parts.items()
                for label, value in values.items()
            }
    return None


def _reconstruction(path: Path, record: Record) -> str | None:
    """Give the picture that the pretraining of a record's checkpoint left, as a data URL."""
    from PIL import Image

    run = Path(record.checkpoint["name"])
    kept = checkpoint_folder(path, record)
    for folder in (run, run.parent.parent, *([kept] if kept is not None else [])):
        with suppress(OSError, ValueError), Image.open(folder / "reconstructions.png") as image:
            picture = image.convert("RGB")
            picture.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH))
            out = io.BytesIO()
            picture.save(out, "WEBP", quality=80)
            return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
    return None
