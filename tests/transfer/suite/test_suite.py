"""Claims about suites: planned first, as good as task by task, resumable at any moment, stopped by no failure."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from support.commands import forked_launch
from support.records import make_record

from simmim_bench.cli.main import cli
from simmim_bench.errors import BenchError, DataError, UsageError
from simmim_bench.jobs import workers
from simmim_bench.jobs.options import JobOptions, SlurmOptions
from simmim_bench.jobs.process import command_line, exit_code, last_error
from simmim_bench.jobs.slurm import Cluster, job_result, read_minutes
from simmim_bench.jobs.workers import Machine, gpu_groups
from simmim_bench.leaderboard.find import find_records
from simmim_bench.runs.lock import exclusive_lock, is_locked
from simmim_bench.tasks import variants

CKPT = "random:vit_pocket"
HOME = "random-vit_pocket"
QUICK = ("-o", "linear.epochs=2", "-o", "linear.base_lr=0.1", "-o", "linear.blocks=2")


def suite(*arguments: object, ckpt: str = CKPT) -> Result:
    return CliRunner().invoke(cli, ["suite", "--ckpt", ckpt, *map(str, arguments)])


def ok(*arguments: object) -> str:
    """Run a suite that ends well, and give its stdout."""
    done = suite(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def records(root: Path) -> dict[str, tuple[int, str]]:
    """Give each record's time of writing and hash by its place."""
    return {
        path.parent.relative_to(root).as_posix(): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in root.rglob("record.json")
    }


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "simmim_bench", "suite", "--ckpt", CKPT, *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_dry_run_lists_every_step_and_writes_nothing(tmp_path: Path, pocket: Path) -> None:
    data = [
        word for name in ("imagenet", "coco", "ade20k") for word in (f"--{name}", pocket / name)
    ]
    common = (*data, "--out", tmp_path / "runs", "--baseline", "random", "--dry-run")
    seeds = ("--seeds", "imagenet=2", "--seeds", "1", "--seeds", "fewshot=3")
    done = suite(*common, *seeds, "--json", "-o", "fewshot-10%.folds=3", ckpt="random:swin_pocket")
    steps = json.loads(done.stdout)
    # The baseline of random weights is the checkpoint itself, and done once.
    assert [(step["ckpt"], step["task"], list(step["seeds"])) for step in steps] == [
        ("random:swin_pocket", "linear", ["0"]),
        ("random:swin_pocket", "knn", ["0"]),
        ("random:swin_pocket", "fewshot-1%", ["0", "1", "2"]),
        ("random:swin_pocket", "fewshot-10%", ["0", "1", "2"]),
        ("random:swin_pocket", "attentive", ["0"]),
        ("random:swin_pocket", "imagenet", ["0"]),
        ("random:swin_pocket", "imagenet", ["1"]),
        ("random:swin_pocket", "coco", ["0"]),
        ("random:swin_pocket", "ade20k", ["0"]),
    ]
    assert {step["state"] for step in steps} == {"to do"}
    assert steps[3]["deviates"] == {"folds": 3}
    assert not steps[2]["deviates"]
    assert "-o folds=3" in steps[3]["command"]
    assert steps[6]["command"].endswith(f"--out {steps[6]['runs'][0]} --resume")
    # A column each, with the planned seeds and the data set's images, of which nothing is at hand.
    assert [[(p["metric"], p["units"], p["images"]) for p in step["power"]] for step in steps] == [
        [("top1", 1, 30)],
        [("top1", 1, 30)],
        [("top1", 3, 30)],
        [("top1", 3, 30)],
        [("top1", 1, 30)],
        [("top1", 2, 30)],
        [("top1", 2, 30)],
        [("box_ap", 1, 6), ("mask_ap", 1, 6)],
        [("miou", 1, 6)],
    ]
    assert {p["points"] for step in steps for p in step["power"]} == {None}
    both = ok(*common, "--tasks", "knn", "--tasks", "coco,fewshot", "--ckpt", "random:swin_pocket")
    lines = [line.split() for line in both.splitlines()]
    assert [line[:2] for line in lines[1:9]] == [
        [ckpt, task]
        for ckpt in (CKPT, "random:swin_pocket")
        for task in ("knn", "fewshot-1%", "fewshot-10%", "coco")
    ]
    assert "8 of 8 steps to do" in both
    assert not list(tmp_path.iterdir())


