"""A suite carried out: every step in a process of its own, so that what ends one ends no other.

In: the plan, and how many steps at once, on which devices, or through SLURM. Out: runs with their records,
what became of every step, and the leaderboard of all records below the suite's folder. Started again, a
suite goes on: what is done is left alone, what was interrupted is resumed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from simmim_bench.board import Board
from simmim_bench.display import Display
from simmim_bench.engine import StopRequest, stop_on_signals
from simmim_bench.errors import InterruptedRun, UsageError
from simmim_bench.leaderboard import find_records, write_leaderboard
from simmim_bench.suite_options import Execution, SuiteOptions
from transfer.processes import exit_code, kill, last_error, launch, launch_words
from transfer.slurm import Cluster, job_code
from transfer.suite_plan import Planned, Step, check_obstacles, duration, list_steps, look_over

POLL_S = 0.2


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
    """A step as a job, which outlives the suite."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> tuple[int, str] | None:
        """Give the exit code and what SLURM says; None while it waits or runs."""
        return job_code(self.job) if self.job.done() else None

    def stop(self, number: int) -> None:
        """Leave it: a suite that is started again finds it."""

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
        """Say whether a step may start: those of one checkpoint's features take turns, to share a pass."""
        return not (step.is_frozen and any(r.is_frozen and r.ckpt == step.ckpt for r in running))

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
        self._last: dict[str, str] = {}  # checkpoint -> the job that uses its features last

    def may_start(self, step: Step, running: Sequence[Step]) -> bool:
        """Say whether a step may start; SLURM keeps the order."""
        return True

    def start(self, step: Step) -> JobWorker:
        """Submit a step, or find the job of an earlier suite."""
        job = self.cluster.find(step.log)
        if job is None:
            after = self._last.get(step.ckpt) if step.is_frozen else None
            job = self.cluster.submit(step.arguments(), step.log, str(step), after)
        if step.is_frozen and self.cluster.name == "slurm":
            self._last[step.ckpt] = job.job_id
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
class Outcome:
    """What became of a step.

    Attributes:
        state: "left" is what a signal kept from being finished.
        code: exit code of its process; 0 for one that was not needed.
        error: the line that says why it failed.
        seconds: that this suite spent on it.
    """

    step: Step
    state: Literal["done", "failed", "left"]
    code: int = 0
    error: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Give the plain form."""
        return {
            "ckpt": self.step.ckpt,
            "task": self.step.name,
            "state": self.state,
            "exit_code": self.code,
            "error": self.error or None,
            "seconds": round(self.seconds, 1),
            "log": str(self.step.log),
            "command": self.step.command(),
        }


@dataclass(frozen=True)
class Result:
    """What a suite came to."""

    outcomes: tuple[Outcome, ...]
    board: Board | None
    leaderboard: Path

    @property
    def failed(self) -> list[Outcome]:
        """The steps that failed, in the plan's order."""
        return [outcome for outcome in self.outcomes if outcome.state == "failed"]

    @property
    def exit_code(self) -> int:
        """The first failed step's; 0 where all is done."""
        return next((outcome.code for outcome in self.failed), 0)


def plan_suite(options: SuiteOptions, execution: Execution) -> list[Planned]:
    """List the steps of a suite with their states and costs; writes nothing.

    Raises:
        UsageError: see `list_steps`.
        DataError: see `list_steps`.
    """
    device: str | None = None
    if execution.slurm is None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return look_over(list_steps(options), options.out, device)


def run_suite(
    planned: Sequence[Planned],
    execution: Execution,
    out: Path,
    leaderboard: Path,
    display: Display,
) -> Result:
    """Do what is left of a plan, and derive the leaderboard of all records below its folder.

    Raises:
        UsageError: a run that was started differently is in the way, or devices that there are not.
        MissingEngineError: submitit is not installed.
        InterruptedRun: a signal came; the steps that ran were asked to save.
    """
    check_obstacles(planned)
    steps = [one.step for one in planned]
    done = {id(one.step): Outcome(one.step, "done") for one in planned if one.state == "done"}
    waiting = [step for step in steps if id(step) not in done]
    where: Machine | Queue
    if execution.slurm is not None:
        where = Queue(execution, out / "slurm", len(waiting))
    else:
        where = Machine(execution)
    if done:
        display.say(f"{len(done)} of {len(steps)} steps are done and left as they are")
    with stop_on_signals() as stop, display.task("suite", len(steps)) as overall:
        overall.advance(len(done))
        for outcome in _carry_out(waiting, where, stop, display, lambda: overall.advance()):
            done[id(outcome.step)] = outcome
    outcomes = tuple(done[id(step)] for step in steps)
    left = [str(outcome.step) for outcome in outcomes if outcome.state == "left"]
    if left and stop.number is not None:
        go_on = " their jobs go on;" if where.outlives else ""
        raise InterruptedRun(
            f"suite: stopped by {signal.Signals(stop.number).name}; {len(left)} of {len(steps)} steps are left "
            f"({', '.join(left)});{go_on} the same command goes on.",
            signal.SIGTERM if stop.number == signal.SIGUSR1 else stop.number,
        )
    board = None
    if any(outcome.state == "done" for outcome in outcomes):
        board = find_records([out]).board()
        write_leaderboard(board, leaderboard)
    return Result(outcomes, board, leaderboard)


@dataclass
class _Running:
    """A step that was started, and how far its log has been read."""

    step: Step
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
    waiting: list[Step],
    where: Machine | Queue,
    stop: StopRequest,
    display: Display,
    advance: Callable[[], None],
) -> list[Outcome]:
    """Do steps until all are done, have failed, or a signal has come."""
    outcomes: list[Outcome] = []
    running: list[_Running] = []
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
    waiting: Sequence[Step],
    where: Machine | Queue,
    running: Sequence[_Running],
    held_up: set[int],
    display: Display,
) -> Step | None:
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


def _judge(one: _Running, code: int, why: str, *, stopped: bool) -> Outcome:
    """Say what became of a step that has ended."""
    seconds = time.monotonic() - one.started
    if all(state == "done" for state, _ in one.step.look()):
        return Outcome(one.step, "done", seconds=seconds)
    said = one.said()
    code = exit_code(code, said) or 1
    if stopped:
        return Outcome(one.step, "left", code=code, seconds=seconds)
    return Outcome(one.step, "failed", code, why or last_error(code, said), seconds)
