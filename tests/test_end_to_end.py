"""Whole runs on synthetic data: pretraining, the classification tasks, resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.interrupt import InterruptingDisplay

from pretrain.recipes import POCKET, PretrainRecipe
from pretrain.simmim import load_simmim
from pretrain.train import pretrain
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.subsets import balanced_subset
from simmim_bench.display import Display
from simmim_bench.errors import DivergedError, InterruptedRun, UsageError
from simmim_bench.leaderboard.check import check_records
from simmim_bench.leaderboard.find import find_records
from simmim_bench.recipe import Recipe
from simmim_bench.results.record import Record
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run
from transfer.finetune.recipes import IMAGENET_POCKET
from transfer.frozen.recipes import KNN_POCKET, LINEAR_POCKET, LOGISTIC_POCKET
from transfer.job import TransferJob
from transfer.tasks import load_function, runner_of

TINY_PRETRAIN = replace(
    POCKET, img_size=(32, 32), mask_patch_size=8, epochs=2, warmup_epochs=1, batch_size=16
)
TINY_FINETUNE = replace(
    IMAGENET_POCKET, img_size=(32, 32), epochs=2, warmup_epochs=1, batch_size=16
)
TINY = {
    "imagenet": TINY_FINETUNE,
    "linear": replace(LINEAR_POCKET, epochs=3, base_lr=(0.01, 0.1)),
    "knn": KNN_POCKET,
    "fewshot": replace(LOGISTIC_POCKET, l2=(1e-3,)),
}


def run_pretrain(
    out: Path,
    data: Path,
    recipe: PretrainRecipe = TINY_PRETRAIN,
    *,
    resume: bool = False,
    display: Display | None = None,
) -> Path:
    display = display or Display(quiet=True)
    with open_run(
        out, recipe=recipe, deviates={}, arguments={}, display=display, resume=resume
    ) as run:
        context = RunContext(run=run, seed=0, resume=resume)
        return pretrain(context, recipe=recipe, deviates={}, data=data)


def run_task(
    task: str,
    out: Path,
    data: Path,
    recipe: Recipe,
    *,
    ckpt: str = "random:vit_pocket",
    resume: bool = False,
    display: Display | None = None,
    **options: str,
) -> Record:
    display = display or Display(quiet=True)
    with open_run(
        out, recipe=recipe, deviates={}, arguments={}, display=display, resume=resume
    ) as run:
        job = TransferJob(
            task=task,
            checkpoint=read_checkpoint(ckpt),
            data=data,
            recipe=recipe,
            deviates={},
            options=options,
        )
        context = RunContext(run=run, seed=0, resume=resume)
        record: Record = load_function(runner_of(recipe).run)(context, job)
        return record


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, pocket: Path) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "run"
    run_pretrain(out, pocket / "imagenet")
    return out


@pytest.mark.heavy
def test_a_pretraining_run_writes_the_documented_files(pretrained: Path) -> None:
    for name in ("recipe.json", "env.json", "metrics.jsonl", "log.txt", "reconstructions.png"):
        assert (pretrained / name).stat().st_size > 0, name
    assert any((pretrained / "tensorboard").iterdir())
    assert (pretrained / "checkpoints" / "last" / "model.safetensors").is_file()
    lines = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "epoch", "loss", "lr", "grad_norm", "images_per_s"} <= set(lines[0])


@pytest.mark.heavy
def test_the_model_is_rebuilt_from_its_checkpoint_alone(pretrained: Path) -> None:
    model = load_simmim(str(pretrained))
    images, mask = torch.randn(2, 3, 32, 32), torch.zeros(2, 8, 8)
    mask[:, :4] = 1
    output = model(images, mask)
    assert output.reconstruction.shape == images.shape
    provenance = read_checkpoint(str(pretrained)).provenance
    assert provenance["recipe"]["sha256"] == TINY_PRETRAIN.sha256()
    assert 0 < provenance["held_out_loss"] < 2


@pytest.mark.heavy
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, pocket: Path, pretrained: Path
) -> None:
    whole = load_simmim(str(pretrained)).state_dict()
    with pytest.raises(InterruptedRun):
        run_pretrain(
            tmp_path / "run", pocket / "imagenet", display=InterruptingDisplay("pretrain", 3)
        )
    run_pretrain(tmp_path / "run", pocket / "imagenet", resume=True)
    again = load_simmim(str(tmp_path / "run")).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.heavy
@pytest.mark.parametrize("arch", ["swin_pocket"])
def test_other_families_are_pretrained_and_transferred(
    arch: str, tmp_path: Path, pocket: Path
) -> None:
    recipe = replace(TINY_PRETRAIN, arch=arch, epochs=1, warmup_epochs=0, mask_patch_size=16)
    run_pretrain(tmp_path / "pretrain", pocket / "imagenet", recipe)
    record = run_task(
        "linear",
        tmp_path / "linear",
        pocket / "imagenet",
        TINY["linear"],
        ckpt=str(tmp_path / "pretrain"),
    )
    assert record.checkpoint["arch"] == arch
    assert record.details["blocks"] == 4


def test_resuming_a_finished_run_changes_nothing(pretrained: Path, pocket: Path) -> None:
    meta = pretrained / "checkpoints" / "last" / "meta.json"
    before = meta.read_bytes()
    run_pretrain(pretrained, pocket / "imagenet", resume=True)
    assert meta.read_bytes() == before


def test_resuming_with_another_recipe_is_refused(pretrained: Path, pocket: Path) -> None:
    with pytest.raises(UsageError, match=r"started with another recipe \(epochs 2, now 3\)"):
        run_pretrain(pretrained, pocket / "imagenet", replace(TINY_PRETRAIN, epochs=3), resume=True)


def test_resuming_with_other_arguments_is_refused_and_names_them(tmp_path: Path) -> None:
    def go(recipe: Recipe, *, resume: bool = True, **arguments: object) -> None:
        with open_run(
            tmp_path / "run",
            recipe=recipe,
            deviates={},
            arguments={"data": "here", "seed": 0, **arguments},
            display=Display(quiet=True),
            resume=resume,
        ):
            pass

    go(KNN_POCKET, resume=False)
    go(replace(KNN_POCKET, num_workers=3, forward_batch_size=7, source="in other words"))
    with pytest.raises(UsageError, match=r"with another data here, now there and seed 0, now 1;"):
        go(KNN_POCKET, data="there", seed=1)
    with pytest.raises(UsageError, match=r"with another recipe \(temperature 0.07, now 0.1\);"):
        go(replace(KNN_POCKET, temperature=0.1))


def test_a_diverging_run_stops_with_its_own_error(tmp_path: Path, pocket: Path) -> None:
    with pytest.raises(DivergedError, match="base_lr"):
        run_pretrain(
            tmp_path / "run",
            pocket / "imagenet",
            replace(TINY_PRETRAIN, base_lr=1e30, warmup_epochs=0),
        )


@pytest.mark.heavy
def test_the_pretraining_loss_decreases(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Held-out images are evaluated after each of the epochs.
    monkeypatch.setattr("pretrain.evaluation.held_out.HELD_OUT_IMAGES", 2)
    recipe = replace(TINY_PRETRAIN, epochs=8, warmup_epochs=1, base_lr=0.12)
    run_pretrain(tmp_path / "run", pocket / "imagenet", recipe)
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:2])


@pytest.mark.heavy
@pytest.mark.parametrize("task", ["imagenet", "linear", "knn", "fewshot"])
def test_every_classification_record_follows_from_its_predictions(
    task: str, tmp_path: Path, pocket: Path, pretrained: Path
) -> None:
    options: dict[str, Any] = {"fraction": "50%"} if task == "fewshot" else {}
    record = run_task(
        task, tmp_path / "run", pocket / "imagenet", TINY[task], ckpt=str(pretrained), **options
    )
    assert record.task == (f"{task}-50%" if options else task)
    assert record.evaluated == record.expected == 30
    assert 0 <= record.metrics["top1"] <= record.metrics["top5"] <= 100
    # The votes of k-NN are no probabilities.
    assert ({"ece", "nll", "brier"} <= {*record.metrics}) == (task != "knn")
    records = find_records([tmp_path]).records
    assert list(records) == [tmp_path / "run" / "record.json"]
    assert check_records(records, {TINY[task].name: TINY[task]}) == []
    assert record.cost["images_per_s"] > 0
    assert record.checkpoint["params"] == sum(
        parameter.numel() for parameter in load_backbone(str(pretrained), (32, 32)).parameters()
    )
    with np.load(tmp_path / "run" / "predictions" / "logits.npz") as stored:
        hits = stored["ranked"][:, 0] == stored["labels"]
    assert record.metrics["top1"] == pytest.approx(100 * hits.mean())


@pytest.mark.heavy
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_resumed_fine_tuning_gives_the_same_predictions(
    tmp_path: Path, pocket: Path, ema_decay: float
) -> None:
    recipe = replace(TINY_FINETUNE, ema_decay=ema_decay)
    whole = run_task("imagenet", tmp_path / "whole", pocket / "imagenet", recipe)
    with pytest.raises(InterruptedRun) as stopped:
        run_task(
            "imagenet",
            tmp_path / "cut",
            pocket / "imagenet",
            recipe,
            display=InterruptingDisplay("fine-tune", 3),
        )
    assert stopped.value.exit_code == 143
    again = run_task("imagenet", tmp_path / "cut", pocket / "imagenet", recipe, resume=True)
    assert again.predictions["sha256"] == whole.predictions["sha256"]


def test_few_shot_subsets_are_balanced_and_follow_from_the_seed(pocket: Path) -> None:
    images = class_folders(pocket / "imagenet", "train")
    chosen = balanced_subset(images.labels, 0.5, 0)
    counts = np.bincount(np.array(images.labels)[chosen])
    assert (counts == 3).all()
    assert chosen == balanced_subset(images.labels, 0.5, 0)
    assert chosen != balanced_subset(images.labels, 0.5, 1)
