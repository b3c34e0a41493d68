"""Stop a run on a signal: finish the step, save it, requeue a SLURM job."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from simmim_bench.distributed import DistContext
from simmim_bench.errors import InterruptedRun
from simmim_bench.runs.run_dir import RunDir

METRICS_EVERY = 10  # optimizer steps between lines of metrics.jsonl


class StopRequest:
    """Which signal asked the run to stop, if any."""

    number: int | None = None


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # USR1 is what SLURM is asked to send


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into a request that the loop answers after its step."""
    request = StopRequest()

    def remember(number: int, frame: FrameType | None) -> None:
        if request.number is not None:  # a second one means it
            raise KeyboardInterrupt
        request.number = number

    try:
        before = {s: signal.signal(s, remember) for s in SIGNALS}
    except ValueError:  # not in the main thread: the caller keeps its own handling
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_if_stopped(
    stop: StopRequest,
    description: str,
    done: int,
    total: int,
    *,
    run: RunDir,
    dist: DistContext,
    save: Callable[[], None] | None,
) -> None:
    """Save and end the run where any of its processes got a signal and there are steps left.

    Args:
        done: optimizer steps, of `total`.
        save: None where the step has been saved.

    Raises:
        InterruptedRun: with what was done.
    """
    signal_number = _agree_to_stop(stop, done, dist)
    if not signal_number or done >= total:
        return
    if save is not None:
        save()
    dist.barrier()  # the main process writes: a launcher kills it when another has ended
    _requeue(signal_number, run, dist)
    raise InterruptedRun(
        f"{description}: stopped by {signal.Signals(signal_number).name} after step {done} of {total}, which is "
        "saved; go on with --resume.",
        signal.SIGTERM if signal_number == signal.SIGUSR1 else signal_number,
    )


def _agree_to_stop(stop: StopRequest, step: int, dist: DistContext) -> int:
    """Give the signal that any process got, 0 for none; several processes ask each other now and then."""
    if dist.size > 1 and step % METRICS_EVERY:
        return 0
    return dist.all_max(stop.number or 0)


def _requeue(signal_number: int, run: RunDir, dist: DistContext) -> None:
    """Put a SLURM job that was warned by SIGUSR1 back into the queue."""
    job = os.environ.get("SLURM_JOB_ID")
    if signal_number != signal.SIGUSR1 or job is None or not dist.is_main:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=60)
        run.log(f"SLURM job {job} is requeued")
    except (OSError, subprocess.SubprocessError) as error:
        run.log(f"SLURM job {job} could not be requeued: {error}")
