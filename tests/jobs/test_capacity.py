"""Claims about steps side by side: as many as fit in memory, an unknown one alone, and one without memory again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from support.fake_jobs import FakeMachine, FakeStep, gpu, run

from simmim_bench.jobs.capacity import CONTEXT, GIB, MARGIN, Need, Place, choose_place
from simmim_bench.jobs.options import JobOptions
from simmim_bench.jobs.workers import Machine
from simmim_bench.processors import THREADS


def test_steps_share_a_gpu_until_its_memory_is_reserved() -> None:
    place = gpu("0", 40 * GIB)
    ten = Need(10 * GIB, "measured")
    kept = ten.reserved(gpu=True)
    assert kept == MARGIN * 10 * GIB + CONTEXT
    gives_back = [place.take(ten) for _ in range(3) if place.fits(ten)]
    assert place.steps == 3  # 3 x 12.25 of 38 GiB
    assert not place.fits(Need(1 * GIB))
    gives_back[1]()
    assert place.fits(ten)
    assert not place.fits(Need(22 * GIB))


def test_a_step_of_unknown_memory_is_alone() -> None:
    place = gpu("0", 80 * GIB)
    assert place.fits(Need())
    release = place.take(Need())
    assert not place.fits(Need(1))
    release()
    place.take(Need(1))
    assert not place.fits(Need())


def test_memory_that_others_take_meanwhile_is_not_given_away() -> None:
    free = [40.0 * GIB]
    place = Place("0", 8, lambda: free[0])
    place.take(Need(10 * GIB))
    free[0] = 8.0 * GIB
    assert not place.fits(Need(10 * GIB))
    assert place.fits(Need(5 * GIB))


def test_an_unknown_free_memory_and_full_seats_keep_a_step_waiting() -> None:
    unknown = Place(None, 4, lambda: None)
    unknown.take(Need(1))
    assert not unknown.fits(Need(1))
    full = gpu("0", 80 * GIB, seats=1)
    full.take(Need(1))
    assert not full.fits(Need(1))


def test_the_emptiest_place_is_chosen() -> None:
    first, second = gpu("0", 80 * GIB), gpu("1", 80 * GIB)
    need = Need(GIB)
    first.take(need)
    assert choose_place([first, second], need) is second
    second.take(Need())
    assert choose_place([first, second], need) is first
    assert choose_place([second], need) is None


def test_processors_limit_the_steps_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simmim_bench.jobs.workers.gpu_groups", lambda size: [])
    monkeypatch.setattr("simmim_bench.jobs.workers.usable_cores", lambda: 3.5)
    assert [Machine(JobOptions(gpus_per_task=size)).slots for size in (1, 2, 8)] == [3, 1, 1]
    assert Machine(JobOptions(exclusive=True)).slots == 1
    assert [place.seats for place in Machine(JobOptions(workers=5)).places] == [1] * 5


def test_a_step_starts_where_it_fitted_although_others_take_memory_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [40.0 * GIB]
    monkeypatch.setattr("simmim_bench.jobs.workers.gpu_groups", lambda size: [])
    monkeypatch.setattr("simmim_bench.jobs.workers.usable_cores", lambda: 2.0)
    monkeypatch.setattr("simmim_bench.jobs.workers._free_main_memory", lambda: free[0])
    monkeypatch.setattr("simmim_bench.jobs.workers.launch", lambda *arguments: None)
    machine, need = Machine(JobOptions()), Need(GIB)
    for number, left in enumerate((40.0 * GIB, 0.0), start=1):
        step = FakeStep(str(number), tmp_path / f"{number}.log")
        place = machine.find_place(step, [], need)
        assert place is not None
        free[0] = left
        machine.start(step, place, need, [])
        assert place.steps == number
    assert machine.find_place(FakeStep("3", tmp_path / "3.log"), [], need) is None


def test_steps_that_run_at_a_time_divide_the_processors_and_one_alone_has_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list[dict[str, str]]()
    monkeypatch.delenv(THREADS, raising=False)
    monkeypatch.setattr("simmim_bench.processors.usable_cores", lambda: 8.0)
    monkeypatch.setattr("simmim_bench.jobs.workers.usable_cores", lambda: 8.0)
    monkeypatch.setattr("simmim_bench.jobs.workers.gpu_groups", lambda size: [])
    monkeypatch.setattr("simmim_bench.jobs.workers._free_main_memory", lambda: 4.0 * GIB)
    monkeypatch.setattr(
        "simmim_bench.jobs.workers.launch", lambda *arguments: given.append(arguments[-1])
    )

    def threads(need: Need, others: Sequence[tuple[str | None, Need]], workers: int | None) -> str:
        machine = Machine(JobOptions(workers=workers))
        steps = [(FakeStep("other", tmp_path / "b", name), one) for name, one in others]
        step = FakeStep("step", tmp_path / "a", "features")
        place = machine.find_place(step, [], need)
        assert place is not None
        machine.start(step, place, need, steps)
        return given[-1].get(THREADS, "all")

    small, unknown = Need(GIB // 4), Need()
    assert threads(small, [], None) == "all"
    assert threads(small, [(None, small)] * 3, None) == "2"
    assert threads(small, [("features", small)] * 3, None) == "all"  # they wait for each other
    assert threads(small, [(None, unknown)] * 3, None) == "all"
    assert threads(unknown, [(None, small)] * 3, None) == "all"
    assert threads(Need(GIB), [(None, small)] * 7, None) == "2"  # three fit in 3.8 GiB
    assert threads(unknown, [(None, unknown)] * 7, 4) == "2"


def test_what_shares_features_never_runs_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [FakeStep(n, tmp_path / n, r) for n, r in (("a", "x"), ("b", "x"), ("c", None))]
    machine = FakeMachine([gpu("0", 80 * GIB)])
    assert run(monkeypatch, steps, {}, machine) == ["done"] * 3
    # c starts beside a; b waits for a, whose features it reads.
    assert machine.started == [["a", "0"], ["c", "1"], ["b", "1"]] or machine.started == [
        ["a", "0"],
        ["c", "1"],
        ["b", "0"],
    ]


def test_a_step_that_lacks_memory_beside_others_runs_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [FakeStep(n, tmp_path / n) for n in ("a", "greedy", "b")]
    machine = FakeMachine([gpu("0", 80 * GIB)])
    assert run(monkeypatch, steps, {}, machine) == ["done"] * 3
    assert [name for name, _ in machine.started] == ["a", "greedy", "b", "greedy"]
    assert machine.started[-1] == ["greedy", "0"]
