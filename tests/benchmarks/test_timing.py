"""The timing helpers run alternatives in turn, and in separate processes if requested."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def count(start: int) -> Callable[[], tuple[int, int]]:
    """Return a function that returns its process and the number of its calls there, counted from `start`."""
    calls = start

    def call() -> tuple[int, int]:
        nonlocal calls
        calls += 1
        return os.getpid(), calls

    return call


def fail(*, building: bool) -> Callable[[], object]:
    if building:
        raise ValueError("no such checkout")
    return lambda: 1 / 0


def die() -> Callable[[], object]:
    return lambda: os._exit(9)


def test_a_function_runs_repeatedly_in_one_separate_process() -> None:
    from separate_process import SeparateProcess

    one, other = SeparateProcess(count, 0), SeparateProcess(count, 10)
    done = [one(), other(), one(), other()]
    one.close()
    other.close()
    assert [number for _, number in done] == [1, 11, 2, 12]
    assert done[0][0] == done[2][0]
    assert len({os.getpid(), done[0][0], done[1][0]}) == 3


def test_errors_of_the_separate_process_are_raised_here() -> None:
    from separate_process import SeparateProcess

    with pytest.raises(ValueError, match="no such checkout"):
        SeparateProcess(fail, building=True)
    with pytest.raises(ZeroDivisionError, match="division by zero") as failed:
        SeparateProcess(fail, building=False)()
    assert "lambda: 1 / 0" in str(failed.value.__cause__)
    with pytest.raises(RuntimeError, match="terminated abruptly"):
        SeparateProcess(die)()


def test_alternatives_are_timed_in_turn_and_the_first_round_does_not_count() -> None:
    from timing import compare

    order: list[str] = []
    timings = compare(
        {name: partial(order.append, name) for name in ("plain", "ours")},
        rounds=3,
        between=lambda: order.append("machine"),
    )
    assert order == ["machine", "plain", "ours"] * 4
    assert [(t.name, t.rounds) for t in timings] == [("plain", 3), ("ours", 3)]
    assert timings[0].speed == timings[0].speed_low == timings[0].speed_high == 1


def test_an_alternative_twice_as_slow_in_every_round_has_half_the_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import timing

    clock = [0.0]
    monkeypatch.setattr("timing.time.perf_counter", lambda: clock[0])
    seconds = iter([1.0, 2.0, 3.0, 6.0, 5.0, 10.0])  # a machine that slows down

    def work() -> None:
        clock[0] += next(seconds)

    timings = timing.compare({"plain": work, "ours": work}, rounds=3, warm_up=False)
    assert [t.seconds for t in timings] == [3.0, 6.0]
    assert (timings[1].speed_low, timings[1].speed, timings[1].speed_high) == (0.5, 0.5, 0.5)
