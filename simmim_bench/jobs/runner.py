"""Run the steps of a suite or an ablation, each in its own process, so that a failed step ends no other.

Completed steps are skipped and interrupted ones resumed when the same command is given again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from simmim_bench.display import Display, format_duration, plural
from simmim_bench.errors import InterruptedRun
from simmim_bench.jobs.options import JobOptions
from simmim_bench.jobs.process import exit_code, last_error
from simmim_bench.jobs.step import Step, is_done, runs_elsewhere
from simmim_bench.jobs.workers import Machine, Queue, Worker
from simmim_bench.training.stopping import StopRequest, stop_on_signals

POLL_S = 0.2

AnyStep = TypeVar("AnyStep", bound=Step)


@dataclass(frozen=True)
class StepResult(Generic[AnyStep]):
    """The result of a step.

    Attributes:
        state: "done"; "failed"; or "left" for a step that a signal kept from being finished.
        code: exit code of the step's process; 0 for a step that was skipped.
        error: the line of the log that names the reason of a failure.
        seconds: duration of this attempt.
    """

    step: AnyStep
    state: Literal["done", "failed", "left"]
    code: int = 0
    error: str = ""
    seconds: float = 0.0


def run_steps(
    steps: Sequence[AnyStep],
    job_options: JobOptions,
    out: Path,
    display: Display,
    *,
    what: str,
) -> list[StepResult[AnyStep]]:
    """Run the steps that are not done.

    Args:
        out: the folder whose `slurm/` receives submitit's files.
        what: "suite" or "ablate", as messages name the whole.

    Returns:
        The result of every step, in their order.

    Raises:
        UsageError: more GPUs are requested than are visible.
        MissingFrameworkError: submitit is not installed.
        InterruptedRun: a signal came; the running steps were asked to save.
    """
    results = {id(step): StepResult(step, "done") for step in steps if is_done(step)}
    pending = [step for step in steps if id(step) not in results]
    backend: Machine | Queue
    if job_options.slurm is not None:
        backend = Queue(job_options, out / "slurm", len(pending))
    else:
        backend = Machine(job_options)
    if results:
        display.log(f"{what}: skipped completed_steps={len(results)} of {len(steps)}")
    with stop_on_signals() as stop, display.task(what, len(steps)) as overall:
        overall.advance(len(results))
        for result in _Scheduler(pending, backend, stop, display).run(lambda: overall.advance()):
            results[id(result.step)] = result
        in_order = [results[id(step)] for step in steps]
        left = [str(result.step) for result in in_order if result.state == "left"]
        if left and stop.number is not None:
            jobs = " their SLURM jobs continue;" if backend.outlives_parent else ""
            raise InterruptedRun(
                f"{what}: stopped by {signal.Signals(stop.number).name}; "
                f"{plural(len(left), 'step is', 'steps are')} left ({', '.join(left)});{jobs} "
                "run the same command to continue.",
                stop.number,
            )
    return in_order


@dataclass
class _Running(Generic[AnyStep]):
    """A started step.

    Attributes:
        offset: bytes of the log that earlier attempts wrote.
        read: bytes of the log that have been read.
    """

    step: AnyStep
    worker: Worker
    started: float
    offset: int
    read: int

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


class _Scheduler(Generic[AnyStep]):
    """Start pending steps as slots become free, and follow the running ones.

    Args:
        stop: the signal that asks to stop, once it has come.
    """

    def __init__(
        self,
        pending: Sequence[AnyStep],
        backend: Machine | Queue,
        stop: StopRequest,
        display: Display,
    ) -> None:
        self.pending = list(pending)
        self.running: list[_Running[AnyStep]] = []
        self.backend, self.stop, self.display = backend, stop, display
        self._stopping = False
        self._reported: set[int] = set()  # steps whose wait for another process has been logged

    def run(self, advance: Callable[[], None]) -> list[StepResult[AnyStep]]:
        """Return the result of every step once all are done or have failed, or a signal has come.

        Args:
            advance: called when a step has ended.
        """
        results: list[StepResult[AnyStep]] = []
        try:
            while self.pending or self.running:
                if self.stop.number is not None and not self._stopping:
                    results += self._stop_all()
                for result in (*self._start_ready(), *self._collect_ended()):
                    results.append(result)
                    advance()
                time.sleep(POLL_S)
        finally:
            for one in self.running:
                one.worker.kill()
        return results

    def _stop_all(self) -> list[StepResult[AnyStep]]:
        """Ask the running steps to save and stop, and give up the pending ones."""
        self._stopping = True
        # torchrun handles SIGTERM alone. A step that requeued the SLURM job, in which all steps run, would end them.
        for one in self.running:
            one.worker.stop(signal.SIGTERM)
        left = list(self.pending)
        self.pending.clear()
        if self.backend.outlives_parent:
            left += [one.step for one in self.running]
            self.running.clear()
        return [StepResult(step, "left") for step in left]

    def _start_ready(self) -> Iterator[StepResult[AnyStep]]:
        """Start steps while slots are free; yield those that another process has completed meanwhile."""
        while len(self.running) < self.backend.slots and (step := self._next_step()):
            self.pending.remove(step)
            if is_done(step):
                yield StepResult(step, "done")
                continue
            size = step.log.stat().st_size if step.log.is_file() else 0
            self.display.log(f"{step}: started log={step.log}")
            worker = self.backend.start(step)
            self.running.append(_Running(step, worker, time.monotonic(), size, size))

    def _next_step(self) -> AnyStep | None:
        """Return the first pending step that may start; a step that another process works on has to wait."""
        for step in self.pending:
            if not self.backend.may_start(step, [one.step for one in self.running]):
                continue
            if not runs_elsewhere(step):
                return step
            if id(step) not in self._reported:
                self._reported.add(id(step))
                self.display.log(f"{step}: waiting for another process that works on it")
        return None

    def _collect_ended(self) -> Iterator[StepResult[AnyStep]]:
        """Copy new log lines to the display, and yield the results of steps that have ended."""
        for one in list(self.running):
            self._show_log(one)
            ended = one.worker.poll()
            if ended is None:
                continue
            self.running.remove(one)
            result = one.result(*ended, stopped=self._stopping)
            self._show_log(one)
            reason = f": {result.error}" if result.error else ""
            duration = format_duration(result.seconds)
            self.display.log(f"{one.step}: {result.state} in {duration}{reason}")
            yield result

    def _show_log(self, one: _Running[AnyStep]) -> None:
        for line in one.new_lines():
            self.display.log(f"{one.step}: {line}")
