"""Signals: finish the current step, save it, and end the run; the command line then requeues a SLURM job."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from simmim_bench.distributed import DistContext
from simmim_bench.errors import InterruptedRun
from simmim_bench.library import is_library_call
from simmim_bench.runs.run_dir import METRICS_EVERY, RunDir
from simmim_bench.signals import SIGNALS, ignore_repeats


class StopRequest:
    """The signal that asked the run to stop.

    Attributes:
        number: the signal's number; None while no signal has come.
    """

    number: int | None = None


@contextmanager
def stop_on_signals(dist: DistContext | None = None) -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into a request that the loop answers after its step.

    A second signal goes to the handler that was set before, and so does the first if the block succeeds in spite of
    it: it came after the loop's last answer, and what follows may take long.

    A library call (see `simmim_bench.library`), and one outside of the main thread, keeps the caller's handlers: Ctrl-C
    then raises KeyboardInterrupt, and the run continues from its last saved checkpoint.

    Args:
        dist: the processes of the run, which end the block together; a signal that one of them got then ends all.
            None for a single process.
    """
    request = StopRequest()
    if is_library_call():
        yield request
        return
    before: dict[int, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        if request.number is None:
            request.number = number
            ignore_repeats()
            for one in SIGNALS:
                signal.signal(one, remember)
            return
        restore()
        signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        before.update({number: signal.signal(number, remember) for number in SIGNALS})
    except ValueError:  # not in the main thread
        yield request
        return
    try:
        yield request
        if dist is not None:
            agreed = dist.all_max(request.number or 0)
            request.number = request.number or agreed or None
    finally:
        restore()
    if request.number is not None:
        signal.raise_signal(request.number)


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
    """Save and end the run if any of its processes got a signal and steps are left.

    Args:
        description: the phase or task, as log lines name it.
        done: completed optimizer steps, of `total`.
        save: writes the checkpoint; None where this step is saved already.

    Raises:
        InterruptedRun: a signal came; the message names the step.
    """
    signal_number = _agree_to_stop(stop, done, dist)
    if not signal_number or done >= total:
        return
    if save is not None:
        save()
    # Rank 0 is still writing; a launcher would kill it as soon as another process ends.
    dist.barrier()
    raise InterruptedRun(
        f"{description}: stopped by {signal.Signals(signal_number).name} after step {done} of {total}, which is "
        "saved; continue with --resume.",
        signal_number,
    )


def _agree_to_stop(stop: StopRequest, step: int, dist: DistContext) -> int:
    """Return the signal that any process got, 0 for none.

    Several processes communicate only on the steps on which they log metrics, as they synchronise there.
    """
    if dist.size > 1 and step % METRICS_EVERY:
        return 0
    return dist.all_max(stop.number or 0)
