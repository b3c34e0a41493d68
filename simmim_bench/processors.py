"""Find the processors that this process may use. Loads no torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # cgroup version 2: microseconds of each period, or "max"


def usable_cores() -> float:
    """Return the number of processors that the affinity and the container's quota allow."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    with suppress(OSError, ValueError):
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        cores = min(cores, int(quota) / int(period))
    return cores
