"""A signal to the process group of a command, workers of data loaders included, ends it in order."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import free_port, start, two_processes

CKPT = "random:vit_pocket"
TRAINING = {  # what a command needs besides --data and --out; all of them save the step
    "pretrain": ("pretrain", "--arch", "vit_pocket", "-o", "epochs=2", "-o", "batch_size=10"),
    "imagenet": ("transfer", "imagenet", "--ckpt", CKPT, "-o", "epochs=2", "-o", "batch_size=10"),
    "coco": (
        *("transfer", "coco", "--ckpt", CKPT, "-o", "max_iters=8", "-o", "warmup_iters=1"),
        *("-o", "batch_size=2", "-o", "neck_channels=16", "-o", "box_head_dim=16"),
    ),
    "ade20k": (
        *("transfer", "ade20k", "--ckpt", CKPT, "-o", "max_iters=8", "-o", "warmup_iters=1"),
        *("-o", "batch_size=4", "-o", "head_channels=16"),
    ),
}
FOLDERS = {"coco": "coco", "ade20k": "ade20k"}
WORKERS = ("-o", "num_workers=2")


def processes(group: int) -> dict[int, str]:
    """Return the living processes of a group and their names; those of loaders are "pt_data_worker"."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = path.read_text().partition("(")[2].rpartition(")")
        except OSError:  # it has ended
            continue
        state, _, in_group = fields.split()[:3]
        if int(in_group) == group and state != "Z":
            found[int(path.parent.name)] = name
    return found


def has_workers(group: int) -> bool:
    return "pt_data_worker" in processes(group).values()


def stop(
    process: BaseProcess, out: Path, ready: Callable[[], bool], *numbers: signal.Signals
) -> str:
    """Send signals to the group once it is ready; return stderr after all of its processes have ended."""
    assert process.pid is not None
    wait_until(ready)
    until = time.monotonic() + 60
    for number in numbers if process.is_alive() else ():
        os.killpg(process.pid, number)
        time.sleep(0.02)
    process.join(60)
    said = (out / "stderr").read_text()
    while processes(process.pid):
        assert time.monotonic() < until, (processes(process.pid), said)
        time.sleep(0.05)
    for sign in ("Traceback", "DataLoader worker", "Exception"):
        assert sign not in said, said
    return said


def wait_until(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.002)


