"""Make OpenMP's waiting threads sleep while other processes need the processors.

Threads that spin while they wait for each other, as OpenMP's do by default, are the fastest on idle processors. Beside
a busy process, a spinning thread takes the processor from the thread that it waits for, and several threads may be
slower than one (benchmarks/busy_neighbours.py). OpenMP's variables choose between spinning and sleeping before torch is
imported, whereas other processes come and go.

GNU's OpenMP, which torch's Linux packages contain, lets threads sleep almost at once while the process has more of its
threads than there are processors (`do_spin` in libgomp/config/linux/wait.h). Further teams of threads, which do
nothing, therefore switch to sleeping, and their end switches back. The number of threads that compute stays the same,
and so does every result. Other implementations of OpenMP are not affected.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import torch

from simmim_bench.processors import SPIN_COUNT, WAIT_POLICY, affinity, idle_seconds

PERIOD_S = 0.5
BUSY = 0.3  # ours: missing processors from which on threads sleep; below half of it they spin again
MOST_TEAMS = 32  # ours: few threads on many processors would need hundreds, which a container's limit may refuse
PARALLEL = 1 << 17  # elements of a tensor that torch adds to with all threads


@contextmanager
def sleep_beside_others() -> Iterator[None]:
    """Watch the load of the processors, and let waiting threads sleep while it is too high for all threads.

    Nothing is watched where this process has one thread, or where a variable of its environment sets how threads wait.
    """
    chosen = WAIT_POLICY in os.environ or SPIN_COUNT in os.environ
    if torch.get_num_threads() == 1 or chosen or idle_seconds() is None:
        yield
        return
    stop = Event()
    watcher = Thread(target=_watch, args=(stop, torch.get_num_threads()), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def missing_processors(threads: int, busy: float, own: float, allowed: int) -> float:
    """Return how many processors this process's threads lack; negative if some are left.

    Args:
        threads: threads of this process that compute at a time.
        busy: processors among the allowed ones that were busy, this process's included.
        own: processors that this process used.
        allowed: processors that it may run on.
    """
    return threads + max(0.0, busy - own) - allowed


def _watch(stop: Event, threads: int) -> None:
    teams = list[Thread]()
    release = Event()
    before = (idle_seconds() or 0.0, time.process_time(), time.monotonic())
    while not stop.wait(PERIOD_S):
        now = (idle_seconds() or 0.0, time.process_time(), time.monotonic())
        idle, own, elapsed = (b - a for a, b in zip(before, now, strict=True))
        before, allowed = now, len(affinity())
        missing = missing_processors(threads, allowed - idle / elapsed, own / elapsed, allowed)
        if missing >= BUSY and not teams:
            release = Event()
            teams = hold_teams(release, threads, allowed)
        elif missing < BUSY / 2 and teams:
            release.set()
            teams = []
    release.set()


def hold_teams(release: Event, threads: int, allowed: int) -> list[Thread]:
    """Start teams of threads that do nothing, so that there are more threads than processors; none if many are needed.

    Args:
        release: ends them.
        threads: threads of a team, and of this process's own; at least 2.
        allowed: processors.
    """
    count = max(1, (allowed - threads) // (threads - 1) + 1)
    if count > MOST_TEAMS:
        return []
    teams = [Thread(target=_hold_team, args=(release,), daemon=True) for _ in range(count)]
    for team in teams:
        team.start()
    return teams


def _hold_team(release: Event) -> None:
    torch.zeros(PARALLEL).add_(1)  # OpenMP starts a team for each thread that calls it
    release.wait()
