"""Tests of the training data stream and of detector training: resuming, divergence, missing Detectron2."""

from __future__ import annotations

import importlib
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_training_state
from simmim_bench.errors import DataError, DivergedError, InterruptedRun, MissingFrameworkError
from simmim_bench.results.record import Record
from transfer.detection.coco_layout import read_splits
from transfer.detection.optimizer import load_optimizer_state
from transfer.detection.run import resumed_steps

pytest.importorskip("detectron2")
from support.detection import ARCHS, RECIPE, annotations_of, batches, change, read_quietly, run
from support.interrupt import InterruptingDisplay

from transfer.detection.model import build_detector


def test_every_object_is_trained_on_once_per_epoch_and_crowds_never(coco: Path) -> None:
    train, _ = read_splits(coco, "refuse")
    truth = read_quietly(annotations_of(coco))
    objects = [a for a in truth.dataset["annotations"] if not a["iscrowd"]]
    with_objects = {a["image_id"] for a in objects}
    recipe = replace(RECIPE, scale_range=(1.0, 1.0), batch_size=1, max_iters=len(with_objects))
    images = [image for batch in batches(train, recipe, 0, 0) for image in batch]
    assert sorted(image["image_id"] for image in images) == sorted(with_objects)
    trained_on = sorted(
        (image["image_id"], train.category_ids[c])
        for image in images
        for c in image["instances"].gt_classes.tolist()
    )
    assert trained_on == sorted((a["image_id"], a["category_id"]) for a in objects)
    assert any(a["iscrowd"] for a in truth.dataset["annotations"])
    assert len(with_objects) < len(truth.dataset["images"])


def test_the_batch_of_an_iteration_depends_on_neither_start_nor_workers(coco: Path) -> None:
    train, _ = read_splits(coco, "refuse")
    whole = list(batches(train, RECIPE, 7, 0))
    rest = list(batches(train, replace(RECIPE, num_workers=2), 7, 1))
    assert len(whole) == RECIPE.max_iters
    for expected, found in zip(whole[1:], rest, strict=True):
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
            assert torch.equal(a["instances"].gt_masks.tensor, b["instances"].gt_masks.tensor)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_error_of_a_truncated_image_is_one_line_with_its_path(
    num_workers: int, own_coco: Path
) -> None:
    for path in (own_coco / "train2017").iterdir():
        path.write_bytes(path.read_bytes()[:700])
    train, _ = read_splits(own_coco, "refuse")
    with pytest.raises(DataError, match=r"^image .*/train2017/\d+.jpg.* cannot be read") as caught:
        next(iter(batches(train, replace(RECIPE, num_workers=num_workers), 0, 0)))
    assert "\n" not in str(caught.value)


def test_an_image_of_another_size_than_annotated_is_refused(own_coco: Path) -> None:
    train, _ = read_splits(own_coco, "refuse")
    for path in (own_coco / "train2017").iterdir():
        Image.new("RGB", (99, 64)).save(path)
    with pytest.raises(
        DataError, match="is 99 x 64 pixels, but its entry in the annotations is 64 x"
    ):
        next(iter(batches(train, RECIPE, 0, 0)))