def test_a_dry_run_forecasts_from_the_records_in_its_folder(tmp_path: Path, few: Path) -> None:
    runs = tmp_path / "runs"
    for label, correct in (("a", (4, 6, 8)), ("b", (3, 5, 7))):
        for seed, number in enumerate(correct):
            make_record(runs / "CKPT" / "linear" / "named", label=label, correct=number, seed=seed)
            make_record(runs, label=label, correct=number, task="knn", seed=seed)
    broken = runs / "a-knn-2" / "record.json"
    broken.write_text("{")
    common = ("--imagenet", few, "--tasks", "linear,knn", "--seeds", "linear=3", "--out", runs)
    done = suite(*common, "--dry-run", "--json", ckpt="random:vit_pocket")
    assert done.exit_code == 0
    assert done.stderr.count("suite: warning: ") == 1
    assert str(broken) in done.stderr
    linear, knn = (step["power"][0] for step in json.loads(done.stdout))
    assert linear["unit_sd"] == pytest.approx(20)  # of 40, 60, 80 and of 30, 50, 70
    assert linear["unit_source"] == "6 seeds, same task"
    assert linear["image_source"] == "2 rows, same task"
    assert linear["points"] == pytest.approx(linear["by_units"]["3"])
    assert knn["points"] is None
    assert "seed" in knn["unit_source"]
    text = suite(*common, "--dry-run").stdout
    assert f"  {linear['points']:.1f}  " in text
    assert "one seed shows none" in text


@pytest.mark.parametrize("deterministic", [True, False])
def test_every_step_is_deterministic_if_the_suite_is(
    tmp_path: Path, pocket: Path, deterministic: bool
) -> None:
    data = [w for name in ("imagenet", "coco", "ade20k") for w in (f"--{name}", pocket / name)]
    words = ["--deterministic"] if deterministic else []
    done = suite(*data, "--out", tmp_path / "runs", "--dry-run", "--json", *words)
    steps = json.loads(done.stdout)
    assert {step["task"] for step in steps} == set(variants())
    for step in steps:
        _, command, *arguments = shlex.split(step["command"])
        parsed = cli.commands[command].make_context(command, arguments)
        assert parsed.params["deterministic"] is deterministic, step["task"]


@pytest.mark.heavy
def test_a_suite_equals_its_tasks_run_alone_and_skips_them_when_done(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "launch", forked_launch)
    data = str(pocket / "imagenet")
    common = ("--imagenet", data, "--tasks", "linear,knn", "--seeds", "knn=2", *QUICK)
    ok(*common, "--out", "together")
    plain = [word.replace("linear.", "") for word in QUICK]
    for words in (["linear", *plain], ["knn", "--seeds", "2"]):
        single = ["transfer", *words, "--ckpt", CKPT, "--data", data, "--quiet"]
        assert CliRunner().invoke(cli, single).exit_code == 0
    one, other = (find_records([Path(root)]).records for root in ("together", "runs"))
    assert {path.relative_to("together") for path in one} == {
        path.relative_to("runs") for path in other
    }
    for path, record in one.items():
        twin = other["runs" / path.relative_to("together")]
        for name in ("metrics", "predictions", "recipe", "deviates", "data", "seed", "checkpoint"):
            assert getattr(record, name) == getattr(twin, name), name
    rows = [find_records([Path(root)]).board().rows for root in ("together", "runs")]
    cells = [[cell and cell.values for cell in row.cells] for (row,) in rows]
    assert cells[0] == cells[1]
    assert any(cells[0])

    before = records(Path("runs"))
    result = ok(*common)  # below runs/, where the single transfers are
    assert "0 of 2 steps to do" in result
    assert "2 of 2 steps done" in result
    assert records(Path("runs")) == before
    assert "vit_pocket, random" in Path("runs", "leaderboard", "LEADERBOARD.md").read_text()
    assert (
        "verified: "
        in CliRunner().invoke(cli, ["leaderboard", "check", "--out", "runs/leaderboard"]).output
    )

    more = ("--imagenet", data, "--tasks", "linear,knn", "--seeds", "knn=4", "--dry-run", "--json")
    linear, knn = json.loads(ok(*more[:-2], "--out", "together", *more[-2:], *QUICK))
    spent = [record.wall_time_s for record in one.values() if record.task == "knn"]
    assert knn["state"] == "2 of 4 seeds done"
    assert knn["estimate"]["seconds"] == pytest.approx(2 * sum(spent) / 2)
    assert knn["estimate"]["source"] == "mean of 2 similar runs"
    assert "--seed 2" in knn["command"]
    assert "--seeds 2" in knn["command"]
    assert linear["estimate"]["seconds"] == 0
    shutil.copytree(data, "elsewhere")
    other_data = ("--imagenet", "elsewhere", "--tasks", "knn", "--seed", "7", "--dry-run", "--json")
    (unlike,) = json.loads(ok(*other_data, "--out", "together"))
    assert unlike["estimate"]["seconds"] is None


