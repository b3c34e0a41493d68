"""Steps carried out, each in a process of its own, so that what ends one ends no other.

In: steps, how many at once, on which devices, or through SLURM. Out: what became of each. Started again, what
is done is left alone and what was interrupted goes on; how, each step knows. Suites and ablations are made
of such steps.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from simmim_bench.display import Display, format_duration
from simmim_bench.errors import InterruptedRun
from simmim_bench.jobs.options import JobOptions
from simmim_bench.jobs.process import exit_code, last_error
from simmim_bench.jobs.workers import Machine, Queue, Step, Worker
from simmim_bench.training.stopping import StopRequest, stop_on_signals

POLL_S = 0.2


AnyStep = TypeVar("AnyStep", bound=Step)


@dataclass(frozen=True)
class StepResult(Generic[AnyStep]):
    """What became of a step.

    Attributes:
        state: "left" is what a signal kept from being finished.
        code: exit code of its process; 0 for one that was not needed.
        error: the line that says why it failed.
        seconds: spent on it here.
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
    """Do what is left of some steps.

    Args:
        out: the folder whose `slurm/` keeps what submitit writes.
        what: the steps make up, in a word.

    Returns:
        What became of every step, in their order.

    Raises:
        UsageError: devices that there are not.
        MissingEngineError: submitit is not installed.
        InterruptedRun: a signal came; the steps that ran were asked to save.
    """
    done = {
        id(step): StepResult(step, "done")
        for step in steps
        if all(state == "done" for state, _ in step.look())
    }
    waiting = [step for step in steps if id(step) not in done]
    where: Machine | Queue
    if job_options.slurm is not None:
        where = Queue(job_options, out / "slurm", len(waiting))
    else:
        where = Machine(job_options)
    if done:
        display.log(f"{len(done)} of {len(steps)} steps are done and left as they are")
    with stop_on_signals() as stop, display.task(what, len(steps)) as overall:
        overall.advance(len(done))
        for result in _run_pending(waiting, where, stop, display, lambda: overall.advance()):
            done[id(result.step)] = result
    results = [done[id(step)] for step in steps]
    left = [str(result.step) for result in results if result.state == "left"]
    if left and stop.number is not None:
        go_on = " their jobs go on;" if where.outlives else ""
        raise InterruptedRun(
            f"{what}: stopped by {signal.Signals(stop.number).name}; {len(left)} of {len(steps)} steps are left "
            f"({', '.join(left)});{go_on} the same command goes on.",
            signal.SIGTERM if stop.number == signal.SIGUSR1 else stop.number,
        )
    return results


@dataclass
class _Running(Generic[AnyStep]):
    """A step that was started, and how far its log has been read."""

    step: AnyStep
    worker: Worker
    started: float
    begins: int  # bytes of the log that are from earlier attempts
    read: int

    def new_lines(self) -> list[str]:
        """Give what the log says since the last call, in whole lines."""
        if not self.step.log.is_file():
            return []
        with open(self.step.log, "rb") as file:
            file.seek(self.read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self.read += len(whole) + len(newline)
        return whole.decode(errors="replace").splitlines()

    def said(self) -> str:
        """Give all that this attempt said."""
        if not self.step.log.is_file():
            return ""
        with open(self.step.log, "rb") as file:
            file.seek(self.begins)
            return file.read().decode(errors="replace")


def _run_pending(
    waiting: list[AnyStep],
    where: Machine | Queue,
    stop: StopRequest,
    display: Display,
    advance: Callable[[], None],
) -> list[StepResult[AnyStep]]:
    """Do steps until all are done, have failed, or a signal has come."""
    results: list[StepResult[AnyStep]] = []
    running: list[_Running[AnyStep]] = []
    held_up: set[int] = set()
    asked_to_stop = False
    try:
        while waiting or running:
            if stop.number is not None and not asked_to_stop:
                asked_to_stop = True
                # `torchrun` knows SIGTERM; SIGUSR1 makes a run queue its own job again.
                alone = where.processes == 1 if isinstance(where, Machine) else False
                warned = stop.number == signal.SIGUSR1 and alone
                for one in running:
                    one.worker.stop(signal.SIGUSR1 if warned else signal.SIGTERM)
                results += [StepResult(step, "left") for step in waiting]
                waiting = []
                if where.outlives:
                    results += [StepResult(one.step, "left") for one in running]
                    running = []
            while len(running) < where.places and (
                step := _next(waiting, where, running, held_up, display)
            ):
                waiting.remove(step)
                if all(state == "done" for state, _ in step.look()):  # by another process meanwhile
                    results.append(StepResult(step, "done"))
                    advance()
                    continue
                size = step.log.stat().st_size if step.log.is_file() else 0
                display.log(f"{step}: started, log {step.log}")
                running.append(_Running(step, where.start(step), time.monotonic(), size, size))
            for one in list(running):
                for line in one.new_lines():
                    display.log(f"{one.step}: {line}")
                ended = one.worker.poll()
                if ended is None:
                    continue
                running.remove(one)
                result = _judge(one, *ended, stopped=asked_to_stop)
                results.append(result)
                for line in one.new_lines():
                    display.log(f"{one.step}: {line}")
                shown = f": {result.error}" if result.error else ""
                display.log(
                    f"{one.step}: {result.state} in {format_duration(result.seconds)}{shown}"
                )
                advance()
            time.sleep(POLL_S)
    finally:
        for one in running:
            one.worker.kill()
    return results


def _next(
    waiting: Sequence[AnyStep],
    where: Machine | Queue,
    running: Sequence[_Running[AnyStep]],
    held_up: set[int],
    display: Display,
) -> AnyStep | None:
    """Give the first step that may start; one that another process works on waits for that process."""
    for step in waiting:
        if not where.may_start(step, [one.step for one in running]):
            continue
        if not any(state == "running elsewhere" for state, _ in step.look()):
            return step
        if id(step) not in held_up:
            held_up.add(id(step))
            display.log(f"{step}: another process works on it; waiting for that")
    return None


def _judge(one: _Running[AnyStep], code: int, why: str, *, stopped: bool) -> StepResult[AnyStep]:
    """Say what became of a step that has ended."""
    seconds = time.monotonic() - one.started
    if all(state == "done" for state, _ in one.step.look()):
        return StepResult(one.step, "done", seconds=seconds)
    said = one.said()
    code = exit_code(code, said) or 1
    if stopped:
        return StepResult(one.step, "left", code=code, seconds=seconds)
    return StepResult(one.step, "failed", code, why or last_error(code, said), seconds)
