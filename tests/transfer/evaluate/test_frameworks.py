"""Test that detectors and segmentors are scored as their training scored them, to the last digit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cli import fails, run

from simmim_bench.pocket.write import PocketCounts, write_pocket

TINY = {
    "coco": "max_iters=2 warmup_iters=1 neck_channels=16 box_head_dim=16 post_nms_topk=8,4 score_threshold=0",
    "ade20k": "max_iters=2 warmup_iters=1 head_channels=16",
}
FRAMEWORK = {"coco": "detectron2", "ade20k": "mmseg"}
PREDICTIONS = {"coco": "coco_results.json", "ade20k": "confusion.npz"}
ARCH = {"coco": "vit_pocket", "ade20k": "swin_pocket"}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("frameworks") / "pocket"
    images = {"imagenet_train": 10, "imagenet_val": 10}
    counts = PocketCounts(coco_train=4, coco_val=3, ade20k_train=4, ade20k_val=3, **images)
    write_pocket(out, counts=counts)
    return out


def overrides(task: str) -> list[str]:
    return [word for text in (*TINY[task].split(), "batch_size=2") for word in ("-o", text)]


@pytest.fixture(scope="session", params=sorted(TINY))
def trained(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Return a task and a run of it."""
    task = request.param
    pytest.importorskip(FRAMEWORK[task])
    out = tmp_path_factory.mktemp("trained") / task
    code, _, err = run(
        *("transfer", task, "--ckpt", f"random:{ARCH[task]}", "--data", data / task),
        *("--out", out, "--quiet", "--seed", 2, *overrides(task)),
    )
    assert code == 0, err
    return task, out


def record_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "record.json").read_text())


def same_predictions(task: str, one: Path, other: Path) -> bool:
    paths = [out / "predictions" / PREDICTIONS[task] for out in (one, other)]
    if task == "coco":
        return paths[0].read_text() == paths[1].read_text()
    first, second = (np.load(path) for path in paths)
    return bool((first["entries"] == second["entries"]).all())


@pytest.mark.heavy
def test_a_run_gets_the_recorded_score_to_the_last_digit(
    trained: tuple[str, Path], data: Path, tmp_path: Path
) -> None:
    task, before = trained
    out = tmp_path / "evaluated"
    code, stdout, err = run(
        *("evaluate", task, "--ckpt", before, "--data", data / task, "--out", out, "--quiet")
    )
    assert code == 0, err
    recorded, record = record_of(before), record_of(out)
    assert record["metrics"] == recorded["metrics"]
    assert same_predictions(task, before, out)
    assert "training recorded" in stdout
    assert (record["recipe"], record["seed"]) == (recorded["recipe"], 2)
    assert record["data"] == recorded["data"]
    tables = tmp_path / "tables"
    assert run("leaderboard", "build", before, out, "--out", tables)[0] == 0
    code, _, err = run("leaderboard", "check", before, out, "--out", tables)
    assert code == 0, err
    _, shown, _ = run("leaderboard", "show", before, out, "--json")
    assert {row["group"] for row in json.loads(shown)["rows"]} == {"A"}
    assert (out / "predictions.png").is_file()


def save_framework_file(task: str, trained: Path, path: Path) -> None:
    """Write the run's model as Detectron2's or mmengine's checkpointer does."""
    training = torch.load(trained / "checkpoints/last/training.pt", weights_only=True)
    key = {"coco": "model", "ade20k": "state_dict"}[task]
    torch.save({key: training["model"], "iteration": 1}, path)


@pytest.mark.heavy
def test_a_frameworks_model_file_gets_the_same_score(
    trained: tuple[str, Path], data: Path, tmp_path: Path
) -> None:
    task, before = trained
    file = tmp_path / "model_final.pth"
    save_framework_file(task, before, file)
    out = tmp_path / "out"
    common = ("evaluate", task, "--ckpt", file, "--data", data / task, "--out", out, "--quiet")
    assert "add --backbone" in fails(2, *common)
    message = fails(4, *common, "--backbone", ARCH[task])
    assert f"is not the model of recipe {task}_pocket" in message
    assert "has other shapes of" in message
    assert not out.exists()
    named = ("--backbone", f"random:{ARCH[task]}", "--recipe", f"{task}_pocket")
    code, _, err = run(*common, *named, *overrides(task))
    assert code == 0, err
    record = record_of(out)
    assert record["recipe"] == record_of(before)["recipe"]
    assert record["metrics"] == record_of(before)["metrics"]
    assert same_predictions(task, before, out)
    assert record["checkpoint"]["label"] == "model_final"
    assert "train_fingerprint" not in record["data"]


@pytest.mark.heavy
def test_a_run_in_training_is_refused(
    trained: tuple[str, Path], data: Path, tmp_path: Path
) -> None:
    task, before = trained
    started = Path(shutil.copytree(before, tmp_path / "started"))
    file = started / "checkpoints/last/training.pt"
    training = torch.load(file, weights_only=True)
    training.get("progress", training)["iterations"] = 1
    torch.save(training, file)
    meta = json.loads((file.parent / "meta.json").read_text())
    del meta["training_sha256"]
    (file.parent / "meta.json").write_text(json.dumps(meta))
    message = fails(4, "evaluate", task, "--ckpt", started, "--data", data / task)
    assert "has trained 1 of 2 iterations; finish it" in message


def test_unusable_models_are_reported(
    trained: tuple[str, Path], data: Path, tmp_path: Path, few: Path
) -> None:
    task, before = trained
    out = ("--out", tmp_path / "out")
    other = {"coco": "ade20k", "ade20k": "coco"}[task]
    assert f"is a run of {task}, not of {other}" in fails(
        4, "evaluate", other, "--ckpt", before, "--data", data / other, *out
    )
    plain = tmp_path / "plain.pth"
    torch.save({"model": {"backbone.res2.conv.weight": torch.zeros(1)}}, plain)
    assert "no model with simmim-bench's backbone" in fails(
        4, "evaluate", task, "--ckpt", plain, "--data", data / task, *out
    )
    assert "which holds its model; remove --backbone" in fails(
        2, "evaluate", task, "--ckpt", before, "--data", data / task, *out, "--backbone", "vit_b"
    )
    assert str(few) in fails(4, "evaluate", task, "--ckpt", before, "--data", few, *out)
    assert not (tmp_path / "out").exists()