@pytest.mark.slow
def test_a_killed_suite_continues_and_skips_completed_steps(tmp_path: Path, pocket: Path) -> None:
    data = ("--imagenet", pocket / "imagenet", "--out", tmp_path, "--tasks", "linear,knn")
    common = (*data, "--seeds", "2", *QUICK)
    killed = start(*common)
    wait_for(lambda: len(records(tmp_path)) >= 1, killed)
    time.sleep(random.Random(os.getpid()).uniform(0, 4))
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = records(tmp_path)
    again = suite(*common, "--json")
    assert again.exit_code == 0, again.output
    after = records(tmp_path)
    assert before.items() <= after.items()
    assert set(after) == {f"{HOME}/{task}/seed{n}" for task in ("linear", "knn") for n in (0, 1)}
    assert [step["state"] for step in json.loads(again.stdout.splitlines()[-1])["steps"]] == [
        "done",
        "done",
    ]
    assert not list(tmp_path.rglob(".lock"))


@pytest.mark.slow
def test_a_signal_is_passed_to_the_step_which_saves(tmp_path: Path, pocket: Path) -> None:
    data = ("--imagenet", pocket / "imagenet", "--out", tmp_path, "--tasks", "imagenet,coco")
    common = (*data, "--coco", pocket / "coco", "-o", "imagenet.epochs=400")
    stopped = start(*common)
    place = tmp_path / HOME / "imagenet" / "seed0"
    metrics = place / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_text().count("\n") > 2, stopped)
    (one, two) = json.loads(ok(*common, "--dry-run", "--json"))
    assert (one["state"], two["state"]) == ("running elsewhere", "to do")
    stopped.send_signal(signal.SIGTERM)
    said, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 143, said
    left = "imagenet of random:vit_pocket, coco of random:vit_pocket"
    assert f"suite: stopped by SIGTERM; 2 steps are left ({left})" in said
    assert (place / "checkpoints" / "last" / "training.pt").is_file()
    (one, two) = json.loads(ok(*common, "--dry-run", "--json"))
    assert (one["state"], two["state"]) == ("resumable", "to do")


@pytest.mark.heavy
def test_a_suite_continues_after_a_failed_step_and_prints_its_command(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "launch", forked_launch)
    coco = Path(shutil.copytree(pocket / "coco", tmp_path / "coco"))
    annotations = coco / "annotations" / "instances_train2017.json"
    whole = annotations.read_bytes()
    annotations.write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "runs"
    data = ("--imagenet", pocket / "imagenet", "--coco", coco, "--out", out, "--quiet")
    common = (*data, "--tasks", "knn,coco", "-o", "coco.max_iters=1", "-o", "coco.warmup_iters=0")
    done = suite(*common, "--workers", "2")
    assert done.exit_code == 4
    assert "1 of 2 steps done" in done.stdout
    (failed,) = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert failed.startswith("failed  coco of random:vit_pocket: ")
    assert annotations.name in failed
    before = records(out)
    assert set(before) == {f"{HOME}/knn/seed0"}
    (command,) = [
        line.removeprefix("alone   simmim-bench ")
        for line in done.stdout.splitlines()
        if line.startswith("alone")
    ]
    annotations.write_bytes(whole)
    alone = CliRunner().invoke(cli, command.split())
    assert alone.exit_code == 0, alone.output
    assert set(records(out)) == {*before, f"{HOME}/coco/seed0"}
    assert "0 of 2 steps to do" in ok(*common, "--dry-run")


