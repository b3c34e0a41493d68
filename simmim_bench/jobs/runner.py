"""Steps carried out, each in a process of its own, so that what ends one ends no other.

In: steps, how many at once, on which devices, or through SLURM. Out: what became of each. Started again, what
is done is left alone and what was interrupted goes on; how, each step knows. Suites and ablations are made
of such steps.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch

from simmim_bench.display import Display
from simmim_bench.errors import BenchError, InterruptedRun, UsageError
from simmim_bench.jobs.options import Execution
from simmim_bench.jobs.process import exit_code, kill, last_error, launch, launch_words
from simmim_bench.jobs.slurm import Cluster, job_code
from simmim_bench.runs.lock import is_taken
from simmim_bench.runs.run_dir import check_place, is_occupied
from simmim_bench.training.loop import StopRequest, stop_on_signals

POLL_S = 0.2
State = Literal["done", "resumable", "to do", "running elsewhere", "in the way"]


class Step(Protocol):
    """One process's work."""

    @property
    def log(self) -> Path:
        """The file that its process writes to."""

    @property
    def takes_turns_on(self) -> str | None:
        """What steps share that are not to run at once; None for nothing."""

    def look(self) -> list[tuple[State, str]]:
        """Say of each of its runs how it stands, and why where it is in the way."""

    def arguments(self) -> list[str]:
        """Give the arguments of `simmim-bench` for what is left."""


AnyStep = TypeVar("AnyStep", bound=Step)


def look_at(
    place: Path, description: dict[str, Any], *, is_finished: Callable[[Path], bool]
) -> tuple[State, str]:
    """Say how a run directory stands, and why where it is in the way.

    Args:
        description: what `recipe.json` has to say there.
        is_finished: may raise a `BenchError` for a run that has ended and is damaged.
    """
    if is_taken(place):
        return "running elsewhere", ""
    try:
        check_place(place, description, resume=True, overwrite=False)
        if is_finished(place):
            return "done", ""
    except BenchError as error:
        return "in the way", str(error)
    return ("resumable" if is_occupied(place) else "to do"), ""


def duration(seconds: float) -> str:
    """Give seconds as people say them."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


class Worker(Protocol):
    """A step that runs somewhere."""

    def poll(self) -> tuple[int, str] | None:
        """Give the exit code, and why it ended where its log does not say; None while it runs."""

    def stop(self, number: int) -> None:
        """Ask it to save and stop."""

    def kill(self) -> None:
        """End it at once."""


class LocalWorker:
    """A step as a process of this machine."""

    def __init__(self, process: subprocess.Popen[bytes], free: Callable[[], None]) -> None:
        self._process, self._free = process, free

    def poll(self) -> tuple[int, str] | None:
        """Give the exit code; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        self._free()
        return code, ""

    def stop(self, number: int) -> None:
        """Pass a signal on."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        kill(self._process)


class JobWorker:
    """A step as a job, which outlives who submitted it."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> tuple[int, str] | None:
        """Give the exit code and what SLURM says; None while it waits or runs."""
        return job_code(self.job) if self.job.done() else None

    def stop(self, number: int) -> None:
        """Leave it: who starts the same again finds it."""

    def kill(self) -> None:
        """Leave it."""


class Machine:
    """This machine, its devices shared out to so many steps at once."""

    outlives = False

    def __init__(self, execution: Execution) -> None:
        self.processes = execution.gpus_per_task
        groups = share_devices(self.processes)
        self.places = execution.workers or max(1, len(groups))
        if groups and self.places > len(groups):
            raise UsageError(
                f"--workers {self.places} with --gpus-per-task {self.processes} need more GPUs than there are; "
                f"use --workers {len(groups)}."
            )
        self._free: list[str | None] = list(groups) or [None] * self.places

    def may_start(self, step: Step, running: Sequence[Step]) -> bool:
        """Say whether a step may start: what shares a thing takes turns."""
        turn = step.takes_turns_on
        return turn is None or all(turn != other.takes_turns_on for other in running)

    def start(self, step: Step) -> LocalWorker:
        """Start a step."""
        devices = self._free.pop(0)
        command = launch_words(step.arguments(), self.processes)
        return LocalWorker(launch(command, step.log, devices), lambda: self._free.append(devices))


