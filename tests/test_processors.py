"""Claims about the processors that a process may use and how its threads share them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simmim_bench import processors
from simmim_bench.diagnostics.threads import judge_threads
from simmim_bench.processors import (
    CHOSEN,
    THREADS,
    WAIT_POLICY,
    child_environment,
    choose_threads,
    load_of_others,
    quota,
    usable_cores,
)
from simmim_bench.waiting import missing_processors

# Imports of half a second and more that a first step does not need.
NEEDLESS: tuple[str, ...] = (
    "torchmetrics",
    "transformers",
    "matplotlib",
    "scipy.interpolate",
    "scipy.stats",
)
NEEDLESS += ("datasets", "pandas", "detectron2", "mmseg", "submitit")


@pytest.fixture
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "affinity", lambda: [4, 5])


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {}, math.inf),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "150000 100000"}, 0.5),
        # The listed path is one of the host; what is mounted is the container's own group.
        ("0::/host/slice\n", {"cpu.max": "300000 100000"}, 3.0),
        ("", {"cpu.max": "300000 100000"}, 3.0),
        (
            "4:memory:/m\n3:cpu,cpuacct:/a\n0::/\n",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "memory/m/cpu.cfs_quota_us": "1\n",
            },
            2.5,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "no number"}, math.inf),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "5", "cpu/cpu.cfs_period_us": "0"}, math.inf),
    ],
)
def test_the_smallest_quota_of_all_parents_counts(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: float
) -> None:
    write(tmp_path / "cgroup", cgroup)
    for name, text in files.items():
        write(tmp_path / "root" / name, text)
    assert quota(tmp_path / "cgroup", tmp_path / "root") == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_usable_cores_follow_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() <= 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("two_processors")
def test_threads_follow_the_quota_and_the_users_variables_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processors, "quota", lambda: math.inf)
    environment: dict[str, str] = {}
    choose_threads(environment)
    assert environment == {CHOSEN: ""}  # torch counts the physical cores itself
    monkeypatch.setattr(processors, "quota", lambda: 1.5)
    choose_threads(environment)  # a child process chooses again
    assert (environment[THREADS], environment[WAIT_POLICY]) == ("1", "passive")
    monkeypatch.setattr(processors, "quota", lambda: math.inf)
    choose_threads(environment)
    assert environment == {CHOSEN: ""}

    monkeypatch.setattr(processors, "quota", lambda: 0.5)
    own = {THREADS: "7", "OMP_WAIT_POLICY": "active"}
    environment = dict(own)
    choose_threads(environment)
    assert environment == {**own, CHOSEN: ""}
    assert child_environment(2, environment) == {}


@pytest.mark.usefixtures("two_processors")
def test_children_divide_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "quota", lambda: math.inf)
    environment = {"OMP_WAIT_POLICY": "passive", CHOSEN: ""}
    for share, threads in ((1, "2"), (2, "1"), (8, "1")):
        child = {**environment, **child_environment(share, environment)}
        choose_threads(child)  # keeps what its parent gave it
        assert child[THREADS] == threads
        assert child["OMP_WAIT_POLICY"] == "passive"


def test_load_is_the_time_that_processors_are_not_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(processors.affinity())
    for number in processors.affinity():
        with open(tmp_path / "stat", "a") as file:
            file.write(f"cpu{number} 10 0 0 500 20 0 0 0 0 0\n")
    monkeypatch.setattr(processors, "STAT", tmp_path / "stat")
    assert load_of_others(0.01) == count  # the idle time stands still
    monkeypatch.setattr(processors, "STAT", tmp_path / "none")
    assert load_of_others(0.01) is None


WAIT = """
import time
from threading import Event
import torch
from simmim_bench.waiting import hold_teams

def used():
    started, processor = time.perf_counter(), time.process_time()
    for _ in range(40):
        x.add_(1)
        time.sleep(0.005)
    return (time.process_time() - processor) / (time.perf_counter() - started)

x, release = torch.ones(1 << 17), Event()
figures = [used()]
teams = hold_teams(release, torch.get_num_threads(), 2)
time.sleep(0.05)
figures.append(used())
print(*figures)
"""


@pytest.mark.skipif(len(processors.affinity()) < 2, reason="needs two processors")
@pytest.mark.heavy
def test_waiting_threads_sleep_while_an_idle_team_is_held() -> None:
    environment = {**os.environ, THREADS: "2", "GOMP_SPINCOUNT": "100000000"}
    done = subprocess.run(
        [sys.executable, "-c", WAIT], env=environment, check=True, capture_output=True, text=True
    )
    waiting, sleeping = map(float, done.stdout.split())
    assert sleeping < 0.5 * waiting


def test_missing_processors_count_others_alone() -> None:
    assert missing_processors(2, busy=2.0, own=2.0, allowed=2) == 0
    assert missing_processors(2, busy=2.0, own=1.0, allowed=2) == 1
    assert missing_processors(32, busy=40.0, own=32.0, allowed=64) < 0  # the other half is left


def test_doctor_names_quota_and_load_and_what_to_do() -> None:
    fine = judge_threads({}, threads=2, allowed=2, limit=math.inf, load=0.1)
    assert (fine.state, fine.remedy) == ("ok", None)
    limited = judge_threads({}, threads=4, allowed=4, limit=1.5, load=0.0)
    assert limited.remedy == "export OMP_NUM_THREADS=1"
    assert "quota: 1.5" in limited.said
    busy = judge_threads({}, threads=2, allowed=2, limit=math.inf, load=1.4)
    assert busy.state == "warning"
    assert "busy with other processes: 1.4" in busy.said
    active = {"OMP_WAIT_POLICY": "ACTIVE"}
    waiting = judge_threads(active, threads=2, allowed=2, limit=math.inf, load=0.0)
    assert waiting.remedy == "unset OMP_WAIT_POLICY"


@pytest.mark.heavy
def test_a_first_step_imports_nothing_needless() -> None:
    code = f"""
import sys
import simmim_bench.cli.main
assert "torch" not in sys.modules
import pretrain.launch, transfer.launch, transfer.frozen.run, transfer.finetune.run
found = [name for name in {NEEDLESS} if name in sys.modules]
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True)