def test_blocked_steps_are_reported_before_anything_starts(tmp_path: Path, pocket: Path) -> None:
    data = ("--imagenet", pocket / "imagenet", "--out", tmp_path, "--tasks", "linear,knn")
    place = tmp_path / HOME / "knn" / "seed0"
    single = ["transfer", "knn", "--ckpt", CKPT, "--data", str(pocket / "imagenet"), "-o", "k=3"]
    assert CliRunner().invoke(cli, [*single, "--out", str(place)]).exit_code == 0
    refused = suite(*data)
    assert isinstance(refused.exception, UsageError)
    assert "1 of 2 steps are blocked; nothing was started." in str(refused.exception)
    assert f"{place} was started with another recipe (k [3], now [10, 20, 100])" in str(
        refused.exception
    )
    assert not (tmp_path / HOME / "linear").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ([], UsageError, "pass --imagenet, --coco or --ade20k"),
        (["--imagenet", "nowhere"], DataError, "--imagenet nowhere does not exist"),
        (["--tasks", "knnn"], UsageError, "did you mean 'knn'?"),
        (
            ["--tasks", "coco"],
            UsageError,
            "--tasks coco needs a data set; pass its folder with --coco",
        ),
        (["--seeds", "0"], UsageError, "--seeds 0 is not a number from 1 to 100"),
        (["--seeds", "coco=2"], UsageError, "--seeds: coco is not in the plan"),
        (["--recipe", "knn"], UsageError, "write --recipe linear=knn"),
        (["--recipe", "linear=knn"], UsageError, "recipe 'knn' is not for linear"),
        (["--recipe", "knn=kn"], UsageError, "did you mean 'knn'?"),
        (["-o", "epochs=3"], UsageError, "write -o linear.epochs=3"),
        (["-o", "linear.epoch=3"], UsageError, "did you mean 'epochs'?"),
        (["-o", "lineal.epochs=3"], UsageError, "did you mean 'linear'?"),
        (["--ckpt", "random/vit_pocket"], DataError, "does not exist"),
    ],
)
def test_an_invalid_suite_is_refused_before_anything_is_written(
    tmp_path: Path,
    pocket: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: type[BenchError],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = () if not arguments or "--imagenet" in arguments else ("--imagenet", pocket / "imagenet")
    refused = suite(*data, *arguments)
    assert isinstance(refused.exception, error), refused.output
    assert said in str(refused.exception)
    assert not list(tmp_path.iterdir())


def test_two_checkpoints_that_would_share_a_folder_are_refused(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from simmim_bench.models.archs import ARCHS

    monkeypatch.setitem(ARCHS, "vit/pocket", ARCHS["vit_pocket"])
    monkeypatch.setitem(ARCHS, "vit-pocket", ARCHS["vit_pocket"])
    common = ("--imagenet", pocket / "imagenet", "--ckpt", "random:vit-pocket")
    refused = suite(*common, ckpt="random:vit/pocket")
    assert "would share the folder runs/random-vit-pocket/linear" in str(refused.exception)


@pytest.mark.heavy
def test_a_step_runs_as_a_job(tmp_path: Path, pocket: Path) -> None:
    common = ("--imagenet", pocket / "imagenet", "--out", tmp_path, "--tasks", "knn", "--quiet")
    result = suite(*common, "--slurm", "--cluster", "local", "--json")
    assert result.exit_code == 0, result.output
    (step,) = json.loads(result.stdout)["steps"]
    assert step["state"] == "done"
    assert set(records(tmp_path)) == {f"{HOME}/knn/seed0"}
    assert "top1" in (tmp_path / HOME / "knn" / "suite.log").read_text()


@pytest.mark.slow
def test_a_job_near_its_time_limit_saves_and_is_requeued(tmp_path: Path, pocket: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    words = ["transfer", "imagenet", "--ckpt", CKPT, "--data", str(pocket / "imagenet")]
    words += ["--out", str(out), "--resume", "-o", "epochs=15"]
    options = SlurmOptions(cluster="local", more=("gpus_per_node=0",))
    job = Cluster(tmp_path / "jobs", options, 0).submit(words, log, "imagenet", None)
    metrics = out / "metrics.jsonl"
    until = time.monotonic() + 60
    while not metrics.is_file() or metrics.read_text().count("\n") < 3:
        assert time.monotonic() < until
        assert not job.done()
        time.sleep(0.05)
    # The signal that submitit has SLURM send, to the process that SLURM has started.
    run = (out / ".lock").read_text().split()[1]
    parent = subprocess.run(["ps", "-o", "ppid=", "-p", run], capture_output=True, check=True)
    os.kill(int(parent.stdout), signal.SIGUSR2)
    assert job_result(job) == (0, "")
    said = log.read_text()
    assert "stopped by SIGTERM after step" in said
    assert "resumed" in said.partition("stopped by")[2]
    assert (out / "record.json").is_file()


def test_sbatch_receives_the_requested_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit writes the batch file; sbatch is a stand-in that keeps it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in (
        ("sbatch", f'cp "$1" {tmp_path}/batch; echo Submitted batch job 42'),
        ("srun", "true"),
        ("sacct", f"cat {tmp_path}/sacct"),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    options = SlurmOptions(
        partition="gpu",
        account="vision",
        time="1-02:30",
        more=("cpus_per_task=12", "qos=high", "licenses=a"),
    )
    log = tmp_path / "suite.log"
    job = Cluster(tmp_path / "slurm", options, 4).submit(["doctor"], log, "knn of runs/b", "41")
    batch = (tmp_path / "batch").read_text().splitlines()
    for line in (
        "partition=gpu",
        "account=vision",
        "time=1590",
        "gpus-per-node=4",
        "cpus-per-task=12",
        "qos=high",
        "licenses=a",
        "dependency=afterany:41",
        "job-name=knn-of-runs-b",
        "ntasks-per-node=1",
    ):
        assert f"#SBATCH --{line}" in batch
    assert job.job_id == "42"
    # By default, sbatch would give the whole job a single core.
    assert Cluster(tmp_path / "slurm", SlurmOptions(), 4).settings["cpus_per_task"] == 40
    # A suite that is started again finds the job as long as SLURM knows it as waiting or running.
    for state, found in (("RUNNING", True), ("PENDING", True), ("FAILED", False), ("", False)):
        (tmp_path / "sacct").write_text(f"JobID|State|NodeList\n42|{state}|a\n" if state else "\n")
        again = Cluster(tmp_path / "slurm", options, 4)
        from submitit import SlurmJob

        SlurmJob.watcher.clear()
        assert (again.find(log) is not None) == found, state


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("12:00:00", 720), ("2-0", 2880), ("1-02:30", 1590)],
)
def test_times_are_parsed_as_sbatch_does(text: str, minutes: int) -> None:
    assert read_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "a", "1:2:3:4", "-3", "0", "1-"])
