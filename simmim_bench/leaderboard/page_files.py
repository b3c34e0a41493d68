"""Describe records, and the files of their runs, for the HTML page.

Training curves, per-class scores and reconstructions are read from the run directories or the archive. Missing files
are skipped, and damaged ones are listed among the page's problems.
"""

from __future__ import annotations

import base64
import io
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from simmim_bench.errors import DataError
from simmim_bench.leaderboard.archive import (
    RECONSTRUCTIONS,
    find_archived_checkpoint,
    find_reconstructions,
)
from simmim_bench.results.record import Record
from simmim_bench.tasks import CALIBRATION_METRICS, format_metric
from simmim_bench.untrusted.images import read_png
from simmim_bench.untrusted.json_text import parse_json, read_json
from simmim_bench.untrusted.paths import check_below, read_bytes
from simmim_bench.untrusted.text import describe_error

CURVE_POINTS = 80
MAX_CURVE_BYTES = 1 << 30  # of metrics.jsonl; 300,000 steps have 60 MB
MAX_CLASSES = 20_000  # whose scores a page can list
IMAGE_WIDTH = 900  # pixels; wider reconstructions are scaled down for the page


def describe_record(path: Path, record: Record, problems: list[str]) -> dict[str, Any]:
    """Describe a record, and append the faults of its files to the problems."""
    environment, memory = record.environment, record.cost["peak_memory_bytes"]
    return {
        "path": path.as_posix(),
        "checkpoint": record.checkpoint["name"],
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


def read_reconstructions(path: Path, record: Record, problems: list[str]) -> str | None:
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


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number from 0 that can be computed with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


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
    if not (is_number(step) and isinstance(loss, int | float)):
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
