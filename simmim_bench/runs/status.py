"""The status of a run directory: done, resumable, to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from simmim_bench.errors import BenchError
from simmim_bench.runs.lock import is_locked
from simmim_bench.runs.run_dir import check_run_dir, is_occupied

RunStatus = Literal["done", "resumable", "to do", "running elsewhere", "in the way"]


def run_status(
    place: Path, description: dict[str, Any], *, is_finished: Callable[[Path], bool]
) -> tuple[RunStatus, str]:
    """Say how a run directory stands, and why where it is in the way.

    Args:
        description: what `recipe.json` has to say there.
        is_finished: may raise a `BenchError` for a run that has ended and is damaged.
    """
    if is_locked(place):
        return "running elsewhere", ""
    try:
        check_run_dir(place, description, resume=True, overwrite=False)
        if is_finished(place):
            return "done", ""
    except BenchError as error:
        return "in the way", str(error)
    return ("resumable" if is_occupied(place) else "to do"), ""
