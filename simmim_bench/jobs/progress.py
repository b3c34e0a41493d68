"""The progress file of a step: its process writes it next to the step's log, and the process that started it reads it.

Loads no torch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from simmim_bench.display import Follower, TaskProgress
from simmim_bench.errors import DataError
from simmim_bench.untrusted.json_text import read_json

# Environment variable of a step's process: the path of the file.
PROGRESS_FILE = "SIMMIM_BENCH_PROGRESS"
WRITTEN_EVERY_S = 1.0


def write_progress(path: Path) -> Follower:
    """Return a follower that writes the open tasks to a file, once a second at most.

    The file is not flushed to the disk, and a failed write is ignored: only the remaining time depends on it.
    """
    last = -WRITTEN_EVERY_S

    def follow(tasks: Sequence[TaskProgress]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < WRITTEN_EVERY_S:
            return
        last = now
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with suppress(OSError):
            temporary.write_text(json.dumps([asdict(task) for task in tasks]), encoding="utf-8")
            temporary.replace(path)

    return follow


def read_progress(path: Path) -> list[TaskProgress]:
    """Read the tasks that a step's process has written; an empty list where there are none yet."""
    try:
        tasks = [TaskProgress(**fields) for fields in read_json(path, "progress file")]
    except (DataError, TypeError):
        return []
    numbers = [(one.done, one.total, one.elapsed_s, one.first) for one in tasks]
    return tasks if all(isinstance(value, int | float) for row in numbers for value in row) else []
