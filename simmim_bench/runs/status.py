"""The status of a run directory: done, resumable, to do, in use, or blocked by something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from simmim_bench.errors import BenchError
from simmim_bench.runs.lock import is_locked
from simmim_bench.runs.removal import describe_use
from simmim_bench.runs.run_check import check_run_dir, is_occupied

RunStatus = Literal["done", "resumable", "to do", "running elsewhere", "blocked"]


def status_to_overwrite(run_dir: Path) -> tuple[RunStatus, str]:
    """Return the status of a run directory whose run is to be replaced, and the reason where it cannot be."""
    used = describe_use(run_dir)
    if used:
        return "running elsewhere", used
    try:
        check_run_dir(run_dir, {}, resume=False, overwrite=True)
    except BenchError as error:
        return "blocked", str(error)
    return "to do", ""


def run_status(
    run_dir: Path, description: dict[str, Any], *, is_finished: Callable[[Path], bool]
) -> tuple[RunStatus, str]:
    """Return the status of a run directory, and the reason where it is blocked.

    Args:
        description: the expected content of `recipe.json`.
        is_finished: whether the run has ended; may raise a `BenchError` for a finished run that is damaged.

    Returns:
        "done"; "resumable" for a started run; "to do" where nothing exists; "running elsewhere" while
        another process holds the lock; or "blocked" where the directory holds something else.
    """
    if is_locked(run_dir):
        return "running elsewhere", ""
    try:
        check_run_dir(run_dir, description, resume=True, overwrite=False)
        if is_finished(run_dir):
            return "done", ""
    except BenchError as error:
        return "blocked", str(error)
    return ("resumable" if is_occupied(run_dir) else "to do"), ""