@pytest.mark.heavy
def test_a_resumed_run_ends_with_the_results_of_an_uninterrupted_one(
    finished: tuple[Path, Record], coco: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uninterrupted, record = finished
    with pytest.raises(InterruptedRun, match="SIGTERM after step 2 of 4, which is saved") as caught:
        run(tmp_path / "run", coco, display=InterruptingDisplay("coco", 2))
    assert caught.value.exit_code == 128 + signal.SIGTERM
    resumed = run(tmp_path / "run", coco, resume=True)
    predictions = [
        directory / "predictions" / "coco_results.json"
        for directory in (uninterrupted, tmp_path / "run")
    ]
    assert predictions[0].read_bytes() == predictions[1].read_bytes()
    assert resumed.metrics == record.metrics
    assert resumed.details == record.details
    assert resumed.details["iterations"] == 4
    assert capfd.readouterr() == ("", "")


def test_a_finished_run_is_a_checkpoint_of_the_fine_tuned_backbone(
    finished: tuple[Path, Record],
) -> None:
    report: Any = load_backbone(str(finished[0])).load_report
    assert (report.missing, report.unused, report.resized) == ([], [], [])


@pytest.mark.heavy
def test_data_without_masks_is_trained_and_scored_on_boxes_only(
    own_coco: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        change(
            annotations_of(own_coco, split),
            lambda c: [annotation.pop("segmentation") for annotation in c["annotations"]],
        )
    record = run(tmp_path / "run", own_coco, replace(RECIPE, max_iters=1), arch=ARCHS[1])
    assert "box_ap" in record.metrics
    assert "mask_ap" not in record.metrics
    assert "loss_mask" not in record.details["losses"]


def test_a_proposal_that_is_not_finite_is_reported_as_diverged(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DivergedError, match=r"coco: a proposed box is not finite at step 1; .*/bad_batch_step1.pt"
    ) as caught:
        run(tmp_path / "run", coco, replace(RECIPE, base_lr=1e20, warmup_iters=0))
    assert "-o base_lr=" in str(caught.value)
    kept = torch.load(tmp_path / "run" / "bad_batch_step1.pt", weights_only=True)
    assert [Path(image["file_name"]).parent.name for image in kept] == ["train2017"] * 2
    assert all(image["image"].dtype == torch.uint8 for image in kept)


@pytest.mark.heavy
def test_a_gradient_that_is_not_finite_changes_no_weight(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of four iterations is bad on one of two accumulation steps."""
    states: list[dict[str, Any]] = []
    passes = []

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        passes.append(1)
        return gradient * (float("inf") if len(passes) == 3 else 1)

    def poisoned(*inputs: Any, **options: Any) -> Any:
        model = build_detector(*inputs, **options)
        bias = next(p for n, p in model.named_parameters() if n.endswith("mlp.fc1.bias"))
        bias.register_hook(poison)
        states.append(model.state_dict())  # shares memory with the weights
        return model

    monkeypatch.setattr("transfer.detection.model.build_detector", poisoned)
    out = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"gradient norm (nan|inf) at step 1"):
        run(out, coco, accumulate=2)
    run(tmp_path / "one", coco, replace(RECIPE, max_iters=1), accumulate=2)
    wanted = read_training_state(tmp_path / "one" / "checkpoints" / "last")["model"]
    assert all(torch.equal(states[0][name], value) for name, value in wanted.items())


@pytest.mark.heavy
def test_float16_is_resumed_with_the_scale_of_its_gradients(coco: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, precision="fp16", test_precision="fp32", max_iters=2)
    with pytest.raises(InterruptedRun):
        run(tmp_path / "run", coco, recipe, display=InterruptingDisplay("coco", 1))
    record = run(tmp_path / "run", coco, recipe, resume=True)
    assert (record.details["precision"], record.details["test_precision"]) == ("fp16", "fp32")
    scaler = read_training_state(tmp_path / "run" / "checkpoints" / "last")["scaler"]
    assert scaler["_growth_tracker"] == 2  # steps since the scale was changed


def test_a_run_resumed_with_fewer_processes_keeps_the_images_of_a_backward_pass() -> None:
    # 64 images on 8 processes in 2 steps: 4 images at a time.
    done = {"parts": 2, "processes": 8}
    assert [resumed_steps(done, 64, processes) for processes in (1, 2, 8, 16, 32)] == [
        16,
        8,
        2,
        1,
        1,
    ]
    assert resumed_steps({"parts": 2}, 64, 8) == 2
    assert resumed_steps({"parts": None}, 64, 8) is None


def test_an_optimizer_state_of_a_gpu_is_resumed_on_a_cpu() -> None:
    """On a GPU AdamW is fused; its state says so, which would select the kernel here."""
    moved = []
    for fused in (None, True):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        first = torch.optim.AdamW(layer.parameters(), fused=fused)
        for _ in range(2):
            layer(torch.ones(1, 3)).sum().backward()
            first.step()
        again = torch.optim.AdamW(layer.parameters())
        load_optimizer_state(again, first.state_dict())
        assert again.param_groups[0]["fused"] is None
        again.step()
        moved.append(layer.weight.detach())
    torch.testing.assert_close(*moved)


def test_without_detectron2_the_runner_imports_and_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)
    for name in ("run", "coco_layout", "coco_faults", "figure", "framework"):
        monkeypatch.delitem(sys.modules, f"transfer.detection.{name}")
    importlib.import_module("transfer.detection.run")
    framework = importlib.import_module("transfer.detection.framework")
    with pytest.raises(MissingFrameworkError, match=r"extra \[det\].*quickstart") as caught:
        framework.require_detectron2()
    assert caught.value.exit_code == 3
