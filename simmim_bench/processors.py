"""Find the processors that this process may use, and how its threads share them. Loads no torch.

The usable processors are those of the affinity mask, limited by the quotas of the process's control groups, as a
container's CPU limit sets them. `choose_threads` sets OpenMP's variables accordingly, before torch is imported, and
`child_environment` divides the processors among commands that run at a time.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

# Lines ID:CONTROLLERS:PATH; version 2 has the ID 0 and no controllers.
CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")
STAT = Path("/proc/stat")
THREADS = "OMP_NUM_THREADS"
WAIT_POLICY = "OMP_WAIT_POLICY"
SPIN_COUNT = "GOMP_SPINCOUNT"
CHOSEN = "SIMMIM_BENCH_CHOSEN"  # the variables that the program set, not its user
LAUNCHED = "LOCAL_WORLD_SIZE"  # processes that torchrun has started on this machine


def usable_cores() -> float:
    """Return the number of processors that the affinity and the container's quota allow."""
    return min(float(len(affinity())), quota())


def affinity() -> list[int]:
    """Return the numbers of the processors that this process may run on."""
    allowed = getattr(os, "sched_getaffinity", None)
    return sorted(allowed(0)) if allowed else list(range(os.cpu_count() or 1))


def quota(cgroup: Path | None = None, root: Path | None = None) -> float:
    """Return the smallest quota, in processors, of the process's control groups and their parents; inf without any.

    Args:
        cgroup: lists the process's groups, as /proc/self/cgroup does.
        root: where the groups are mounted. In a container, the mounted root may be the process's own group, and the
            listed path one of the host, which does not exist here.
    """
    cgroup, root = cgroup or CGROUP, root or CGROUP_ROOT
    lines = [*_read(cgroup).splitlines(), "0::/", "1:cpu:/"]
    smallest = math.inf
    for line in lines:
        number, controllers, group = (*line.split(":", 2), "", "")[:3]
        if number == "0":
            mounts, read = [root, root / "unified"], _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, read = [root / "cpu", root / controllers, root / "cpu,cpuacct"], _quota_v1
        else:
            continue
        path = Path(group.lstrip("/"))
        for mount in mounts:
            smallest = min([smallest, *(read(mount / p) for p in (path, *path.parents))])
    return smallest


def _quota_v2(group: Path) -> float:
    """Return the quota that `cpu.max` holds: microseconds of each period, or "max", and the period."""
    with suppress(ValueError, ZeroDivisionError):
        allowed, period = _read(group / "cpu.max").split()
        return int(allowed) / int(period)
    return math.inf


def _quota_v1(group: Path) -> float:
    """Return the quota of a group of version 1; it is -1 where there is none."""
    with suppress(ValueError, ZeroDivisionError):
        allowed = int(_read(group / "cpu.cfs_quota_us"))
        if allowed > 0:
            return allowed / int(_read(group / "cpu.cfs_period_us"))
    return math.inf


def _read(path: Path) -> str:
    """Return a file's text; an empty one where it cannot be read."""
    with suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8")
    return ""


def load_of_others(seconds: float = 0.2) -> float | None:
    """Return how many of the processors that this process may run on are busy while it sleeps.

    Returns:
        At most the number of these processors; None where the system does not report it.
    """
    before = idle_seconds()
    started = time.monotonic()
    time.sleep(seconds)
    after, elapsed = idle_seconds(), time.monotonic() - started
    if before is None or after is None:
        return None
    return min(max(0.0, len(affinity()) - (after - before) / elapsed), float(len(affinity())))


def idle_seconds() -> float | None:
    """Return the seconds that the processors of this process were idle, or waited for a disk, since the start."""
    rows = {
        name: values
        for name, *values in map(str.split, _read(STAT).splitlines())
        if len(values) > 4
    }
    mine = [rows.get(f"cpu{number}") for number in affinity()]
    if not all(mine):
        return None
    ticks = sum(int(values[3]) + int(values[4]) for values in mine if values)
    return ticks / os.sysconf("SC_CLK_TCK")


def choose_threads(environment: MutableMapping[str, str]) -> None:
    """Set OpenMP's variables that the user has not set; torch reads them when it is imported.

    Threads are limited to a quota below the affinity, which torch does not know, and sleep while they wait for each
    other, since the time of spinning threads counts towards the quota. Without a quota, torch takes one thread for each
    physical core, and `waiting` decides how they wait.

    Args:
        environment: changed. Choices that a parent process made, perhaps on another machine, are made again; a
            process of torchrun then gets its part of the processors.
    """
    inherited = environment.get(CHOSEN, "").split()
    for name in inherited:
        environment.pop(name, None)
    usable = usable_cores()
    chosen, cores, limited = dict[str, str](), int(usable), usable < len(affinity())
    if THREADS not in environment:
        with suppress(ValueError):
            processes = int(environment.get(LAUNCHED, "1"))
            if processes > 1 or limited:
                chosen[THREADS] = str(max(1, cores // max(1, processes)))
    if WAIT_POLICY not in environment and SPIN_COUNT not in environment and limited:
        chosen[WAIT_POLICY] = "passive"
    environment.update(chosen)
    environment[CHOSEN] = " ".join(chosen)


def child_environment(share: int, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that limit a child process to its part of the processors.

    `{**os.environ, **child_environment(2)}` is the environment of each of two commands that run at a time, or of
    torchrun with two processes. OMP_NUM_THREADS is left out where the user set it.

    Args:
        share: processes, of all children together, that share the processors.
        environment: this process's; by default os.environ.
    """
    environment = os.environ if environment is None else environment
    chosen = environment.get(CHOSEN, "").split()
    if environment.get(THREADS) and THREADS not in chosen:
        return {}
    kept = " ".join(name for name in chosen if name != THREADS)
    return {THREADS: str(max(1, int(usable_cores() / share))), CHOSEN: kept}
