"""The task `attentive`, from images to the record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cli import fails
from support.interrupt import InterruptingDisplay
from support.random_weights import random_checkpoint
from torch.utils.data import DataLoader

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.datasets import ImageDataset, eval_transform
from simmim_bench.diagnostics.estimate import DataSize
from simmim_bench.display import Display
from simmim_bench.errors import DataError, InterruptedRun
from simmim_bench.leaderboard.check import check_records
from simmim_bench.leaderboard.find import find_records
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.results.record import Record
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run
from transfer.attentive.classifier import AttentiveClassifier
from transfer.attentive.estimate import plan_attentive
from transfer.attentive.probes import SINGLE
from transfer.attentive.recipes import ATTENTIVE, ATTENTIVE_POCKET, AttentiveRecipe
from transfer.attentive.run import run_attentive
from transfer.attentive.tokens import blocks_of, load_tokens
from transfer.fitted import build_fitted, read_fitted, write_fitted
from transfer.frozen.candidates import hold_out
from transfer.job import TransferJob

CPU = torch.device("cpu")
CKPT = "random:vit_pocket"
RECIPE = replace(
    ATTENTIVE_POCKET,
    epochs=2,
    warmup_epochs=0,
    batch_size=20,
    norm_images=10,
    blocks=(2, -1),
    heads=("efficient", "cross"),
    base_lr=(1.0,),
)


def probe(
    out: Path,
    data: Path,
    recipe: AttentiveRecipe = RECIPE,
    *,
    resume: bool = False,
    display: Display | None = None,
) -> Record:
    display = display or Display(quiet=True)
    with open_run(
        out, recipe=recipe, deviates={}, arguments={}, display=display, resume=resume
    ) as run:
        job = TransferJob(
            task="attentive",
            checkpoint=read_checkpoint(CKPT),
            data=data,
            recipe=recipe,
            deviates={},
        )
        record = run_attentive(RunContext(run=run, seed=0, resume=resume), job)
    assert record is not None
    return record


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pocket: Path) -> tuple[Path, Record]:
    out = tmp_path_factory.mktemp("attentive") / "run"
    return out, probe(out, pocket / "imagenet")


@pytest.mark.heavy
def test_the_record_names_the_best_candidate_on_held_out_images(
    whole: tuple[Path, Record],
) -> None:
    out, record = whole
    compared = json.loads((out / "compared.json").read_text())
    assert [(c["block"], c["head"]) for c in compared] == [
        (block, head) for block in (2, 4) for head in RECIPE.heads
    ]
    best = max(candidate["held_out_top1"] for candidate in compared)
    assert record.details["held_out_top1"] == best
    assert {key: record.details[key] for key in compared[0]} in compared
    assert record.details["candidates"] == 4
    records = find_records([out]).records
    assert list(records) == [out / "record.json"]
    assert check_records(records, {RECIPE.name: RECIPE}) == []
    assert record.task == "attentive"
    assert record.evaluated == 30
    # 60 training images of ten classes, of which one of each is held out.
    assert all(candidate["held_out_top1"] % 10 < 1e-4 for candidate in compared)


def test_the_fitted_classifier_predicts_as_recorded_and_shows_its_attention(
    whole: tuple[Path, Record], pocket: Path
) -> None:
    out, record = whole
    checkpoint = read_checkpoint(CKPT)
    classifier = build_fitted(read_fitted(out), checkpoint)
    assert isinstance(classifier, AttentiveClassifier)
    transform = eval_transform((32, 32), crop_ratio=1.0, mean=checkpoint.mean, std=checkpoint.std)
    val = ImageDataset(class_folders(pocket / "imagenet", "val"), transform)
    images, _ = next(iter(DataLoader(val, batch_size=30)))
    with torch.no_grad():
        ranked = classifier(images).argsort(1, descending=True)
    with np.load(out / "predictions" / "logits.npz") as stored:
        assert (stored["ranked"][:, 0] == ranked[:, 0].numpy()).all()
    attention = classifier.attention(images[:2])
    queries = {"efficient": RECIPE.queries, "cross": RECIPE.num_heads}[record.details["head"]]
    assert attention.shape == (2, queries, 8, 8)
    torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, queries))


def test_a_fitted_classifier_of_another_backbone_is_refused(
    whole: tuple[Path, Record], tmp_path: Path
) -> None:
    fitted = read_fitted(whole[0])
    with pytest.raises(DataError, match="does not fit random:swin_pocket"):
        build_fitted(fitted, read_checkpoint("random:swin_pocket"))
    (tmp_path / "run").mkdir()
    write_fitted(tmp_path / "run", replace(fitted, settings={"block": 1}))
    with pytest.raises(DataError, match="does not fit random:vit_pocket: 'head'; run its task"):
        build_fitted(read_fitted(tmp_path / "run"), read_checkpoint(CKPT))


@pytest.mark.heavy
def test_a_resumed_run_ends_as_an_undisturbed_one(
    tmp_path: Path, pocket: Path, whole: tuple[Path, Record]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(InterruptedRun) as stopped:
        probe(out, pocket / "imagenet", display=InterruptingDisplay("attentive", 4))
    assert stopped.value.exit_code == 143
    again = probe(out, pocket / "imagenet", resume=True)
    assert again.predictions["sha256"] == whole[1].predictions["sha256"]
    found, wanted = (read_fitted(run).state for run in (out, whole[0]))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_the_backbone_is_frozen(whole: tuple[Path, Record]) -> None:
    """Its weights are still those of the checkpoint, and no gradient reaches them."""
    saved = load_backbone(str(whole[0]), (32, 32)).state_dict()
    initial = load_backbone(CKPT, (32, 32), seed=0).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in initial.items())
    tokens = load_tokens(RECIPE, read_checkpoint(CKPT), CPU).train()
    assert not tokens.backbone.training
    assert not any(p.requires_grad for p in tokens.parameters())
    assert not any(x.requires_grad for x in tokens(torch.randn(1, 3, 32, 32)))


def test_a_single_candidate_learns_from_all_images(tmp_path: Path, pocket: Path) -> None:
    recipe = replace(RECIPE, epochs=1, blocks=(-1,), heads=("latent",))
    record = probe(tmp_path / "run", pocket / "imagenet", recipe)
    assert record.details["candidates"] == 1
    assert "held_out_top1" not in record.details
    assert json.loads((tmp_path / "run" / "compared.json").read_text()) == []


def test_the_tokens_of_every_family_are_those_that_are_pooled(tiny_spec: BackboneSpec) -> None:
    checkpoint = random_checkpoint(tiny_spec)
    every = tuple(range(1, tiny_spec.probed_blocks + 1))
    recipe = replace(RECIPE, blocks=every, queries=1, num_heads=1, token_norm="none")
    tokens = load_tokens(recipe, checkpoint, CPU)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pooled = tokens.backbone.forward_pooled(images)
    # A ConvNeXt's last norm is applied after its pooling.
    compared = every[:-1] if tiny_spec.family == "convnext" else every
    for block, x in zip(compared, tokens(images), strict=False):
        torch.testing.assert_close(
            x.mean(1), pooled[:, block - 1, 0, : x.shape[2]], rtol=1e-4, atol=1e-5
        )
    last = tokens.backbone.forward_maps(images)[-1]
    assert tokens.maps(images)[-1].shape == last.permute(0, 2, 3, 1).shape


def test_the_estimate_takes_a_step_of_every_family(tiny_spec: BackboneSpec) -> None:
    recipe = replace(RECIPE, blocks=None, queries=4, num_heads=4)
    work = plan_attentive(recipe, random_checkpoint(tiny_spec), DataSize(100, 10, 3, "your"), CPU)
    assert work.steps == 2 * 5 * 2  # epochs, batches, parts of a batch
    assert work.batch_size == 10
    work.forward(2).backward()
    trained = [p for p in work.model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)


def test_the_estimate_refuses_too_few_images_in_the_words_of_the_run(
    tiny_spec: BackboneSpec,
) -> None:
    recipe = replace(RECIPE, blocks=(1,), queries=4, num_heads=4, base_lr=(0.1, 0.2))
    with pytest.raises(DataError) as planned:
        plan_attentive(recipe, random_checkpoint(tiny_spec), DataSize(10, 10, 10, "your"), CPU)
    with pytest.raises(DataError) as run:
        hold_out(torch.arange(10), 0.1, 0, SINGLE)
    assert str(planned.value) == str(run.value)


def test_the_default_blocks_reach_from_the_middle_to_the_end() -> None:
    blocks = {
        arch: blocks_of(ATTENTIVE, read_checkpoint(f"random:{arch}").spec)
        for arch in ("vit_b", "vit_l", "swin_b", "resnet50", "convnext_t")
    }
    assert blocks["vit_b"] == [6, 8, 10, 12]
    assert blocks["vit_l"] == [12, 16, 20, 24]
    assert blocks["swin_b"] == blocks["resnet50"] == blocks["convnext_t"] == [2, 3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("heads=perceiver", "heads"),
        ("heads=cross,cross", "heads of recipe 'attentive_pocket' lists cross twice"),
        ("blocks=9", "vit_pocket has no block 9; choose from 1 to 4"),
        (
            "num_heads=48",
            "num_heads=48 does not divide the 128 channels after block 2; use -o num_heads=32",
        ),
        ("norm_images=1", "norm_images 1 of recipe 'attentive_pocket' is out of range; use 2 or"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    tmp_path: Path, pocket: Path, change: str, message: str
) -> None:
    arguments = ("transfer", "attentive", "--ckpt", CKPT, "--data", pocket / "imagenet")
    assert message in fails(2, *arguments, "--out", tmp_path / "run", "-o", change)
    assert not (tmp_path / "run").exists()


def test_a_norm_that_the_backbone_lacks_is_refused(tmp_path: Path, pocket: Path) -> None:
    arguments = ("transfer", "attentive", "--ckpt", "random:swin_pocket", "--out", tmp_path / "run")
    data = ("--data", pocket / "imagenet", "-o", "token_norm=final", "-o", "blocks=4")
    assert "token_norm=final needs the LayerNorm" in fails(2, *arguments, *data)


def test_too_few_images_to_compare_candidates_are_refused(tmp_path: Path, few: Path) -> None:
    single = tmp_path / "data"
    for split in ("train", "val"):
        for folder in sorted((few / split).iterdir())[:2]:
            (single / split / folder.name).mkdir(parents=True)
            image = sorted(folder.iterdir())[0]
            (single / split / folder.name / image.name).write_bytes(image.read_bytes())
    arguments = ("transfer", "attentive", "--ckpt", CKPT, "--data", single)
    message = fails(4, *arguments, "--out", tmp_path / "run")
    assert "2 images in 2 classes are too few to hold out some" in message
    assert "use a single candidate: -o blocks=... -o heads=... -o base_lr=..." in message
