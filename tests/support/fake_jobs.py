"""Steps and a machine whose processes compute nothing, for claims about the order of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from simmim_bench.display import Display
from simmim_bench.jobs import runner
from simmim_bench.jobs.capacity import GIB, Need, Place
from simmim_bench.jobs.forecast import Forecast
from simmim_bench.jobs.options import JobOptions
from simmim_bench.jobs.workers import Machine
from simmim_bench.runs.status import RunStatus


def gpu(name: str, free: float, seats: int = 8) -> Place:
    return Place(name, seats, lambda: free)


@dataclass
class FakeStep:
    """A step that is done once its process has ended well.

    Attributes:
        after: the steps that it waits for.
        fails: whether its process fails.
    """

    name: str
    log: Path
    resource: str | None = None
    done: bool = False
    after: tuple[FakeStep, ...] = ()
    fails: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def exclusive_resource(self) -> str | None:
        return self.resource

    def statuses(self) -> list[tuple[RunStatus, str]]:
        return [("done" if self.done else "to do", "")]

    def arguments(self) -> list[str]:
        return [self.name]


class FakeWorker:
    """A process that ends at the second look: out of memory if it is `greedy` and not alone."""

    def __init__(self, machine: FakeMachine, step: FakeStep, place: Place, need: Need) -> None:
        self.place, self._machine, self._step, self._looks = place, machine, step, 0
        self._release = place.take(need)

    def poll(self) -> tuple[int, str] | None:
        self._looks += 1
        if self._looks < 2:
            return None
        failed = self._step.name == "greedy" and self.place.steps > 1
        self._release()
        if failed:
            self._step.log.write_text("error: CUDA out of memory.\n")
            return 1, ""
        if self._step.fails:
            self._step.log.write_text("error: it fails.\n")
            return 1, ""
        self._step.done = True
        return 0, ""

    def stop(self, number: int) -> None: ...
    def kill(self) -> None: ...


@dataclass
class FakeMachine(Machine):
    """A machine whose processes compute nothing."""

    places: list[Place]
    started: list[list[str]] = field(default_factory=list)
    running: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots, self.processes = sum(place.seats for place in self.places), 1

    def start(self, step: Any, place: Place, need: Need, others: Sequence[Any]) -> Any:
        self.started.append([step.name, str(place.steps)])
        return FakeWorker(self, step, place, need)


def run(
    monkeypatch: pytest.MonkeyPatch,
    steps: Sequence[FakeStep],
    needs: dict[str, Need],
    machine: FakeMachine,
    seconds: dict[str, float] | None = None,
) -> list[str]:
    """Run steps on a machine, and return the states of their results."""
    monkeypatch.setattr(runner, "Machine", lambda options: machine)
    monkeypatch.setattr(runner, "POLL_S", 0.0)
    results = runner.run_steps(
        steps,
        JobOptions(),
        Path(),
        Display(quiet=True),
        what="suite",
        forecast=lambda step: Forecast(
            kind=step.name,
            seconds=(seconds or {}).get(step.name),
            need=needs.get(step.name, Need(GIB)),
        ),
        waits_for=lambda step: step.after,
    )
    return [result.state for result in results]
