"""Claims about whole runs on generated data: pretraining, the classification tasks, resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.recipes import POCKET, PretrainRecipe
from pretrain.simmim import load_simmim
from pretrain.train import pretrain
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.datasets import balanced_subset
from simmim_bench.data.sources import class_folders
from simmim_bench.display import Display
from simmim_bench.errors import DivergedError, UsageError
from simmim_bench.leaderboard.check import check_records
from simmim_bench.leaderboard.find import find_records
from simmim_bench.results.record import Record
from simmim_bench.runs.run_dir import open_run
from transfer.finetune.recipes import IMAGENET_POCKET
from transfer.frozen.recipes import KNN_POCKET, LINEAR_POCKET, LOGISTIC_POCKET
from transfer.recipes import TransferRecipe
from transfer.run import run_transfer

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
    out: Path, data: Path, recipe: PretrainRecipe = TINY_PRETRAIN, *, resume: bool = False
) -> Path:
    with open_run(
        out, recipe=recipe, deviates={}, arguments={}, display=Display(quiet=True), resume=resume
    ) as run:
        return pretrain(recipe=recipe, deviates={}, data=data, run=run, seed=0, resume=resume)


def run_task(
    task: str,
    out: Path,
    data: Path,
    recipe: TransferRecipe,
    *,
    ckpt: str = "random:vit_pocket",
    resume: bool = False,
    seed: int = 0,
    fraction: float = 1.0,
) -> Record:
    with open_run(
        out, recipe=recipe, deviates={}, arguments={}, display=Display(quiet=True), resume=resume
    ) as run:
        return run_transfer(
            task,
            checkpoint=read_checkpoint(ckpt),
            data=data,
            run=run,
            recipe=recipe,
            deviates={},
            seed=seed,
            resume=resume,
            fraction=fraction,
        )


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, pocket: Path) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "run"
    run_pretrain(out, pocket / "imagenet")
    return out


def test_a_pretraining_run_leaves_the_documented_files(pretrained: Path) -> None:
    for name in ("recipe.json", "env.json", "metrics.jsonl", "log.txt", "reconstructions.png"):
        assert (pretrained / name).stat().st_size > 0, name
    assert any((pretrained / "tensorboard").iterdir())
    assert (pretrained / "checkpoints" / "last" / "model.safetensors").is_file()
    lines = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "epoch", "loss", "lr", "grad_norm", "images_per_s"} <= set(lines[0])


def test_the_checkpoint_rebuilds_its_model_alone(pretrained: Path) -> None:
    model = load_simmim(str(pretrained))
    images, mask = torch.randn(2, 3, 32, 32), torch.zeros(2, 8, 8)
    mask[:, :4] = 1
    output = model(images, mask)
    assert output.reconstruction.shape == images.shape
    provenance = read_checkpoint(str(pretrained)).provenance
    assert provenance["recipe"]["sha256"] == TINY_PRETRAIN.sha256()
    assert 0 < provenance["held_out_loss"] < 2


def test_the_same_seed_gives_the_same_weights_and_resuming_too(
    tmp_path: Path, pocket: Path, pretrained: Path
) -> None:
    whole = load_simmim(str(pretrained)).state_dict()

    class Killed(Exception):
        pass

    from pretrain import train as module

    original = module.write_checkpoint

    def die_after_one_epoch(*args: object, **kwargs: object) -> None:
        original(*args, **kwargs)  # type: ignore[arg-type]
        raise Killed

    module.write_checkpoint = die_after_one_epoch  # type: ignore[assignment]
    try:
        with pytest.raises(Killed):
            run_pretrain(tmp_path / "run", pocket / "imagenet")
    finally:
        module.write_checkpoint = original
    run_pretrain(tmp_path / "run", pocket / "imagenet", resume=True)
    again = load_simmim(str(tmp_path / "run")).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("arch", ["swin_pocket"])
def test_other_families_pretrain_and_transfer_too(arch: str, tmp_path: Path, pocket: Path) -> None:
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


def test_a_finished_run_is_left_as_it_is(pretrained: Path, pocket: Path) -> None:
    meta = pretrained / "checkpoints" / "last" / "meta.json"
    before = meta.read_bytes()
    run_pretrain(pretrained, pocket / "imagenet", resume=True)
    assert meta.read_bytes() == before


def test_resuming_with_another_recipe_is_refused(pretrained: Path, pocket: Path) -> None:
    with pytest.raises(UsageError, match=r"started with another recipe \(epochs 2, now 3\)"):
        run_pretrain(pretrained, pocket / "imagenet", replace(TINY_PRETRAIN, epochs=3), resume=True)


def test_resuming_minds_what_shapes_the_result_and_names_it(tmp_path: Path) -> None:
    def go(recipe: TransferRecipe, *, resume: bool = True, **arguments: object) -> None:
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


def test_a_pretraining_loss_falls(tmp_path: Path, pocket: Path) -> None:
    recipe = replace(TINY_PRETRAIN, epochs=15, warmup_epochs=1, batch_size=8, base_lr=0.06)
    run_pretrain(tmp_path / "run", pocket / "imagenet", recipe)
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:2])


@pytest.mark.parametrize("task", ["imagenet", "linear", "knn", "fewshot"])
def test_every_classification_task_leaves_a_record_that_its_predictions_give(
    task: str, tmp_path: Path, pocket: Path, pretrained: Path
) -> None:
    record = run_task(
        task, tmp_path / "run", pocket / "imagenet", TINY[task], ckpt=str(pretrained), fraction=0.5
    )
    assert record.evaluated == record.expected == 30
    assert 0 <= record.metrics["top1"] <= record.metrics["top5"] <= 100
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


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_fine_tuning_can_be_resumed_and_ends_the_same(
    tmp_path: Path, pocket: Path, ema_decay: float
) -> None:
    recipe = replace(TINY_FINETUNE, ema_decay=ema_decay)
    whole = run_task("imagenet", tmp_path / "whole", pocket / "imagenet", recipe)
    import signal

    from simmim_bench.errors import InterruptedRun
    from simmim_bench.training import loop as engine

    original = engine.fit

    def interrupted(**arguments: object) -> None:
        save = arguments["save"]

        def save_then_signal(epochs_done: int) -> None:
            save(epochs_done)  # type: ignore[operator]
            signal.raise_signal(signal.SIGTERM)

        original(**(arguments | {"save": save_then_signal}))  # type: ignore[arg-type]

    from transfer.finetune import run as classification

    classification.fit = interrupted  # type: ignore[assignment]
    try:
        with pytest.raises(InterruptedRun) as stopped:
            run_task("imagenet", tmp_path / "cut", pocket / "imagenet", recipe)
    finally:
        classification.fit = original
    assert stopped.value.exit_code == 143
    again = run_task("imagenet", tmp_path / "cut", pocket / "imagenet", recipe, resume=True)
    assert again.predictions["sha256"] == whole.predictions["sha256"]


def test_fewshot_subsets_are_balanced_nested_in_nothing_but_the_seed(pocket: Path) -> None:
    images = class_folders(pocket / "imagenet", "train")
    chosen = balanced_subset(images.labels, 0.5, 0)
    counts = np.bincount(np.array(images.labels)[chosen])
    assert (counts == 3).all()
    assert chosen == balanced_subset(images.labels, 0.5, 0)
    assert chosen != balanced_subset(images.labels, 0.5, 1)
