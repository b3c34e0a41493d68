"""Tests of segmentor training: learning rate, resuming, divergence, missing MMSegmentation."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.interrupt import InterruptingDisplay
from support.segmentation import RECIPE, entries, segmentor, transfer

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_checkpoint, read_training_state
from simmim_bench.display import Display, ProgressTask
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DivergedError, InterruptedRun, MissingFrameworkError
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import RunDir
from transfer.segmentation.recipes import ADE20K_LINEAR_POCKET
from transfer.segmentation.run import set_local_rank


def test_learning_rate_equals_that_of_mmengines_schedulers(mmseg: None) -> None:
    from mmengine.optim import LinearLR, PolyLR

    from transfer.segmentation.hooks import lr_factor

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [
        LinearLR(optimizer, start_factor=1e-6, by_epoch=False, begin=0, end=15),
        PolyLR(optimizer, eta_min=0.0, power=1.0, begin=15, end=100, by_epoch=False),
    ]
    for iteration in range(100):
        expected = optimizer.param_groups[0]["lr"]
        assert lr_factor(iteration, 15, 100) == pytest.approx(expected, abs=1e-9)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


@pytest.mark.heavy
def test_bfloat16_trains_on_a_cpu_too(mmseg: None, generated: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, precision="bf16", max_iters=2)
    record = transfer(tmp_path / "run", generated, recipe, ckpt="random:swin_pocket")
    assert record.evaluated == 3


@pytest.mark.heavy
def test_a_linear_head_trains_and_the_backbone_stays_frozen(
    mmseg: None, generated: Path, tmp_path: Path
) -> None:
    recipe = replace(ADE20K_LINEAR_POCKET, max_iters=3, warmup_iters=0, batch_size=2)
    transfer(tmp_path / "run", generated, recipe)
    before = segmentor("random:vit_pocket", recipe, classes=16, seed=3)
    names = [name for name, p in before.named_parameters() if p.requires_grad]
    assert names == ["decode_head.conv_seg.weight", "decode_head.conv_seg.bias"]
    assert before.decode_head.conv_seg.weight.shape == (16, 4 * 128, 1, 1)
    after = read_training_state(tmp_path / "run/checkpoints/last")["model"]
    for name, value in before.backbone.state_dict().items():
        assert torch.equal(after[f"backbone.{name}"], value), name
    assert after["decode_head.conv_seg.weight"].abs().max() > 0


def test_a_run_directory_has_the_documented_files_only(finished: Path) -> None:
    assert sorted(entry.name for entry in finished.iterdir()) == [
        "checkpoints",
        "env.json",
        "iou_by_class.json",
        "log.txt",
        "metrics.jsonl",
        "predictions",
        "predictions.png",
        "recipe.json",
        "record.json",
        "tensorboard",
    ]
    with Image.open(finished / "predictions.png") as figure:
        lines, rest = divmod(figure.height - 3 * 192, 20)
        assert lines >= 2  # the headings, and rows of classes
        assert rest == 0


@pytest.mark.heavy
def test_a_run_with_a_quiet_display_prints_nothing(
    mmseg: None, generated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        transfer(tmp_path / "run", generated, replace(RECIPE, max_iters=1))
    assert capfd.readouterr() == ("", "")


@pytest.mark.heavy
def test_predictions_repeat_with_the_seed_and_differ_between_seeds(
    generated: Path, finished: Path, tmp_path: Path
) -> None:
    transfer(tmp_path / "same", generated)
    transfer(tmp_path / "other", generated, seed=4)
    assert np.array_equal(entries(finished), entries(tmp_path / "same"))
    assert not np.array_equal(entries(finished), entries(tmp_path / "other"))


class CountingDisplay(Display):
    """A quiet display that counts the steps of every task."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.steps: Counter[str] = Counter()

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[ProgressTask]:
        with super().task(description, total) as task:

            def count(steps: int = 1, **figures: float | str) -> None:
                self.steps[description] += steps

            task.advance = count  # type: ignore[method-assign]
            yield task


