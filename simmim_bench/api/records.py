"""Read records: `simmim_bench.records` and `simmim_bench.read_record`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.api.options import AnyPath, read_path
from simmim_bench.library import as_library

if TYPE_CHECKING:
    from simmim_bench.results.record import Record


@as_library()
def records(*roots: AnyPath) -> list[dict[str, Any]]:
    """Return a flat row for each record below some folders, for a DataFrame; pandas is not needed.

    A record that is damaged is left out, with a warning.

    Args:
        roots: folders of runs; by default runs/.

    Returns:
        One dict per record. Keys are `task`, `label` and `ckpt` (of the checkpoint), `arch`, `data` (the data set's
        name, or its folder's), `seed`, `recipe`, `deviates` (changed settings by key), `status` ("reproduced", or
        "partial" where not all images were scored), `evaluated` (images), `device`, `device_hours`, `wall_time_s`
        (seconds), `date` (UTC), `path` (of record.json), and every metric, such as `top1`, in percent.

    Raises:
        DataError: a folder does not exist, or there is no record.

    Example:
        >>> pandas.DataFrame(sb.records("runs")).pivot_table("top1", "label", "task")
    """
    from simmim_bench.leaderboard.find import find_records

    found = find_records([read_path(root) for root in roots] or [Path("runs")])
    for problem in found.problems:
        warnings.warn(problem, stacklevel=3)
    return [_row(path, record) for path, record in found.records.items()]


@as_library()
def read_record(path: AnyPath) -> Record:
    """Read the record of a run.

    Args:
        path: a run directory, or its record.json.

    Raises:
        DataError: the record does not exist or is damaged.

    Example:
        >>> sb.read_record("runs/pocket/knn/seed0").metrics["top1"]
    """
    from simmim_bench.results import record

    found = read_path(path)
    return record.read_record(found / "record.json" if found.is_dir() else found)


def _row(path: Path, record: Record) -> dict[str, Any]:
    from simmim_bench.leaderboard.group_names import data_name

    checkpoint = record.checkpoint
    return {
        "task": record.task,
        "label": checkpoint["label"],
        "ckpt": checkpoint["name"],
        "arch": checkpoint["arch"],
        "data": record.data.get("name") or data_name(record),
        "seed": record.seed,
        "recipe": record.recipe["name"],
        "deviates": record.deviates,
        "status": record.status,
        "evaluated": record.evaluated,
        "device": record.environment.get("device"),
        "device_hours": record.cost["device_hours"],
        "wall_time_s": record.wall_time_s,
        "date": record.date,
        "path": str(path),
        **record.metrics,
    }
