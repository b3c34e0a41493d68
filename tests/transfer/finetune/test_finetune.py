"""Claims about fine-tuning, and about classification transfers by several processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from support.commands import two_processes

from simmim_bench.cli.main import cli
from simmim_bench.errors import DataError
from transfer.finetune import run as classification


def record_and_logits(out: Path) -> tuple[dict, np.ndarray]:
    record = json.loads((out / "record.json").read_text())
    with np.load(out / record["predictions"]["file"]) as stored:
        by_class = np.zeros(stored["logits"].shape, np.float32)
        np.put_along_axis(by_class, stored["ranked"].astype(int), stored["logits"], axis=1)
        return record, by_class


# 60 training and 30 validation images: seven a batch and two processes divide neither.
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
def test_two_processes_score_every_image_once_as_one_does(
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
    assert two["metrics"] == one["metrics"]
    assert np.allclose(same, logits, rtol=1e-3, atol=1e-3)


def finetune(out: Path, data: Path, *more: str) -> Result:
    arguments = ["transfer", "imagenet", "--ckpt", "random:vit_pocket", "--data", str(data)]
    arguments += ["-o", "epochs=1", "-o", "batch_size=10", "-o", "warmup_epochs=0"]
    return CliRunner().invoke(cli, [*arguments, "--out", str(out), "--quiet", *more])


def test_the_scored_weights_are_the_moving_average(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[torch.Tensor] = []
    fit = classification.fit

    def watched(**arguments: Any) -> None:
        update, model = arguments["after_step"], arguments["model"]
        weights.append(model.head.weight.detach().clone())

        def after_step(step: int) -> None:
            weights.append(model.head.weight.detach().clone())
            update(step)

        fit(**{**arguments, "after_step": after_step})

    monkeypatch.setattr(classification, "fit", watched)
    done = finetune(tmp_path / "run", pocket / "imagenet", "-o", "ema_decay=0.5")
    assert done.exception is None
    average = weights[0]
    for step, current in enumerate(weights[1:], start=1):
        # timm: the first step is taken over whole, then 1 - step ** -(2/3) up to the limit.
        decay = 0.0 if step == 1 else min(0.5, 1 - step ** (-2 / 3))
        average = decay * average + (1 - decay) * current
    assert len(weights) == 7
    kept = load_file(tmp_path / "run" / "checkpoints" / "last" / "model.safetensors")
    torch.testing.assert_close(kept["head.weight"], average)
    assert not torch.allclose(kept["head.weight"], weights[-1])


def test_parts_and_small_evaluation_batches_change_no_score(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request: list[int] = []
    fit, forward_batches = classification.fit, classification.forward_batches

    def watched(*arguments: Any, **named: Any) -> Any:
        request.append(named["batch_size"])
        return forward_batches(*arguments, **named)

    whole = finetune(tmp_path / "whole", pocket / "imagenet")
    assert whole.exception is None
    monkeypatch.setattr(classification, "EVALUATED_AT_ONCE", 7)
    monkeypatch.setattr(classification, "forward_batches", watched)
    # As on a GPU that has room for less than half a batch.
    monkeypatch.setattr(classification, "fit", lambda **how: fit(**{**how, "accumulate": 3}))
    parts = finetune(tmp_path / "parts", pocket / "imagenet")
    assert parts.exception is None
    assert request == [7]
    (one, logits), (other, same) = (record_and_logits(tmp_path / x) for x in ("whole", "parts"))
    assert one["metrics"] == other["metrics"]
    assert np.allclose(same, logits, rtol=1e-2, atol=1e-2)
    log = (tmp_path / "whole" / "log.txt").read_text()
    assert "60 images, 1 epochs of 6 steps, batch 10, learning rate" in log


def test_a_head_for_other_classes_is_not_resumed(tmp_path: Path, pocket: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pocket / "imagenet", data)
    assert finetune(tmp_path / "run", data).exception is None
    shutil.rmtree(tmp_path / "run" / "predictions")
    (tmp_path / "run" / "record.json").unlink()
    gone = sorted((data / "train").iterdir())[0].name
    for split in ("train", "val"):
        shutil.rmtree(data / split / gone)
    refused = finetune(tmp_path / "run", data, "--resume")
    assert isinstance(refused.exception, DataError)
    assert "start anew with another --out" in str(refused.exception)
    assert not (tmp_path / "run" / "predictions").exists()


@pytest.mark.parametrize("task", ["imagenet", "linear", "knn", "fewshot"])
@pytest.mark.parametrize("how", ["no folder", "empty folder"])
def test_a_class_that_is_missing_in_val_is_named(
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