@pytest.mark.heavy
def test_a_resumed_run_ends_with_the_predictions_of_an_uninterrupted_one(
    mmseg: None, generated: Path, finished: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with pytest.raises(InterruptedRun, match=r"step 2 of 4, which is saved.*--resume") as caught:
        transfer(path, generated, display=InterruptingDisplay("ade20k", 2))
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert not (path / "record.json").exists()
    display = CountingDisplay()
    record = transfer(path, generated, resume=True, display=display)
    assert display.steps == {"ade20k": 2, "ade20k: predict": 3}
    assert np.array_equal(entries(finished), entries(path))
    assert record.metrics["miou"] >= 0


def unscored_copy(finished: Path, path: Path) -> Path:
    """Copy a finished run, without its record, to be resumed."""
    shutil.copytree(finished, path)
    (path / "record.json").unlink()
    return path


@pytest.mark.heavy
def test_a_run_interrupted_during_prediction_resumes_without_training(
    mmseg: None, generated: Path, finished: Path, tmp_path: Path
) -> None:
    path = unscored_copy(finished, tmp_path / "run")
    (path / ".mmengine-killed").mkdir()
    display = CountingDisplay()
    transfer(path, generated, resume=True, display=display)
    assert display.steps == {"ade20k: predict": 3}
    assert np.array_equal(entries(finished), entries(path))
    assert sorted(p.name for p in path.iterdir()) == sorted(p.name for p in finished.iterdir())


@pytest.mark.heavy
def test_sigusr1_during_prediction_ends_the_run_like_sigterm(
    mmseg: None, generated: Path, finished: Path, tmp_path: Path
) -> None:
    path = unscored_copy(finished, tmp_path / "run")
    display = InterruptingDisplay("ade20k: predict", 1, signal.SIGUSR1)
    message = r"4 iterations done and saved, predicting: stopped by SIGUSR1.*--resume"
    with pytest.raises(InterruptedRun, match=message) as caught:
        transfer(path, generated, resume=True, display=display)
    assert caught.value.exit_code == 128 + signal.SIGTERM


def test_a_finished_run_is_a_checkpoint_of_the_fine_tuned_backbone(finished: Path) -> None:
    checkpoint = read_checkpoint(str(finished))
    report: Any = load_backbone(checkpoint).load_report
    assert [report.missing, report.unused, report.resized] == [[], [], []]
    assert checkpoint.label == "vit_pocket, random, ade20k_pocket"


@pytest.mark.heavy
def test_a_loss_that_is_not_finite_is_reported_as_diverged(
    mmseg: None, generated: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, base_lr=1e30, max_iters=20, clip_grad=0.0)
    with pytest.raises(DivergedError, match=r"ade20k: .* at step 1; .*/bad_batch_step1.pt"):
        transfer(tmp_path / "run", generated, recipe)
    kept = torch.load(tmp_path / "run" / "bad_batch_step1.pt", weights_only=True)
    assert len(kept) == 2
    assert all(Path(image["file_name"]).is_file() for image in kept)
    assert all(image["image"].dtype == torch.uint8 for image in kept)


def test_the_first_bad_step_is_found_and_no_later_one_changes_a_weight(
    mmseg: None, tmp_path: Path
) -> None:
    """The host reads nothing in between, as on a GPU."""
    from transfer.segmentation.hooks import AutocastOptimWrapper

    run = RunDir(tmp_path, Display(quiet=True))
    context = RunContext(run=run, seed=0)

    def trained(steps: int, bad: tuple[int, ...], precision: Any) -> tuple[Any, torch.Tensor]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 1)
        optimizer = torch.optim.AdamW(layer.parameters(), 0.1, fused=True)
        wrapper = AutocastOptimWrapper(
            optimizer, max_norm=1.0, precision=precision, context=context
        )
        for number in range(steps):
            inputs = torch.full((2, 4), float("nan") if number in bad else number + 1.0)
            wrapper.number = number
            wrapper.checks.keep(number, [{"file_name": f"{number}.jpg", "image": torch.ones(1)}])
            with wrapper.optim_context(layer):
                loss = (layer(inputs).float() - 1).square().mean()
            wrapper.update_params(loss)
        return wrapper, layer.weight.detach()

    wrapper, weight = trained(6, (3, 4), "fp32")
    with pytest.raises(DivergedError, match=r"loss nan, gradient norm nan at step 3"):
        wrapper.checks.raise_if_diverged()
    kept = torch.load(run.path / "bad_batch_step3.pt", weights_only=True)
    assert [entry["file_name"] for entry in kept] == ["3.jpg"]
    before, wanted = trained(3, (), "fp32")
    before.checks.raise_if_diverged()
    assert torch.equal(weight, wanted)
    # In float16 the first steps overflow; they lower the scale and are no reason to stop.
    overflown, unchanged = trained(3, (), "fp16")
    overflown.checks.raise_if_diverged()
    assert overflown.scaler.get_scale() == 2**13
    assert torch.equal(unchanged, trained(0, (), "fp32")[1])


@pytest.mark.heavy
def test_float16_is_resumed_with_the_scale_of_its_gradients(
    mmseg: None, generated: Path, tmp_path: Path
) -> None:
    recipe = replace(
        ADE20K_LINEAR_POCKET, precision="fp16", max_iters=2, warmup_iters=0, batch_size=2
    )
    with pytest.raises(InterruptedRun):
        transfer(tmp_path / "run", generated, recipe, display=InterruptingDisplay("ade20k", 1))
    transfer(tmp_path / "run", generated, recipe, resume=True)
    state = read_training_state(tmp_path / "run/checkpoints/last")
    assert state["precision"] == "fp16"
    assert state["scaler"]["_growth_tracker"] == 2  # steps since the scale was changed


@pytest.mark.parametrize("library", ["mmseg", "mmengine", "mmcv"])
def test_without_a_library_of_mmseg_the_error_names_the_extra(
    generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    # The adapter stays imported: a second import would register it twice.
    for name in ("transfer.segmentation.loop", "transfer.segmentation.data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in [n for n in sys.modules if n.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingFrameworkError, match=r"simmim-bench\[seg\]"):
        transfer(tmp_path / "run", generated)


def test_mmengine_counts_a_process_s_gpu_among_those_that_it_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    set_local_rank(DistContext(rank=3, size=4, device=torch.device("cpu")))
    assert os.environ["LOCAL_RANK"] == "3"
    # srun --gpus-per-task=1: the fourth process sees one GPU, which is its number 0.
    set_local_rank(DistContext(rank=3, size=4, device=torch.device("cuda", 0)))
    assert os.environ["LOCAL_RANK"] == "0"