def assert_same_weights(run: Path, other: Path) -> None:
    found, wanted = (
        load_file(place / "checkpoints/last/model.safetensors") for place in (run, other)
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def command(name: str, data: Path, out: Path, *more: str) -> tuple[str, ...]:
    folder = data / FOLDERS.get(name, "imagenet")
    return (*TRAINING[name], "--data", str(folder), "--out", str(out), *WORKERS, *more)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("pretrain", signal.SIGTERM),
        pytest.param("pretrain", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("imagenet", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("coco", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("ade20k", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_group_saves_the_step_and_the_resumed_run_ends_the_same(
    tmp_path: Path, pocket: Path, name: str, number: signal.Signals
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    process = start(tmp_path, *command(name, pocket, run))
    group, log = process.pid or 0, run / "log.txt"

    def trains() -> bool:
        return (
            log.is_file()
            and any(w in log.read_text() for w in (" start arch", " training "))
            and has_workers(group)
        )

    # A launcher repeats the signal that its group got.
    said = stop(process, tmp_path, trains, number, number)
    assert process.exitcode == 128 + number, said
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert f"stopped by {number.name} after step" in error
    assert "--resume" in error
    for place, more in ((run, ["--resume"]), (whole, [])):
        process = start(tmp_path, *command(name, pocket, place, *more))
        process.join()
        assert process.exitcode == 0, (tmp_path / "stderr").read_text()
    assert_same_weights(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "imagenet", "coco", "ade20k"])
def test_two_processes_save_the_step_together(tmp_path: Path, pocket: Path, name: str) -> None:
    """Each gets the signal twice, in its group and from the launcher; they stop at a step with metrics."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    longer = ("-o", "max_iters=30") if name in FOLDERS else ("-o", "epochs=5")
    dist = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    places = [tmp_path / f"rank{rank}" for rank in range(2)]
    ranks = []
    for rank, place in enumerate(places):
        place.mkdir()
        variables = {**dist, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(start(place, *command(name, pocket, run, *longer), **variables))
    log = run / "log.txt"
    wait_until(
        lambda: (
            log.is_file()
            and (" start arch" in log.read_text() or " training " in log.read_text())
            and all(has_workers(process.pid or 0) for process in ranks)
        )
    )
    for _ in range(2):
        for process in ranks:
            os.killpg(process.pid or 0, signal.SIGTERM)
        time.sleep(0.1)
    for process, place in zip(ranks, places, strict=True):
        said = stop(process, place, lambda: True)
        assert process.exitcode == 143, said
        (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert "stopped by SIGTERM after step 10 of" in error
    two_processes(*command(name, pocket, run, *longer, "--resume"))
    two_processes(*command(name, pocket, whole, *longer))
    assert_same_weights(run, whole)


def arguments(name: str, data: Path, out: Path) -> tuple[str, ...]:
    """Return a command that saves no step, or that starts others which do."""
    imagenet, to = ("--data", str(data / "imagenet")), ("--out", str(out))
    sets = [word for task in ("imagenet", "coco", "ade20k") for word in (f"--{task}", data / task)]
    frozen = ("transfer", name, "--ckpt", CKPT, *imagenet, *to, *WORKERS)
    return {
        "linear": frozen,
        "knn": frozen,
        "fewshot": (*frozen, "--fraction", "10%"),
        "evaluate": ("evaluate", "imagenet", "--ckpt", f"{out}.ckpt", *imagenet, *to, *WORKERS),
        "suite": ("suite", "--ckpt", CKPT, *map(str, sets), *to),
        "visualize": (
            "visualize",
            "--ckpt",
            f"{out}.ckpt",
            "--images",
            imagenet[1],
            "--out",
            f"{out}.png",
        ),
        "demo": ("demo", *to),
    }[name]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "number", "delay"),
    [
        ("linear", signal.SIGTERM, None),
        pytest.param("evaluate", signal.SIGTERM, None, marks=pytest.mark.slow),
        pytest.param("knn", signal.SIGINT, None, marks=pytest.mark.slow),
        pytest.param("fewshot", signal.SIGUSR1, None, marks=pytest.mark.slow),
        *(
            pytest.param(name, number, delay, marks=pytest.mark.slow)
            for name in ("linear", "evaluate", "suite", "visualize", "demo")
            for number, delay in ((signal.SIGTERM, 0.3), (signal.SIGINT, 1.5), (signal.SIGTERM, 4))
        ),
    ],
)
def test_a_signal_ends_a_command_that_saves_no_step_with_one_line(
    tmp_path: Path, pocket: Path, name: str, number: signal.Signals, delay: float | None
) -> None:
    """Without a delay, the signal arrives as soon as loaders have workers."""
    if name in ("evaluate", "visualize"):
        trained = {"evaluate": "imagenet", "visualize": "pretrain"}[name]
        process = start(tmp_path, *command(trained, pocket, tmp_path / "run.ckpt"))
        process.join()
        assert process.exitcode == 0
    process = start(tmp_path, *arguments(name, pocket, tmp_path / "run"))
    group, started = process.pid or 0, time.monotonic()

    def ready() -> bool:
        if delay is None:
            return has_workers(group)
        return time.monotonic() - started > delay or not process.is_alive()

    said = stop(process, tmp_path, ready, number, number)
    expected = 128 + (signal.SIGTERM if number == signal.SIGUSR1 else number)
    assert process.exitcode in ((expected, 0) if delay else (expected,)), said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if process.exitcode:
        assert len(errors) == 1, said
        assert f"stopped by {number.name}" in errors[0]
