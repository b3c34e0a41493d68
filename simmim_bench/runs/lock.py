"""An exclusive lock on a folder, which the system releases when its process ends, however it ends.

Every other process is refused while the lock is held, also on another machine if the file system supports
such locks. On a system or file system without them nobody is refused.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from simmim_bench.errors import UsageError

LOCK = ".lock"
TRIES, PAUSE_S = 5, 0.2  # `is_locked` itself holds the lock for a moment


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Lock a folder for the block.

    Raises:
        UsageError: another process holds the lock.
    """
    held = _acquire(folder)
    try:
        yield
    finally:
        if held is not None:
            # The name goes before the lock: a process that has opened the file meanwhile finds it unnamed and
            # opens a new one.
            with suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
            os.close(held)


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder."""
    try:
        import fcntl

        file = os.open(folder / LOCK, os.O_RDWR)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


def locked_below(folder: Path) -> list[Path]:
    """Return the folders below a folder whose locks a process holds."""
    inside = (lock.parent for lock in folder.rglob(LOCK))
    return [path for path in inside if path != folder and is_locked(path)]


def _acquire(folder: Path) -> int | None:
    """Return the open file that holds the lock; None where the system does not support locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    refused = 0
    while True:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(file, 200).decode(errors="replace") or "?"
            os.close(file)
            refused += 1
            if refused == TRIES:
                raise UsageError(
                    f"another process works in {folder} ({owner}); wait until it has ended, or choose another "
                    "--out."
                ) from error
            time.sleep(PAUSE_S)
            continue
        except OSError:  # a file system without locks
            os.close(file)
            (folder / LOCK).unlink(missing_ok=True)
            return None
        if _is_still_named(file, folder / LOCK):
            os.truncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return file
        os.close(file)


def _is_still_named(file: int, path: Path) -> bool:
    """Return whether an open file is the one at `path`, rather than one that its owner has removed since."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False
