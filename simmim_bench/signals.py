"""The signals that ask a run to stop, and what a command does at them outside of the training loops.

Schedulers, `timeout` and launchers send a signal twice, to a process and to its group; both are one request.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from simmim_bench.errors import exit_code_of

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # SLURM sends USR1: --signal=USR1@120
REQUEUES = 100  # a job that saves and resumes may reach its time limit this many times
REPEAT_S = 0.5  # ours: signals that arrive within this time are one request
RETRY_S = 0.05  # ours
# Functions in which no signal may raise an error: Python prints and drops it in a finaliser, and a loader is left
# half-built.
UNSAFE = ("__del__", "start_workers")
IMPORTS = "<frozen importlib"  # the file name of the frames of an import, which would leave half of a module


class StopSignal(BaseException):
    """A signal has arrived where no training loop handles it.

    It is no Exception, because libraries catch and ignore exceptions of any type.

    Attributes:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}.")
        self.number = number

    @property
    def exit_code(self) -> int:
        """See `exit_code_of`."""
        return exit_code_of(self.number)


def requeue_job(number: int) -> str | None:
    """Requeue this process's SLURM job if it got SIGUSR1, the warning before its time limit.

    The job may end at once, so that nothing may follow that has to be kept. Call it in one of a run's processes.

    Args:
        number: the signal that has come.

    Returns:
        What to log; None for another signal, and outside of a SLURM job.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if number != signal.SIGUSR1 or job is None:
        return None
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    # A phase that saves nothing, and takes longer than the time limit, would be restarted forever.
    if restarts.isdecimal() and int(restarts) >= REQUEUES:
        return f"SLURM job {job} is not requeued: it has been restarted {restarts} times"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"failed to requeue SLURM job {job}: {error}"
    return f"requeued SLURM job {job}"


def raise_on_signals() -> None:
    """Raise `StopSignal` at the first signal, after an import or a finaliser; a second one ends the process."""
    for number in SIGNALS:
        signal.signal(number, _raise)


def ignore_repeats() -> None:
    """Ignore signals for a moment; the caller sets the handlers that follow."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    time.sleep(REPEAT_S)


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Deliver the signals that arrive during the block after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """End this process at once when its parent has ended, even if killed; run it in a thread.

    Processes of `multiprocessing` that were not forked would otherwise wait for work forever.
    """
    from multiprocessing import parent_process  # not needed to start a command
    from multiprocessing.connection import wait

    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _raise(number: int, frame: FrameType | None) -> None:
    if _is_unsafe(frame):
        later = threading.Timer(RETRY_S, signal.pthread_kill, (threading.get_ident(), number))
        later.daemon = True
        later.start()
        return
    ignore_repeats()
    for other in SIGNALS:
        signal.signal(other, signal.SIG_DFL)
    raise StopSignal(number)


def _is_unsafe(frame: FrameType | None) -> bool:
    """Return whether an error must not be raised in a frame."""
    while frame is not None:
        if frame.f_code.co_name in UNSAFE or frame.f_code.co_filename.startswith(IMPORTS):
            return True
        frame = frame.f_back
    return False
