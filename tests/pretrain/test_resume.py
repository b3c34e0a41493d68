"""Claims that a pretraining run can be shared, stopped, killed and damaged, and ends the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.commands import Ended, start, two_processes, under_torchrun

from pretrain.recipes import POCKET, PretrainRecipe
from pretrain.train import Execution, pretrain
from simmim_bench import distributed as dist
from simmim_bench.checkpoints.read import read_checkpoint, read_training_state
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.decode import random_crop_flip
from simmim_bench.data.loader import EpochLoader, Seeded
from simmim_bench.data.sources import any_images
from simmim_bench.display import Display
from simmim_bench.distributed import read_launcher_env
from simmim_bench.errors import DataError, DivergedError, InterruptedRun, UsageError
from simmim_bench.runs.run_dir import RunDir, open_run
from simmim_bench.training.loop import _refuse_step, fit

RECIPE = replace(
    POCKET, epochs=3, batch_size=16, precision="fp32"
)  # 60 images: three steps an epoch
STEPS = 9
ARGUMENTS = ("-o", "epochs=3", "-o", "batch_size=16", "-o", "precision=fp32", "--quiet")


def run_pretrain(
    out: Path,
    data: Path,
    recipe: PretrainRecipe = RECIPE,
    *,
    resume: bool = False,
    execution: Execution | None = None,
) -> Path:
    display = Display(quiet=True)
    with open_run(
        out, recipe=recipe, deviates={}, arguments={}, display=display, resume=resume
    ) as run:
        return pretrain(
            recipe=recipe,
            deviates={},
            data=data,
            run=run,
            seed=0,
            resume=resume,
            execution=execution,
        )


def words(out: Path, data: Path, *more: str) -> list[str]:
    arguments = ("pretrain", "--arch", "vit_pocket", "--data", str(data), "--out", str(out))
    return [*arguments, *ARGUMENTS, *more]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / "last" / "model.safetensors")


def losses(out: Path) -> list[float]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    figures = [json.loads(line) for line in lines]
    return [line["loss"] for line in figures if "loss" in line]


def assert_same_weights(
    found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert torch.equal(value, wanted[name]), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pocket: Path) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes it is compared with
    run_pretrain(out, pocket / "imagenet")
    torch.set_num_threads(threads)
    return out


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("launch", "how"),
    [(under_torchrun, ()), (two_processes, ("--shard",))],
    ids=["copies", "shards"],
)
def test_two_processes_train_as_one(
    tmp_path: Path,
    pocket: Path,
    undisturbed: Path,
    one_thread: None,
    launch: Callable[..., Ended],
    how: tuple[str, ...],
) -> None:
    done = launch(*words(tmp_path / "two", pocket / "imagenet", *how))
    assert done.stdout.strip() == str(
        tmp_path / "two" / "checkpoints" / "last"
    )  # one of them speaks
    assert losses(tmp_path / "two") == pytest.approx(losses(undisturbed), rel=1e-5)
    # What two processes save, one can go on from: the same names, shapes and values.
    saved, wanted = (
        read_training_state(out / "checkpoints" / "last")["optimizer"]
        for out in (tmp_path / "two", undisturbed)
    )
    assert saved["state"].keys() == wanted["state"].keys()
    for name, moments in saved["state"].items():
        torch.testing.assert_close(moments, wanted["state"][name], rtol=1e-2, atol=1e-5)
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, weights(undisturbed)[name], rtol=1e-3, atol=1e-4)


def test_accumulating_parts_trains_as_the_whole(
    tmp_path: Path, pocket: Path, undisturbed: Path, one_thread: None
) -> None:
    run_pretrain(tmp_path / "parts", pocket / "imagenet", execution=Execution(accumulate=4))
    assert losses(tmp_path / "parts") == pytest.approx(losses(undisturbed), rel=1e-5)


@pytest.mark.parametrize(
    "stop", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda s: s.name
)
def test_a_signal_saves_the_step_and_the_run_ends_the_same(
    tmp_path: Path,
    pocket: Path,
    undisturbed: Path,
    one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
    stop: signal.Signals,
) -> None:
    request = 0
    read = Seeded.__getitem__

    def raise_within_step_five(self: Seeded, index: int) -> Any:
        nonlocal request
        request += 1
        if request == 4 * 16 + 3:
            signal.raise_signal(stop)
        return read(self, index)

    def begin(**arguments: Any) -> None:
        nonlocal request
        request = 0  # some images have been looked at before
        fit(**arguments)

    monkeypatch.setattr(Seeded, "__getitem__", raise_within_step_five)
    monkeypatch.setattr("pretrain.train.fit", begin)
    with pytest.raises(InterruptedRun, match=f"after step 5 of {STEPS}") as stopped:
        run_pretrain(tmp_path / "run", pocket / "imagenet")
    assert stopped.value.exit_code == (130 if stop == signal.SIGINT else 143)
    monkeypatch.undo()
    run_pretrain(tmp_path / "run", pocket / "imagenet", resume=True)
    assert_same_weights(weights(tmp_path / "run"), weights(undisturbed))
    assert losses(tmp_path / "run") == losses(undisturbed)


def killed_and_resumed(out: Path, data: Path, kills: int, seed: int) -> int:
    """Kill a run at random moments and let it go on each time; give how often it was killed at work."""
    generator = np.random.default_rng(seed)
    at_work = 0
    resumed = words(out, data, "--resume")
    for _ in range(kills):
        # Most of what precedes the work reads data: the clock runs from the run directory's first sign of life.
        sign = out / "env.json"
        before = sign.stat().st_mtime_ns if sign.exists() else 0
        process = start(out.parent, *resumed)
        waited = time.monotonic()
        while process.is_alive() and time.monotonic() - waited < 60:
            if sign.exists() and sign.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(float(generator.uniform(0, 1.5)))
        at_work += process.is_alive()
        process.kill()
        process.join()
    last = start(out.parent, *resumed)
    last.join()
    assert last.exitcode == 0, (out.parent / "stderr").read_text()[-2000:]
    return at_work


def test_a_killed_run_ends_the_same(tmp_path: Path, pocket: Path, undisturbed: Path) -> None:
    assert killed_and_resumed(tmp_path / "run", pocket / "imagenet", kills=2, seed=0)
    assert_same_weights(weights(tmp_path / "run"), weights(undisturbed))


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_the_same(
    tmp_path: Path, pocket: Path, undisturbed: Path
) -> None:
    assert killed_and_resumed(tmp_path / "run", pocket / "imagenet", kills=20, seed=1) >= 5
    assert_same_weights(weights(tmp_path / "run"), weights(undisturbed))


ENDING = """
import atexit, os, sys
import simmim_bench.distributed
from simmim_bench.cli.main import main

