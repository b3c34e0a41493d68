"""A step that runs and the result that it ends with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from simmim_bench.jobs.capacity import Need
from simmim_bench.jobs.process import exit_code, last_error
from simmim_bench.jobs.step import Step, is_done
from simmim_bench.jobs.workers import Worker

OUT_OF_MEMORY = ("out of memory", "OutOfMemoryError", "can't allocate memory")
KILLED = 137  # what a machine without free memory does to a process
AnyStep = TypeVar("AnyStep", bound=Step)


@dataclass(frozen=True)
class StepResult(Generic[AnyStep]):
    """The result of a step.

    Attributes:
        state: "done"; "failed"; "not run" for a step that waits for one that has failed; or "left" for a step that a
            signal kept from being finished.
        code: exit code of the step's process; 0 for a step that was skipped or not run.
        error: the line of the log that names the reason of a failure; for "not run", the step that has failed.
        seconds: duration of this attempt.
    """

    step: AnyStep
    state: Literal["done", "failed", "not run", "left"]
    code: int = 0
    error: str = ""
    seconds: float = 0.0


@dataclass
class RunningStep(Generic[AnyStep]):
    """A started step.

    Attributes:
        need: the memory that is reserved for it.
        side_by_side: whether another step has run on its devices meanwhile.
        offset: bytes of the log that earlier attempts wrote.
        read: bytes of the log that have been read.
    """

    step: AnyStep
    worker: Worker
    started: float
    offset: int
    read: int
    need: Need
    side_by_side: bool = False

    def new_lines(self) -> list[str]:
        """Return the whole lines that the log has got since the last call."""
        if not self.step.log.is_file():
            return []
        with open(self.step.log, "rb") as file:
            file.seek(self.read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self.read += len(whole) + len(newline)
        return whole.decode(errors="replace").splitlines()

    def output(self) -> str:
        """Return the output of this attempt."""
        if not self.step.log.is_file():
            return ""
        with open(self.step.log, "rb") as file:
            file.seek(self.offset)
            return file.read().decode(errors="replace")

    def result(self, code: int, reason: str, *, stopped: bool) -> StepResult[AnyStep]:
        """Return the result of the step after its process has ended.

        Args:
            code: exit code of the process.
            reason: SLURM's reason, where there is one.
            stopped: whether the process was asked to stop.
        """
        seconds = time.monotonic() - self.started
        if is_done(self.step):
            return StepResult(self.step, "done", seconds=seconds)
        output = self.output()
        code = exit_code(code, output) or 1
        if stopped:
            return StepResult(self.step, "left", code=code, seconds=seconds)
        return StepResult(self.step, "failed", code, reason or last_error(code, output), seconds)

    def lacked_memory(self, code: int) -> bool:
        """Return whether a failed attempt ended for want of memory."""
        output = self.output()
        return code == KILLED or any(words in output for words in OUT_OF_MEMORY)
