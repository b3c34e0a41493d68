"""Remove runs for `--overwrite`: all of them, or none while another process works in one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from simmim_bench.errors import UsageError
from simmim_bench.files import cannot_write
from simmim_bench.runs.lock import LOCK, exclusive_lock, is_locked, locked_below
from simmim_bench.runs.run_check import check_run_dir


def remove_runs(paths: Sequence[Path]) -> None:
    """Remove the runs in some directories, as `--overwrite` does, so that others can start there.

    All directories are checked and locked before the first one is emptied; those that do not exist are left out.

    Args:
        paths: run directories, none of them inside another.

    Raises:
        UsageError: another process works in one or below it, or one is not a run directory; nothing is removed.
        DataError: one cannot be removed.
    """
    with ExitStack() as locks:
        existing = []
        for path in paths:
            check_run_dir(path, {}, resume=False, overwrite=True)
            if path.is_dir():
                try:
                    locks.enter_context(exclusive_lock(path))
                except OSError as error:
                    raise cannot_write(path, error) from error
                existing.append(path)
        for path in existing:
            check_unused_below(path)
        for path in existing:
            try:
                empty(path)
            except OSError as error:
                raise cannot_write(path, error) from error


def empty(path: Path) -> None:
    """Remove the content of a directory, except its lock.

    Raises:
        UsageError: another process works in a run below the directory.
    """
    check_unused_below(path)
    for entry in path.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def check_unused_below(path: Path) -> None:
    """Check that no other process works in a run below a directory.

    Raises:
        UsageError: one does.
    """
    for other in locked_below(path):
        raise UsageError(describe_use(other))


def describe_use(path: Path) -> str:
    """Return why a directory cannot be replaced: another process works in it, or below it; "" where none does."""
    used = [path] if is_locked(path) else locked_below(path)
    if not used:
        return ""
    return (
        f"another process works in {used[0]}, which --overwrite would remove; wait until it has ended, or choose "
        "another --out."
    )
