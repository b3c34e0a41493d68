"""Test fine-tuning, and classification transfers by several processes."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from support.commands import two_processes
from timm.utils import ModelEmaV3
from torch import nn

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.cli.main import cli
from simmim_bench.data.class_splits import class_folders
from simmim_bench.display import Display
from simmim_bench.distributed import load_full_state
from simmim_bench.errors import DataError
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run
from transfer.finetune.recipes import IMAGENET_POCKET
from transfer.finetune.run import evaluate
from transfer.finetune.train import finetune
from transfer.job import TransferJob


def record_and_logits(out: Path) -> tuple[dict[str, Any], np.ndarray]:
    record = json.loads((out / "record.json").read_text())
    with np.load(out / record["predictions"]["file"]) as stored:
        by_class = np.zeros(stored["logits"].shape, np.float32)
        np.put_along_axis(by_class, stored["ranked"].astype(int), stored["logits"], axis=1)
        return record, by_class


# Of 60 training and 30 validation images: neither batches of 7 nor two processes divide them.
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("knn", ["-o", "forward_batch_size=7"]),
        ("linear", ["-o", "forward_batch_size=7", "-o", "epochs=5"]),
        pytest.param(
            *("linear", ["-o", "epochs=2", "-o", "crops=2", "-o", "blocks=2,3"]),
            marks=pytest.mark.slow,
        ),
        ("imagenet", ["-o", "batch_size=14", "-o", "epochs=1", "-o", "warmup_epochs=0"]),
    ],
)
def test_two_processes_score_every_image_once(
    tmp_path: Path, pocket: Path, task: str, more: list[str]
) -> None:
    arguments = [
        "transfer",
        task,
        "--ckpt",
        "random:vit_pocket",
        "--data",
        str(pocket / "imagenet"),
    ]
    arguments += [*more, "--quiet", "--out"]
    assert CliRunner().invoke(cli, [*arguments, str(tmp_path / "one")]).exception is None
    two_processes(*arguments, str(tmp_path / "two"))
    (one, logits), (two, same) = (record_and_logits(tmp_path / x) for x in ("one", "two"))
    assert two["evaluated"] == two["expected"] == one["evaluated"] == 30
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
    assert np.allclose(same, logits, rtol=1e-3, atol=1e-3)


def finetune_by_cli(out: Path, data: Path, *more: str) -> Result:
    arguments = ["transfer", "imagenet", "--ckpt", "random:vit_pocket", "--data", str(data)]
    arguments += ["-o", "epochs=1", "-o", "batch_size=10", "-o", "warmup_epochs=0"]
    return CliRunner().invoke(cli, [*arguments, "--out", str(out), "--quiet", *more])


@pytest.mark.heavy
def test_the_scored_weights_are_the_moving_average(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[torch.Tensor] = []
    update = ModelEmaV3.update

    def record(self: ModelEmaV3, model: nn.Module, step: int) -> None:
        if not weights:
            weights.append(self.module.state_dict()["head.weight"].clone())  # before the first step
        weights.append(model.state_dict()["head.weight"].clone())
        update(self, model, step)

    monkeypatch.setattr(ModelEmaV3, "update", record)
    done = finetune_by_cli(tmp_path / "run", pocket / "imagenet", "-o", "ema_decay=0.5")
    assert done.exception is None
    average = weights[0]
    for step, current in enumerate(weights[1:], start=1):
        # timm copies the weights of the first step; then the decay is 1 - step ** -(2/3), limited to 0.5.
        decay = 0.0 if step == 1 else min(0.5, 1 - step ** (-2 / 3))
        average = decay * average + (1 - decay) * current
    assert len(weights) == 7
    saved = load_file(tmp_path / "run" / "checkpoints" / "last" / "model.safetensors")
    torch.testing.assert_close(saved["head.weight"], average)
    assert not torch.allclose(saved["head.weight"], weights[-1])


def logits_of(
    out: Path, data: Path, *, accumulation_steps: int, batch_size: int
) -> tuple[np.ndarray, list[int]]:
    """Fine-tune for an epoch and return the logits of the validation images and their labels."""
    recipe = replace(IMAGENET_POCKET, epochs=1, batch_size=10, warmup_epochs=0)
    job = TransferJob(
        task="imagenet",
        checkpoint=read_checkpoint("random:vit_pocket"),
        data=data,
        recipe=recipe,
        deviates={},
    )
    train, val = class_folders(data, "train"), class_folders(data, "val")
    with open_run(
        out, recipe=recipe, deviates={}, arguments={}, display=Display(quiet=True)
    ) as run:
        context = RunContext(run=run, seed=0)
        model = finetune(context, job, train, accumulation_steps=accumulation_steps)
        return evaluate(context, job, model, val, batch_size=batch_size), list(val.labels)


@pytest.mark.heavy
def test_accumulation_and_evaluation_batches_do_not_change_the_score(
    tmp_path: Path, pocket: Path
) -> None:
    data = pocket / "imagenet"
    one, labels = logits_of(tmp_path / "one", data, accumulation_steps=1, batch_size=256)
    three, _ = logits_of(tmp_path / "three", data, accumulation_steps=3, batch_size=7)
    assert np.allclose(three, one, rtol=1e-2, atol=1e-2)
    top1 = [(logits.argmax(axis=1) == labels).sum() for logits in (one, three)]
    assert top1[0] == top1[1]
    log = (tmp_path / "one" / "log.txt").read_text()
    assert "images=60 epochs=1 steps_per_epoch=6 batch_size=10 lr=" in log


def test_a_checkpoint_with_indexed_optimizer_state_is_resumed() -> None:
    """Fine-tuning wrote the optimizer's state by parameter index until version 0.1."""

    def trained(steps: int) -> tuple[nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        groups: list[dict[str, Any]] = [
            {"params": [model.weight]},
            {"params": [model.bias], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.1)
        for _ in range(steps):
            step(model, optimizer)
        return model, optimizer

    def step(model: nn.Linear, optimizer: torch.optim.AdamW) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    saved_model, saved = trained(2)
    model, optimizer = trained(0)
    load_full_state(model, optimizer, saved_model.state_dict(), copy.deepcopy(saved.state_dict()))
    step(model, optimizer)
    step(saved_model, saved)
    assert torch.equal(model.weight, saved_model.weight)
    assert torch.equal(model.bias, saved_model.bias)


def test_a_head_for_other_classes_is_not_resumed(tmp_path: Path, pocket: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pocket / "imagenet", data)
    assert finetune_by_cli(tmp_path / "run", data).exception is None
    shutil.rmtree(tmp_path / "run" / "predictions")
    (tmp_path / "run" / "record.json").unlink()
    gone = sorted((data / "train").iterdir())[0].name
    for split in ("train", "val"):
        shutil.rmtree(data / split / gone)
    refused = finetune_by_cli(tmp_path / "run", data, "--resume")
    assert isinstance(refused.exception, DataError)
    assert "start anew with another --out" in str(refused.exception)
    assert not (tmp_path / "run" / "predictions").exists()


@pytest.mark.parametrize("task", ["imagenet", "linear", "knn", "fewshot"])
@pytest.mark.parametrize("how", ["no folder", "empty folder"])
def test_a_class_missing_from_val_is_named(
    tmp_path: Path, pocket: Path, task: str, how: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(pocket / "imagenet", data)
    gone = sorted((data / "val").iterdir())[2]
    shutil.rmtree(gone)
    if how == "empty folder":
        gone.mkdir()
    arguments = ["transfer", task, "--ckpt", "random:vit_pocket", "--data", str(data), "--quiet"]
    done = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "run")])
    assert isinstance(done.exception, DataError)
    assert gone.name in str(done.exception)
    assert not list(tmp_path.glob("run/predictions/*"))