class Held:
    def __del__(self, abort=os.abort):
        abort()  # as a thread does that needs Python when Python is gone

held = Held()
atexit.register(print, "tidied")
sys.argv = ["simmim-bench", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--version"], 0), pytest.param(["transfer", "foo"], 2, marks=pytest.mark.slow)],
)
def test_one_of_several_ends_with_its_code_whatever_still_holds_what(
    arguments: list[str], code: int
) -> None:
    alone, several = (
        subprocess.run(
            [sys.executable, "-c", ENDING, *arguments],
            env={**os.environ, **place},
            capture_output=True,
            text=True,
            check=False,
        )
        for place in ({}, {"RANK": "1", "WORLD_SIZE": "2"})
    )
    assert alone.returncode == -signal.SIGABRT
    assert several.returncode == code
    assert several.stdout.endswith("tidied\n")
    assert several.stdout == alone.stdout


@pytest.mark.parametrize("file", ["model.safetensors", "training.pt", "meta.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, pocket: Path, undisturbed: Path, one_thread: None, file: str
) -> None:
    out = tmp_path / "run"
    run_pretrain(out, pocket / "imagenet")
    damaged = out / "checkpoints" / "last" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content[: len(content) - 7])
    run_pretrain(out, pocket / "imagenet", resume=True)
    assert "restored the previous checkpoint" in (out / "log.txt").read_text()
    assert_same_weights(weights(out), weights(undisturbed))