class Queue:
    """SLURM, which shares out its machines itself."""

    outlives = True

    def __init__(self, execution: Execution, folder: Path, steps: int) -> None:
        assert execution.slurm is not None
        self.cluster = Cluster(folder, execution.slurm, execution.gpus_per_task)
        self.places = execution.workers or max(1, steps)
        self._last: dict[str, str] = {}  # what is shared -> the job that uses it last

    def may_start(self, step: Step, running: Sequence[Step]) -> bool:
        """Say whether a step may start; SLURM keeps the order."""
        return True

    def start(self, step: Step) -> JobWorker:
        """Submit a step, or find the job of an earlier attempt."""
        job, turn = self.cluster.find(step.log), step.takes_turns_on
        if job is None:
            after = None if turn is None else self._last.get(turn)
            job = self.cluster.submit(step.arguments(), step.log, str(step), after)
        if turn is not None and self.cluster.name == "slurm":
            self._last[turn] = job.job_id
        return JobWorker(job)


def share_devices(size: int) -> list[str]:
    """Give the GPUs that this process sees, in groups; none on a CPU.

    Raises:
        UsageError: a group has more than there are.
    """
    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",")[:count] if seen else [str(number) for number in range(count)]
    if size > count:
        raise UsageError(f"--gpus-per-task {size} is more than the {count} GPUs that there are.")
    return [",".join(names[i : i + size]) for i in range(0, count - size + 1, size)]


@dataclass(frozen=True)
class Outcome(Generic[AnyStep]):
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


def carry_out(
    steps: Sequence[AnyStep],
    execution: Execution,
    out: Path,
    display: Display,
    *,
    what: str,
) -> list[Outcome[AnyStep]]:
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
        id(step): Outcome(step, "done")
        for step in steps
        if all(state == "done" for state, _ in step.look())
    }
    waiting = [step for step in steps if id(step) not in done]
    where: Machine | Queue
    if execution.slurm is not None:
        where = Queue(execution, out / "slurm", len(waiting))
    else:
        where = Machine(execution)
    if done:
        display.say(f"{len(done)} of {len(steps)} steps are done and left as they are")
    with stop_on_signals() as stop, display.task(what, len(steps)) as overall:
        overall.advance(len(done))
        for outcome in _carry_out(waiting, where, stop, display, lambda: overall.advance()):
            done[id(outcome.step)] = outcome
    outcomes = [done[id(step)] for step in steps]
    left = [str(outcome.step) for outcome in outcomes if outcome.state == "left"]
    if left and stop.number is not None:
        go_on = " their jobs go on;" if where.outlives else ""
        raise InterruptedRun(
            f"{what}: stopped by {signal.Signals(stop.number).name}; {len(left)} of {len(steps)} steps are left "
            f"({', '.join(left)});{go_on} the same command goes on.",
            signal.SIGTERM if stop.number == signal.SIGUSR1 else stop.number,
        )
    return outcomes


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


def _carry_out(
    waiting: list[AnyStep],
    where: Machine | Queue,
    stop: StopRequest,
    display: Display,
    advance: Callable[[], None],
) -> list[Outcome[AnyStep]]:
    """Do steps until all are done, have failed, or a signal has come."""
    outcomes: list[Outcome[AnyStep]] = []
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
                outcomes += [Outcome(step, "left") for step in waiting]
                waiting = []
                if where.outlives:
                    outcomes += [Outcome(one.step, "left") for one in running]
                    running = []
            while len(running) < where.places and (
                step := _next(waiting, where, running, held_up, display)
            ):
                waiting.remove(step)
                if all(state == "done" for state, _ in step.look()):  # by another process meanwhile
                    outcomes.append(Outcome(step, "done"))
                    advance()
                    continue
                size = step.log.stat().st_size if step.log.is_file() else 0
                display.say(f"{step}: started, log {step.log}")
                running.append(_Running(step, where.start(step), time.monotonic(), size, size))
            for one in list(running):
                for line in one.new_lines():
                    display.say(f"{one.step}: {line}")
                ended = one.worker.poll()
                if ended is None:
                    continue
                running.remove(one)
                outcome = _judge(one, *ended, stopped=asked_to_stop)
                outcomes.append(outcome)
                for line in one.new_lines():
                    display.say(f"{one.step}: {line}")
                shown = f": {outcome.error}" if outcome.error else ""
                display.say(f"{one.step}: {outcome.state} in {duration(outcome.seconds)}{shown}")
                advance()
            time.sleep(POLL_S)
    finally:
        for one in running:
            one.worker.kill()
    return outcomes


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
            display.say(f"{step}: another process works on it; waiting for that")
    return None


def _judge(one: _Running[AnyStep], code: int, why: str, *, stopped: bool) -> Outcome[AnyStep]:
    """Say what became of a step that has ended."""
    seconds = time.monotonic() - one.started
    if all(state == "done" for state, _ in one.step.look()):
        return Outcome(one.step, "done", seconds=seconds)
    said = one.said()
    code = exit_code(code, said) or 1
    if stopped:
        return Outcome(one.step, "left", code=code, seconds=seconds)
    return Outcome(one.step, "failed", code, why or last_error(code, said), seconds)
