"""Test that a run that is distributed, stopped, killed or damaged ends with the same weights."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.commands import Ended, run_command, run_forked, start, two_processes, under_torchrun
from support.pretraining import pretrain_first_epoch, pretrain_pocket

from pretrain.recipes import POCKET, PretrainRecipe
from pretrain.run import build
from pretrain.train import TrainOptions, pretrain, restore
from simmim_bench.checkpoints.read import read_checkpoint, read_training_state
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.loader import EpochLoader, SeededDataset
from simmim_bench.data.normalise import normalise
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.random_crop import random_crop_flip
from simmim_bench.display import Display
from simmim_bench.distributed import init_distributed
from simmim_bench.errors import DataError, DivergedError, InterruptedRun, UsageError
from simmim_bench.launcher import read_launcher_env
from simmim_bench.overrides import override
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import RunDir, open_run
from simmim_bench.training.loop import raise_diverged

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
    options: TrainOptions | None = None,
    display: Display | None = None,
) -> Path:
    display = display or Display(quiet=True)
    with open_run(
        out, recipe=recipe, deviates={}, arguments={}, display=display, resume=resume
    ) as run:
        context = RunContext(run=run, seed=0, resume=resume)
        return pretrain(context, recipe=recipe, deviates={}, data=data, options=options)


def arguments_of(out: Path, data: Path, *more: str) -> list[str]:
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


@pytest.fixture(scope="module", autouse=True)
def few_held_out_images() -> Iterator[None]:
    """Evaluate two held-out images after an epoch: weights and losses of the training are compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.evaluation.held_out.HELD_OUT_IMAGES", 2)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pocket: Path) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes it is compared with
    run_pretrain(out, pocket / "imagenet")
    torch.set_num_threads(threads)
    return out


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("launch", "how"),
    [
        (two_processes, ()),
        pytest.param(under_torchrun, (), marks=pytest.mark.slow),
        pytest.param(two_processes, ("--shard",), marks=pytest.mark.slow),
    ],
    ids=["copies", "torchrun", "shards"],
)
def test_two_processes_train_as_one(
    tmp_path: Path,
    pocket: Path,
    undisturbed: Path,
    launch: Callable[..., Ended],
    how: tuple[str, ...],
) -> None:
    done = launch(*arguments_of(tmp_path / "two", pocket / "imagenet", *how))
    assert done.stdout.strip() == str(
        tmp_path / "two" / "checkpoints" / "last"
    )  # only rank 0 prints
    assert losses(tmp_path / "two") == pytest.approx(losses(undisturbed), rel=1e-5)
    # One process can resume what two saved: names, shapes and values are the same.
    saved, wanted = (
        read_training_state(out / "checkpoints" / "last")["optimizer"]
        for out in (tmp_path / "two", undisturbed)
    )
    assert saved["state"].keys() == wanted["state"].keys()
    for name, moments in saved["state"].items():
        torch.testing.assert_close(moments, wanted["state"][name], rtol=1e-2, atol=1e-5)
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, weights(undisturbed)[name], rtol=1e-3, atol=1e-4)


@pytest.mark.heavy
def test_accumulation_does_not_change_the_losses(
    tmp_path: Path, pocket: Path, undisturbed: Path
) -> None:
    run_pretrain(tmp_path / "run", pocket / "imagenet", options=TrainOptions(accumulate=4))
    assert losses(tmp_path / "run") == pytest.approx(losses(undisturbed), rel=1e-5)


