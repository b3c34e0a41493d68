"""Claims about the remaining time of several steps: known after a minute, corrected by measured durations."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from simmim_bench.display import (
    Display,
    ElapsedColumn,
    OverallProgress,
    RemainingColumn,
    TaskProgress,
)
from simmim_bench.jobs.progress import read_progress, write_progress
from simmim_bench.jobs.remaining import Expected, Tracker


class Shown(OverallProgress):
    """A display that keeps what it is shown."""

    def __init__(self) -> None:
        self.fractions: list[float] = []
        self.texts: list[str] = []

    def show(self, fraction: float, left: str, now: str) -> None:
        self.fractions.append(fraction)
        self.texts.append(f"{left}; {now}")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_first_minute_of_pretraining_tells_all_steps(clock: Clock) -> None:
    """A machine three times as slow as the one of the shares: 600 s of pretraining, 900 of other steps."""
    shown = Shown()
    tracker = Tracker(shown, clock=clock)
    first = Expected(name="pretrain", kind="pretrain", share=1.0, alone=True)
    tracker.expect([first, *(Expected(name=n, kind=n, share=0.5) for n in "abc")])
    assert "not known" in shown.texts[-1]
    tracker.start(first)
    clock.now = 60.0
    tracker.follow("pretrain", [TaskProgress("pretrain", 100, 1000, 60.0)])
    assert tracker.remaining_s() == pytest.approx(540 + 900)
    tracker.seats = 2  # three steps of 300 s on two seats, after the pretraining
    tracker.show()
    assert tracker.remaining_s() == pytest.approx(540 + 450)
    assert shown.fractions[-1] > 0


def test_the_duration_of_a_step_tells_those_of_its_kind(clock: Clock) -> None:
    tracker = Tracker(Shown(), clock=clock)
    steps = [Expected(name=f"linear {i}", kind="linear", seconds=10.0) for i in range(3)]
    tracker.expect(steps)
    assert tracker.remaining_s() == 30
    tracker.start(steps[0])
    clock.now = 40.0
    tracker.end("linear 0", done=True)
    assert tracker.remaining_s() == 80
    tracker.start(steps[1])
    clock.now = 50.0
    assert tracker.remaining_s() == 30 + 40
    clock.now = 100.0  # longer than expected: never zero or less
    assert tracker.remaining_s() == pytest.approx(6 + 40)
    tracker.end("linear 1", done=False)  # a failed step tells nothing
    assert tracker.remaining_s() == 40


def test_a_resumed_step_does_not_tell_how_long_others_take(clock: Clock) -> None:
    tracker = Tracker(Shown(), clock=clock)
    first, other = (Expected(name=n, kind=n, share=1.0) for n in ("first", "other"))
    tracker.expect([first, other])
    tracker.start(first)
    clock.now = 10.0
    tracker.follow("first", [TaskProgress("train", 100, 100, 10.0, first=90)])
    tracker.end("first", done=True)
    assert tracker.remaining_s() is None


def test_a_task_of_a_second_does_not_tell_the_time_of_a_step(clock: Clock) -> None:
    tracker = Tracker(Shown(), clock=clock)
    step = Expected(name="linear", kind="linear", seconds=100.0)
    tracker.start(step)
    clock.now = 20.0
    tracker.follow("linear", [TaskProgress("features", 99, 100, 1.0)])
    assert tracker.remaining_s() == 80
    # The training that fills the step does: a quarter of it has taken 40 s.
    clock.now = 60.0
    tracker.follow("linear", [TaskProgress("train", 25, 100, 40.0)])
    assert tracker.remaining_s() == pytest.approx(0.75 * (100 - 60) + 0.25 * 120)
    clock.now = 120.0  # longer than expected: its own rate alone
    tracker.follow("linear", [TaskProgress("train", 50, 100, 100.0)])
    assert tracker.remaining_s() == 100


def test_a_process_tells_another_how_far_it_is(tmp_path: Path) -> None:
    path = tmp_path / "step.progress.json"
    assert read_progress(path) == []
    display = Display(follower=write_progress(path))
    with display.task("seeds", 2), display.task("train", 10) as task:
        task.advance(3)
    found = read_progress(path)
    assert [(one.description, one.done, one.total) for one in found] == [
        ("seeds", 0, 2),
        ("train", 3, 10),
    ]
    for content in ("[{", "1", '[{"description": "a", "done": 1, "total": "2", "elapsed_s": 3}]'):
        path.write_text(content)
        assert read_progress(path) == []


def test_plain_lines_of_several_steps_come_every_half_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr("simmim_bench.display.time.monotonic", clock)
    with Display().overall("demo") as overall:
        for clock.now in (1.0, 29.0, 31.0, 45.0, 62.0):
            overall.show(0.25, "3 min 00 s left", "pretrain")
    assert capsys.readouterr().err.splitlines() == ["demo: 25%, 3 min 00 s left; pretrain"] * 2


def test_the_remaining_time_of_a_resumed_task_follows_from_its_own_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr("simmim_bench.display.time.monotonic", clock)
    with Display().task("pretrain", 1000) as task:
        task.advance(800)
        clock.now = 20.0
        task.advance(20, epoch="9/10", loss=0.51239)
    shown = "pretrain: 820/1,000 epoch=9/10 loss=0.5124, 3 min 00 s left"
    assert capsys.readouterr().err.splitlines() == [shown]


def test_the_times_of_a_bar_are_named() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    progress = Progress(ElapsedColumn(), RemainingColumn(), console=console)
    progress.add_task("train", total=10)
    (task,) = progress.tasks
    assert RemainingColumn().render(task).plain == ""
    task.finished_time = 61.0
    task.completed = 10
    assert ElapsedColumn().render(task).plain.endswith(" elapsed")
    assert RemainingColumn().render(task).plain == "0.0 s left"