def test_invalid_times_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--slurm-time"):
        read_minutes(text)


def test_without_submitit_the_message_names_the_extra(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    common = ("--imagenet", pocket / "imagenet", "--out", tmp_path / "runs", "--tasks", "knn")
    refused = suite(*common, "--slurm")
    assert isinstance(refused.exception, BenchError)
    assert refused.exception.exit_code == 3
    assert "simmim-bench[slurm]" in str(refused.exception)
    assert not (tmp_path / "runs").exists()


def test_a_run_directory_is_locked_until_its_process_ends(tmp_path: Path, pocket: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from simmim_bench.runs.lock import exclusive_lock\n"
        "with exclusive_lock(pathlib.Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    assert is_locked(tmp_path)
    single = ["transfer", "knn", "--ckpt", CKPT, "--data", str(pocket / "imagenet")]
    refused = CliRunner().invoke(cli, [*single, "--out", str(tmp_path), "--quiet"])
    assert isinstance(refused.exception, UsageError)
    assert f"another process works in {tmp_path} (process {other.pid} on " in str(refused.exception)
    other.kill()
    other.wait()
    assert not is_locked(tmp_path)
    with exclusive_lock(tmp_path):
        assert is_locked(tmp_path)
    assert not list(tmp_path.iterdir())


def test_overwriting_a_run_empties_it_and_keeps_it_locked(tmp_path: Path, pocket: Path) -> None:
    single = ["transfer", "knn", "--ckpt", CKPT, "--data", str(pocket / "imagenet"), "--quiet"]
    single += ["--out", str(tmp_path / "knn")]
    assert CliRunner().invoke(cli, single).exit_code == 0
    (tmp_path / "knn" / "old").mkdir()
    (tmp_path / "knn" / "old" / "file").touch()
    assert CliRunner().invoke(cli, [*single, "--overwrite"]).exit_code == 0
    assert not (tmp_path / "knn" / "old").exists()
    assert (tmp_path / "knn" / "record.json").is_file()


@pytest.mark.slow
def test_torchrun_ends_with_the_failed_process_s_code_and_error(
    tmp_path: Path,
) -> None:
    words = ["transfer", "knn", "--ckpt", CKPT, "--data", str(tmp_path / "nowhere")]
    command = command_line([*words, "--out", str(tmp_path / "run")], 2)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert exit_code(done.returncode, said) == 4
    assert "nowhere" in last_error(4, said)


@pytest.mark.parametrize(
    ("seen", "size", "groups"),
    [
        (None, 1, ["0", "1", "2", "3", "4"]),
        (None, 2, ["0,1", "2,3"]),
        ("6,2,GPU-5a,1,0", 2, ["6,2", "GPU-5a,1"]),
        (None, 5, ["0,1,2,3,4"]),
    ],
)
def test_gpus_are_split_into_disjoint_groups(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, size: int, groups: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    machine = Machine(JobOptions(gpus_per_task=size, exclusive=True))
    assert machine.slots == len(groups)
    assert gpu_groups(size) == groups
    with pytest.raises(UsageError, match=f"use --workers {len(groups)}"):
        Machine(JobOptions(gpus_per_task=size, workers=len(groups) + 1))
    with pytest.raises(UsageError, match="more than the 5 GPUs"):
        Machine(JobOptions(gpus_per_task=6))


def test_a_process_sees_only_its_devices_and_ends_with_its_parent(tmp_path: Path) -> None:
    tell = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], os.getpid()); time.sleep(60)"
    code = (
        "import pathlib, sys, time\n"
        "from simmim_bench.jobs.process import launch\n"
        "launch([sys.executable, '-c', sys.argv[1]], pathlib.Path(sys.argv[2]), '2,3')\n"
        "time.sleep(60)"
    )
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", code, tell, str(log)])
    until = time.monotonic() + 30
    while not (log.is_file() and log.read_text().endswith("\n")):
        assert time.monotonic() < until
        time.sleep(0.05)
    devices, child = log.read_text().split()
    assert devices == "2,3"
    parent.kill()
    parent.wait()
    if sys.platform != "linux":
        os.kill(int(child), signal.SIGTERM)
    while (
        Path("/proc", child).exists()
        and "\nState:\tZ" not in Path("/proc", child, "status").read_text()
    ):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_checkpoints_and_recipes_are_completed() -> None:
    shell = ShellComplete(cli, {}, "simmim-bench", "_COMPLETE")

    def offered(option: str, begun: str) -> list[str]:
        return [item.value for item in shell.get_completions(["suite", option], begun)]

    assert offered("--recipe", "few") == ["fewshot-1%=", "fewshot-10%=", "fewshot="]
    assert offered("--recipe", "linear=linear_s") == ["linear=linear_simmim"]
    assert "random:vit_pocket" in offered("--ckpt", "random:vit")


def test_the_reason_a_step_ended_is_reported() -> None:
    assert exit_code(-9, "") == 137
    assert "SIGKILL, possibly out of memory" in last_error(137, "step 3\n")
    assert last_error(1, "Traceback\n  File\nValueError: 3\n") == "ValueError: 3"
    assert last_error(4, "a\nerror: b\nc\n") == "b"
    assert last_error(4, "error: b\nerror: stopped by SIGTERM.\n") == "b"
    assert last_error(143, "error: stopped by SIGTERM.\n") == "stopped by SIGTERM."
    assert "exit code 1" in last_error(1, "")