def assert_equal(found: Any, wanted: Any) -> None:
    """Compare nested dictionaries and lists, their tensors bit by bit."""
    if isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    elif isinstance(wanted, Mapping):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_equal(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        for one, other in zip(found, wanted, strict=True):
            assert_equal(one, other)
    else:
        assert found == wanted


@pytest.mark.heavy
def test_a_float16_run_restores_its_state_bit_by_bit_and_ends_the_same(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A CPU takes seconds for the product whose rate metrics compare with.
    monkeypatch.setattr("simmim_bench.training.flops.CPU_SIDE", 64)
    size = ("batch_size=4", "img_size=16")  # 12 images: three steps an epoch
    choices = (*size, "precision=fp16")
    single, whole, out = (tmp_path / name for name in ("fp32", "whole", "run"))
    pretrain_pocket(single, few, *size, "precision=fp32")
    pretrain_pocket(whole, few, *choices)
    # Float16 has 11 bits; a gradient whose scale is wrong would change the losses more.
    assert losses(whole) == pytest.approx(losses(single), rel=2e-3)
    assert losses(whole) != losses(single)

    pretrain_first_epoch(out, few, *choices, monkeypatch=monkeypatch)
    saved = read_training_state(out / "checkpoints" / "last")
    assert saved["scaler"]["scale"] == 2**16
    assert saved["scaler"]["_growth_tracker"] == 3  # steps
    recipe = override(POCKET, ["epochs=2", "mask_patch_size=8", *choices])
    quiet = Display(quiet=True)
    with open_run(out, recipe=recipe, deviates={}, arguments={}, display=quiet, resume=True) as run:
        context = RunContext(run=run, seed=0, resume=True)
        checkpoint = context.last_checkpoint()
        built = build(context, recipe, few, None, TrainOptions(), checkpoint)
        restore(built, checkpoint)
        restored, training = built.state.state_dict(context.dist)
    assert_equal(restored, weights(out))
    assert_equal(training, saved)
    pretrain_pocket(out, few, *choices, resume=True)
    assert_same_weights(weights(out), weights(whole))
    warning = "pretrain: warning: precision=fp16 is slower than fp32 on a CPU"
    assert warning in (whole / "log.txt").read_text(encoding="utf-8")


@pytest.mark.heavy
@pytest.mark.parametrize(
    "stop", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda s: s.name
)
def test_a_signal_saves_the_step_and_the_resumed_run_ends_the_same(
    tmp_path: Path,
    pocket: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: signal.Signals,
) -> None:
    reads = 0
    read, start_epoch = SeededDataset.__getitem__, EpochLoader.epoch

    def raise_within_step_five(self: SeededDataset, index: int) -> Any:
        nonlocal reads
        reads += 1
        if reads == 4 * 16 + 3:
            signal.raise_signal(stop)
        return read(self, index)

    def count_from_first_epoch(self: EpochLoader, number: int, first_step: int = 0) -> Any:
        nonlocal reads
        if number == 0:
            reads = 0  # images are read before the training as well
        return start_epoch(self, number, first_step)

    monkeypatch.setattr(SeededDataset, "__getitem__", raise_within_step_five)
    monkeypatch.setattr(EpochLoader, "epoch", count_from_first_epoch)
    with pytest.raises(InterruptedRun, match=f"after step 5 of {STEPS}") as stopped:
        run_pretrain(tmp_path / "run", pocket / "imagenet")
    assert stopped.value.exit_code == (130 if stop == signal.SIGINT else 143)
    monkeypatch.undo()
    run_pretrain(tmp_path / "run", pocket / "imagenet", resume=True)
    assert_same_weights(weights(tmp_path / "run"), weights(undisturbed))
    assert losses(tmp_path / "run") == losses(undisturbed)


def killed_and_resumed(out: Path, data: Path, kills: int, seed: int) -> int:
    """Kill a run at random times and resume it each time; return how often it was killed while it trained."""
    generator = np.random.default_rng(seed)
    at_work = 0
    resumed = arguments_of(out, data, "--resume")
    for _ in range(kills):
        # Imports and reading data come first: the time is counted from the first file in the run directory.
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


@pytest.mark.heavy
def test_an_early_figure_changes_nothing(
    tmp_path: Path, pocket: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.checkpoints.EARLY_S", 0.0)
    run_pretrain(tmp_path / "run", pocket / "imagenet")
    assert_same_weights(weights(tmp_path / "run"), weights(undisturbed))
    said = (tmp_path / "run" / "log.txt").read_text()
    early = [line for line in said.splitlines() if "reconstructions.png after" in line]
    assert len(early) == 1
    assert 0 < float(early[0].split(" after ")[1].split()[0]) < 1


@pytest.mark.heavy
def test_a_killed_run_ends_the_same(tmp_path: Path, pocket: Path, undisturbed: Path) -> None:
    assert killed_and_resumed(tmp_path / "run", pocket / "imagenet", kills=2, seed=0)
    assert_same_weights(weights(tmp_path / "run"), weights(undisturbed))


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_the_same(
    tmp_path: Path, pocket: Path, undisturbed: Path
) -> None:
    assert killed_and_resumed(tmp_path / "run", pocket / "imagenet", kills=20, seed=1) >= 5
    assert_same_weights(weights(tmp_path / "run"), weights(undisturbed))


class Held:
    def __del__(self, abort: Callable[[], None] = os.abort) -> None:
        abort()  # as a thread does that needs the interpreter after its finalisation


def finalise(arguments: tuple[str, ...]) -> None:
    """Run the command line, and end the process as an interpreter ends that runs a script."""
    sys.modules["held"] = cast(ModuleType, SimpleNamespace(held=Held()))
    atexit.register(print, "cleaned up")
    code = 0
    try:
        run_command(arguments)
    except SystemExit as error:
        code = int(error.code or 0)
    ctypes.pythonapi.Py_Exit(code)  # which ends the interpreter, objects included


@pytest.mark.heavy
@pytest.mark.parametrize(("arguments", "code"), [(("--version",), 0), (("transfer", "foo"), 2)])
def test_one_of_several_processes_ends_with_its_exit_code(
    arguments: tuple[str, ...], code: int
) -> None:
    alone, several = (
        run_forked(partial(finalise, arguments), **variables)
        for variables in ({}, {"RANK": "1", "WORLD_SIZE": "2"})
    )
    assert alone.code == -signal.SIGABRT
    assert several.code == code
    assert several.stdout.endswith("cleaned up\n")
    assert several.stdout == alone.stdout


@pytest.mark.heavy
@pytest.mark.parametrize("file", ["model.safetensors", "training.pt", "meta.json"])
def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(
    tmp_path: Path, pocket: Path, undisturbed: Path, file: str
) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    damaged = out / "checkpoints" / "last" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content[: len(content) - 7])
    run_pretrain(out, pocket / "imagenet", resume=True)
    assert "restored the previous checkpoint" in (out / "log.txt").read_text()
    assert_same_weights(weights(out), weights(undisturbed))


@pytest.mark.heavy
def test_a_batch_with_nan_ends_the_run_and_is_written(
    tmp_path: Path,
    pocket: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[torch.Tensor] = []

    def poison_step_five(pixels: torch.Tensor, *rest: Any) -> torch.Tensor:
        batches.append(pixels)
        inputs = normalise(pixels, *rest)
        if len(batches) == 5:
            inputs[3, 0, 0, 0] = float("nan")
        return inputs

    monkeypatch.setattr("pretrain.run.normalise", poison_step_five)
    with pytest.raises(
        DivergedError, match=r"loss nan, .* at step 4; the last checkpoint is kept"
    ) as end:
        run_pretrain(tmp_path / "run", pocket / "imagenet")
    assert end.value.exit_code == 5
    batch = torch.load(tmp_path / "run" / "bad_batch_step4.pt", weights_only=True)
    assert torch.equal(batch[0], batches[4])
    monkeypatch.undo()
    assert read_checkpoint(str(tmp_path / "run")).provenance["epochs"] == 1
    run_pretrain(tmp_path / "run", pocket / "imagenet", resume=True)
    assert_same_weights(weights(tmp_path / "run"), weights(undisturbed))


def test_every_process_writes_its_part_of_a_bad_batch(tmp_path: Path) -> None:
    parts = [torch.full((2,), float(rank)) for rank in range(3)]
    for rank, part in enumerate(parts):
        run = RunDir(tmp_path, Display(quiet=True), writes=False)
        with pytest.raises(DivergedError, match="bad_batch_step7"):
            raise_diverged("train", run, [part], 7, torch.tensor(1.0), torch.tensor(1.0), rank)
    names = ("bad_batch_step7.pt", "bad_batch_step7_rank1.pt", "bad_batch_step7_rank2.pt")
    for name, part in zip(names, parts, strict=True):
        assert torch.equal(torch.load(tmp_path / name, weights_only=True)[0], part)


@pytest.mark.heavy
def test_a_failed_write_leaves_the_previous_checkpoint(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    run_pretrain(out, pocket / "imagenet", replace(RECIPE, epochs=1, warmup_epochs=0))
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
    """Mount a file system of 24 MiB: room for two of the run's checkpoints, not for three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.heavy
def test_a_full_disk_loses_no_checkpoint(small_disk: Path, pocket: Path, undisturbed: Path) -> None:
    out = small_disk / "run"
    with pytest.raises(DataError, match=r"cannot write .*No space left.*free some space"):
        run_pretrain(out, pocket / "imagenet")
    last = read_checkpoint(str(out))
    assert last.provenance["epochs"] >= 1
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    run_pretrain(out, pocket / "imagenet", resume=True)
    assert_same_weights(weights(out), weights(undisturbed))
    assert losses(out) == losses(undisturbed)


def loader_of(data: Path, **options: Any) -> EpochLoader:
    load = partial(random_crop_flip, img_size=(32, 32), crop_scale=(0.5, 1.0))
    dataset = ImageDataset(any_images(data), load)
    return EpochLoader(dataset, batch_size=16, seed=3, **{"num_workers": 0, **options})


def test_batches_depend_on_seed_and_epoch_alone(pocket: Path) -> None:
    whole = [batch[0] for batch in loader_of(pocket / "imagenet").epoch(2)]
    with_workers = [batch[0] for batch in loader_of(pocket / "imagenet", num_workers=2).epoch(2)]
    later = [batch[0] for batch in loader_of(pocket / "imagenet").epoch(2, first_step=1)]
    assert all(map(torch.equal, whole, with_workers))
    assert all(map(torch.equal, whole[1:], later))
    assert len(later) == len(whole) - 1
    other = next(iter(loader_of(pocket / "imagenet").epoch(3)))[0]
    assert not torch.equal(other, whole[0])


def test_processes_split_a_batch_without_overlap(pocket: Path) -> None:
    whole = next(iter(loader_of(pocket / "imagenet").epoch(0)))[2]
    parts = [
        next(iter(loader_of(pocket / "imagenet", rank=rank, world_size=2).epoch(0)))[2]
        for rank in range(2)
    ]
    assert sorted(torch.cat(parts).tolist()) == sorted(whole.tolist())
    with pytest.raises(
        UsageError, match=r"not a multiple of the 3 processes; use -o batch_size=15"
    ):
        loader_of(pocket / "imagenet", world_size=3)


@pytest.mark.parametrize(
    ("environment", "expected"),
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
        # A batch script without srun is one process, however many tasks the job has.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, (0, 1, 0)),
    ],
)
def test_rank_and_size_come_from_the_launcher(
    environment: dict[str, str], expected: tuple[int, int, int]
) -> None:
    assert read_launcher_env(environment) == expected


@pytest.mark.parametrize(("seen", "wanted"), [(8, 5), (1, 0), (4, 1)])
def test_a_process_uses_a_visible_gpu_and_waits_for_hours(
    monkeypatch: pytest.MonkeyPatch, seen: int, wanted: int
) -> None:
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "5"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    calls: list[Any] = []
    groups: list[Any] = []
    monkeypatch.setattr(torch.distributed, "new_group", lambda **options: groups.append(options))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda *_, **options: calls.append(options)
    )
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with init_distributed() as joined:
        assert joined.device == calls[0] == torch.device("cuda", wanted)
    # NCCL connects to this process's GPU at once, instead of guessing it from the rank.
    assert calls[1]["device_id"] == torch.device("cuda", wanted)
    # A step's collectives end soon where a process hangs; waiting for rank 0 may take long.
    assert timedelta(minutes=5) <= calls[1]["timeout"] <= timedelta(minutes=30)
    assert groups[0]["backend"] == "gloo"
    assert groups[0]["timeout"] >= timedelta(hours=12)


def test_contradicting_launcher_variables_are_refused() -> None:
    with pytest.raises(UsageError, match="RANK 4 is not below WORLD_SIZE 4"):
        read_launcher_env({"RANK": "4", "WORLD_SIZE": "4"})
