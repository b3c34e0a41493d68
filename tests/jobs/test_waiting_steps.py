"""Claims about steps that wait for others: they start after them, and are not run if one of them fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fake_jobs import FakeMachine, FakeStep, gpu, run

from simmim_bench.jobs.capacity import GIB


def make_steps(folder: Path, after: dict[str, str], failing: str = "") -> list[FakeStep]:
    """Return a step for each name, which waits for the steps of the names that its value has, one letter each."""
    steps = dict[str, FakeStep]()
    for name, needed in after.items():
        waits_for = tuple(steps[one] for one in needed)
        steps[name] = FakeStep(name, folder / name, after=waits_for, fails=name in failing)
    return list(steps.values())


def test_a_step_starts_when_all_that_it_waits_for_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = make_steps(tmp_path, {"a": "", "b": "a", "c": "", "d": "bc", "e": ""})
    machine = FakeMachine([gpu("0", 80 * GIB)])
    assert run(monkeypatch, steps, {}, machine) == ["done"] * 5
    order = [name for name, _ in machine.started]
    assert order[:3] == ["a", "c", "e"]  # beside each other
    assert order[3:] == ["b", "d"]


def test_what_waits_for_a_failed_step_is_not_run_and_all_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = {"a": "", "b": "", "c": "a", "d": "bc", "e": "b"}
    machine = FakeMachine([gpu("0", 80 * GIB)])
    states = run(monkeypatch, make_steps(tmp_path, after, failing="a"), {}, machine)
    assert states == ["failed", "done", "not run", "not run", "done"]
    assert [name for name, _ in machine.started] == ["a", "b", "e"]


def test_a_step_that_was_done_before_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = make_steps(tmp_path, {"a": "", "b": "a"})
    steps[0].done = True
    machine = FakeMachine([gpu("0", 80 * GIB)])
    assert run(monkeypatch, steps, {}, machine) == ["done"] * 2
    assert [name for name, _ in machine.started] == ["b"]


def test_the_longest_chain_of_steps_starts_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = make_steps(tmp_path, {"a": "", "b": "", "c": "b", "d": ""})
    machine = FakeMachine([gpu("0", 80 * GIB, seats=1), gpu("1", 80 * GIB, seats=1)])
    seconds = {"a": 5.0, "b": 2.0, "c": 4.0, "d": 1.0}
    assert run(monkeypatch, steps, {}, machine, seconds) == ["done"] * 4
    assert [name for name, _ in machine.started] == ["b", "a", "c", "d"]
