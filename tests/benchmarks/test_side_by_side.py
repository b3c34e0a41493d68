"""Claims about the harness that times alternatives: in turn, and each in a process of its own where asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def count(start: int) -> Callable[[], tuple[int, int]]:
    """Give work that says its process and how often it was done there, counted from a start."""
    done = start

    def work() -> tuple[int, int]:
        nonlocal done
        done += 1
        return os.getpid(), done

    return work


def fail(*, building: bool) -> Callable[[], object]:
    if building:
        raise ValueError("no such checkout")
    return lambda: 1 / 0


def die() -> Callable[[], object]:
    return lambda: os._exit(9)


def test_work_apart_is_done_again_and_again_in_one_other_process() -> None:
    from apart import Apart

    one, other = Apart(count, 0), Apart(count, 10)
    done = [one(), other(), one(), other()]
    one.close()
    other.close()
    assert [number for _, number in done] == [1, 11, 2, 12]
    assert done[0][0] == done[2][0]
    assert len({os.getpid(), done[0][0], done[1][0]}) == 3


def test_what_fails_apart_is_told_here() -> None:
    from apart import Apart

    with pytest.raises(ValueError, match="no such checkout"):
        Apart(fail, building=True)
    with pytest.raises(ZeroDivisionError, match="division by zero") as failed:
        Apart(fail, building=False)()
    assert "lambda: 1 / 0" in str(failed.value.__cause__)
    with pytest.raises(RuntimeError, match="terminated abruptly"):
        Apart(die)()


def test_alternatives_are_timed_in_turn_and_the_first_round_does_not_count() -> None:
    from side_by_side import compare

    order: list[str] = []
    timings = compare(
        {name: lambda name=name: order.append(name) for name in ("plain", "ours")},
        rounds=3,
        between=lambda: order.append("machine"),
    )
    assert order == ["machine", "plain", "ours"] * 4
    assert [(timing.name, timing.rounds) for timing in timings] == [("plain", 3), ("ours", 3)]
    assert timings[0].speed == timings[0].speed_low == timings[0].speed_high == 1


def test_an_alternative_twice_as_slow_in_every_round_has_half_the_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import side_by_side

    clock = [0.0]
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: clock[0])
    seconds = iter([1.0, 2.0, 3.0, 6.0, 5.0, 10.0])  # a machine that slows down

    def work() -> None:
        clock[0] += next(seconds)

    timings = side_by_side.compare({"plain": work, "ours": work}, rounds=3, warm_up=False)
    assert [timing.seconds for timing in timings] == [3.0, 6.0]
    assert (timings[1].speed_low, timings[1].speed, timings[1].speed_high) == (0.5, 0.5, 0.5)
