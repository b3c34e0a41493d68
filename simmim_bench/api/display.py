"""The log and progress display of a command or of a function. Loads no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simmim_bench.display import Display


def open_display(quiet: bool) -> Display:
    """Return the log and progress display of a command; a silent one if `quiet`."""
    from simmim_bench.display import Display
    from simmim_bench.jobs.progress import PROGRESS_FILE, write_progress

    path = os.environ.get(PROGRESS_FILE)  # of a suite's or an ablation's step
    return Display(quiet=quiet, follower=write_progress(Path(path)) if path and not quiet else None)