def test_a_poisoned_batch_ends_the_run_and_is_kept(
    tmp_path: Path,
    pocket: Path,
    undisturbed: Path,
    one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pretrain.train as module

    normalise, batches = module.normalise, []

    def poison_step_five(pixels: torch.Tensor, *rest: Any) -> torch.Tensor:
        batches.append(pixels)
        inputs = normalise(pixels, *rest)
        if len(batches) == 5:
            inputs[3, 0, 0, 0] = float("nan")
        return inputs

    monkeypatch.setattr(module, "normalise", poison_step_five)
    with pytest.raises(
        DivergedError, match=r"loss nan, .* at step 4; the last checkpoint stays"
    ) as end:
        run_pretrain(tmp_path / "run", pocket / "imagenet")
    assert end.value.exit_code == 5
    batch = torch.load(tmp_path / "run" / "bad_batch_step4.pt", weights_only=True)
    assert torch.equal(batch[0], batches[4])
    monkeypatch.undo()
    assert read_checkpoint(str(tmp_path / "run")).provenance["epochs"] == 1
    run_pretrain(tmp_path / "run", pocket / "imagenet", resume=True)
    assert_same_weights(weights(tmp_path / "run"), weights(undisturbed))


def test_every_process_keeps_its_own_share_of_a_bad_batch(tmp_path: Path) -> None:
    shares = [torch.full((2,), float(rank)) for rank in range(3)]
    for rank, share in enumerate(shares):
        run = RunDir(tmp_path, Display(quiet=True), writes=False)
        with pytest.raises(DivergedError, match="bad_batch_step7"):
            _refuse_step("train", run, [share], 7, torch.tensor(1.0), torch.tensor(1.0), rank)
    names = ("bad_batch_step7.pt", "bad_batch_step7_rank1.pt", "bad_batch_step7_rank2.pt")
    for name, share in zip(names, shares, strict=True):
        assert torch.equal(torch.load(tmp_path / name, weights_only=True)[0], share)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    run_pretrain(out, pocket / "imagenet", replace(RECIPE, epochs=1))
    before = weights(out)
    import simmim_bench.checkpoints.checkpoint as module

    def disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", disk_full)
    with pytest.raises(DataError, match=r"cannot write checkpoint .*No space left"):
        module.write_checkpoint(
            out / "checkpoints" / "last",
            state={},
            spec=read_checkpoint(str(out)).spec,
            form="pretrain",
            mean=(0,) * 3,
            std=(1,) * 3,
            provenance={"label": "x"},
        )
    assert_same_weights(weights(out), before)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["best", "last", "previous"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB: room for two of the run's checkpoints, not for a third."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_loses_nothing(
    small_disk: Path, pocket: Path, undisturbed: Path, one_thread: None
) -> None:
    out = small_disk / "run"
    with pytest.raises(DataError, match=r"cannot write .*No space left.*free some space"):
        run_pretrain(out, pocket / "imagenet")
    last = read_checkpoint(str(out))
    assert last.provenance["epochs"] >= 1
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    run_pretrain(out, pocket / "imagenet", resume=True)
    assert_same_weights(weights(out), weights(undisturbed))
    assert losses(out) == losses(undisturbed)


def loader_of(data: Path, **options: int) -> EpochLoader:
    load = partial(random_crop_flip, img_size=(32, 32), crop_scale=(0.5, 1.0))
    dataset = ImageDataset(any_images(data), load)
    return EpochLoader(dataset, batch_size=16, seed=3, **{"num_workers": 0, **options})


def test_batches_follow_from_seed_and_epoch_alone(pocket: Path) -> None:
    whole = [batch[0] for batch in loader_of(pocket / "imagenet").epoch(2)]
    with_workers = [batch[0] for batch in loader_of(pocket / "imagenet", num_workers=2).epoch(2)]
    later = [batch[0] for batch in loader_of(pocket / "imagenet").epoch(2, first_step=1)]
    assert all(map(torch.equal, whole, with_workers))
    assert all(map(torch.equal, whole[1:], later))
    assert len(later) == len(whole) - 1
    other = next(iter(loader_of(pocket / "imagenet").epoch(3)))[0]
    assert not torch.equal(other, whole[0])


def test_processes_share_a_batch_without_overlap(pocket: Path) -> None:
    whole = next(iter(loader_of(pocket / "imagenet").epoch(0)))[2]
    parts = [
        next(iter(loader_of(pocket / "imagenet", rank=rank, world_size=2).epoch(0)))[2]
        for rank in range(2)
    ]
    assert sorted(torch.cat(parts).tolist()) == sorted(whole.tolist())
    with pytest.raises(UsageError, match=r"cannot be shared by 3 processes; use -o batch_size=15"):
        loader_of(pocket / "imagenet", world_size=3)


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
        (
            {
                "SLURM_STEP_ID": "0",
                "SLURM_PROCID": "5",
                "SLURM_NTASKS": "16",
                "SLURM_LOCALID": "5",
            },
            (5, 16, 5),
        ),
        # A batch script without srun is one process, whatever the job asked for.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, (0, 1, 0)),
    ],
)
def test_the_place_in_the_team_is_the_launchers(
    environment: dict[str, str], place: tuple[int, int, int]
) -> None:
    assert read_launcher_env(environment) == place


@pytest.mark.parametrize(("seen", "wanted"), [(8, 5), (1, 0), (4, 1)])
def test_a_process_takes_a_gpu_that_it_sees_and_waits_for_hours(
    monkeypatch: pytest.MonkeyPatch, seen: int, wanted: int
) -> None:
    place = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "5"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    request: list[Any] = []
    monkeypatch.setattr(dist.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dist.torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(dist.torch.cuda, "set_device", request.append)
    monkeypatch.setattr(
        dist.torch_dist, "init_process_group", lambda *_, **how: request.append(how)
    )
    monkeypatch.setattr(dist.torch_dist, "destroy_process_group", lambda: None)
    with dist.init_distributed() as joined:
        assert joined.device == request[0] == torch.device("cuda", wanted)
    assert request[1]["timeout"] >= timedelta(hours=12)


def test_contradicting_launchers_are_refused() -> None:
    with pytest.raises(UsageError, match="RANK 4 is not below WORLD_SIZE 4"):
        read_launcher_env({"RANK": "4", "WORLD_SIZE": "4"})
