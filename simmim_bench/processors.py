"""Find the processors that this process may use. Loads no torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # cgroup version 2: microseconds of each period, or "max"
THREADS = "OMP_NUM_THREADS"
CHOSEN = "SIMMIM_BENCH_CHOSEN"  # the variables that the program set, not its user


def usable_cores() -> float:
    """Return the number of processors that the affinity and the container's quota allow."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    with suppress(OSError, ValueError):
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        cores = min(cores, int(quota) / int(period))
    return cores


def child_environment(share: int) -> dict[str, str]:
    """Return the variables that limit a child process to its part of the cores.

    `{**os.environ, **child_environment(2)}` is the environment of each of two commands that run at a time, or of
    torchrun with two processes. It is empty where the user set OMP_NUM_THREADS.

    Args:
        share: processes, of all children together, that share the cores.
    """
    if os.environ.get(THREADS) and THREADS not in os.environ.get(CHOSEN, "").split():
        return {}
    return {THREADS: str(max(1, int(usable_cores() / share))), CHOSEN: ""}
