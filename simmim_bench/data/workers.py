"""Start the worker processes of data loaders so that a signal to the process group ends none of them.

`timeout`, `scancel`, Ctrl-C and a scheduler's time limit signal every process of a run. The training process
finishes and saves its step, for which it may still need a batch; workers therefore leave these signals to it, and
end when it closes the loader or is killed.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from simmim_bench.signals import SIGNALS, blocked_signals

PARENT_CHECK_S = 5.0  # as often as torch's workers check (MP_STATUS_CHECK_INTERVAL)

WorkerInit = Callable[[int], None]


def start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return an iterator over a loader of torch or of a framework, whose workers leave signals to this process."""
    init = loader.worker_init_fn
    loader.worker_init_fn = partial(leave_signals_to_parent, init)
    try:
        # New processes and threads inherit the mask, so that no signal ends a worker before its init function. This
        # process still gets it, through another thread.
        with blocked_signals():
            started = DataLoader.__iter__(loader)
    finally:
        loader.worker_init_fn = init
    if isinstance(started, _MultiProcessingDataLoaderIter):
        # An error's traceback may keep the iterator in a cycle. Python then closes the queues to the workers before
        # torch can tell these to end by them, and torch waits five seconds for each, unless the queues are referred
        # to from here.
        queues = [*started._index_queues, started._worker_result_queue]
        weakref.finalize(started, lambda _: None, queues).atexit = False
    return started


class WorkerLoader(DataLoader[Any]):
    """A DataLoader for code that calls `iter` on it, such as mmengine's loops; see `start_workers`."""

    def __iter__(self) -> Any:
        """Return the iterator of an epoch."""
        return start_workers(self)


def end_workers(loader: DataLoader[Any]) -> None:
    """End the persistent workers of a loader, if they were started."""
    # torch ends them with the iterator itself, which a frame or a traceback may still refer to.
    started, loader._iterator = loader._iterator, None
    if isinstance(started, _MultiProcessingDataLoaderIter):
        started._shutdown_workers()


def leave_signals_to_parent(init: WorkerInit | None, worker: int) -> None:
    """Initialise a worker process: block the signals, except where the parent itself terminates the worker.

    torch's own handler of SIGTERM compares the sender in the same way, but ends the worker with an error if another
    process has sent the signal.

    Args:
        init: the loader's own init function; None for none.
        worker: number of the worker.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    parent = parent_process()
    if parent is not None and hasattr(signal, "sigtimedwait"):  # macOS has none
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if init is not None:
        init(worker)


def _end_with(parent: BaseProcess) -> None:
    """Consume blocked signals; end this process at a SIGTERM of its parent, or after its parent has ended.

    torch's workers notice the end of their parent only where they were forked by it.
    """
    while True:
        received = signal.sigtimedwait(SIGNALS, PARENT_CHECK_S)
        if received is None:
            if not parent.is_alive():
                os._exit(1)
        elif received.si_signo == signal.SIGTERM and received.si_pid == parent.pid:
            os._exit(0)
