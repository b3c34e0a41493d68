"""Check how many processors there are for torch's threads: affinity, quota, the load of others, OpenMP's variables."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import torch

from simmim_bench.diagnostics.findings import Finding
from simmim_bench.processors import (
    CHOSEN,
    SPIN_COUNT,
    THREADS,
    WAIT_POLICY,
    affinity,
    load_of_others,
    quota,
)

BUSY = 0.5  # processors that others use, from which on they are reported as a fault


def check_threads(environment: Mapping[str, str] | None = None) -> Finding:
    """Compare the number of torch's threads with the processors that they may use, and measure the load of others.

    Args:
        environment: by default os.environ.
    """
    environment = os.environ if environment is None else environment
    return judge_threads(
        environment,
        threads=torch.get_num_threads(),
        allowed=len(affinity()),
        limit=quota(),
        load=load_of_others(),
    )


def judge_threads(
    environment: Mapping[str, str], *, threads: int, allowed: int, limit: float, load: float | None
) -> Finding:
    """Report the figures, and the first fault in them.

    Args:
        threads: torch's.
        allowed: processors that the affinity allows.
        limit: the container's quota, in processors; inf without one.
        load: processors among the allowed ones that others keep busy; None if that is unknown.
    """
    usable, chosen = min(float(allowed), limit), environment.get(CHOSEN, "").split()
    parts = [
        f"torch uses {threads} thread{'s' * (threads != 1)}; {usable:g} of {os.cpu_count()} processors are usable",
        f"affinity: {allowed}",
        f"quota: {'none' if math.isinf(limit) else f'{limit:g}'}",
        f"busy with other processes: {'unknown' if load is None else f'{load:.1f}'}",
    ]
    for name in (THREADS, WAIT_POLICY, SPIN_COUNT):
        if name in environment:
            source = "chosen by simmim-bench" if name in chosen else "from the environment"
            parts.append(f"{name}={environment[name]} ({source})")
    fault = _fault(environment, chosen, threads, usable, load)
    return Finding(
        group="machine",
        name="threads",
        state="ok" if fault is None else "warning",
        said="; ".join(parts) + ("" if fault is None else f": {fault[0]}"),
        remedy=None if fault is None else fault[1],
        facts={
            "torch": threads,
            "usable": usable,
            "processors": os.cpu_count(),
            "affinity": allowed,
            "quota": None if math.isinf(limit) else limit,
            "load_of_others": load,
            "omp_num_threads": environment.get(THREADS),
            "omp_wait_policy": environment.get(WAIT_POLICY),
            "gomp_spincount": environment.get(SPIN_COUNT),
            "chosen": chosen,
        },
    )


def _fault(
    environment: Mapping[str, str],
    chosen: list[str],
    threads: int,
    usable: float,
    load: float | None,
) -> tuple[str, str] | None:
    """Return what slows training down and how to fix it; None if nothing does."""
    if threads > max(1, usable):
        return (
            "more threads than processors wait for each other",
            f"export {THREADS}={max(1, int(usable))}",
        )
    if environment.get(WAIT_POLICY, "").lower() == "active" and WAIT_POLICY not in chosen:
        return "waiting threads keep processors busy", f"unset {WAIT_POLICY}"
    if load is not None and load >= BUSY:
        return (
            "other processes share the processors, so that runs and their estimates take longer",
            "end the other processes (`top` lists them), or wait for them",
        )
    return None
