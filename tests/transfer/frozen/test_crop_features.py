"""A probe on random crops decodes each crop once and scores the same in memory, on disk and on two processes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support.commands import two_processes_of

import transfer.frozen.crop_features as crop_features
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.cli.main import cli
from simmim_bench.data.class_splits import class_folders
from simmim_bench.diagnostics.estimate import DataSize
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext, init_distributed
from simmim_bench.errors import DataError
from simmim_bench.probes.norms import Normaliser
from simmim_bench.runs.run_dir import RunDir
from transfer.frozen.candidates import TrainingSubset, hold_out
from transfer.frozen.estimate import plan_frozen
from transfer.frozen.feature_store import FeatureStore
from transfer.frozen.features import FeatureSet, RandomCrop, feature_sets
from transfer.frozen.knn import probe_knn
from transfer.frozen.linear_probe import probe_linear
from transfer.frozen.logistic import probe_logistic
from transfer.frozen.parallel_heads import ParallelLinearHeads, train_epoch
from transfer.frozen.published_recipes import LINEAR_BEIT
from transfer.frozen.recipes import KNN_POCKET, LOGISTIC_POCKET, LinearRecipe

RANDOM = "random:vit_pocket"
SMALL: dict[str, Any] = {
    "img_size": (32, 32),
    "num_workers": 0,
    "blocks": (2, 3, 4),
    "pooling": ("mean",),
    "epochs": 3,
    "crops": 3,
    "forward_batch_size": 17,
}
RECIPE = replace(LINEAR_BEIT, **SMALL)


def open_store(folder: Path, recipe: Any, dist: DistContext) -> FeatureStore:
    checkpoint = read_checkpoint(RANDOM)
    run = RunDir(folder, Display(quiet=True), writes=False)
    sets = tuple(feature_sets(recipe, checkpoint.spec))
    return FeatureStore(folder / "store", checkpoint, recipe, sets, 0, run, dist)


def probe(folder: Path, pocket: Path, recipe: LinearRecipe, dist: DistContext) -> Any:
    """Probe the synthetic images; return the result, and the images that were forwarded."""
    store = open_store(folder, recipe, dist)
    train, val = (class_folders(pocket / "imagenet", split) for split in ("train", "val"))
    subset = TrainingSubset(train, None, store.load_or_compute(train))
    result = probe_linear(
        subset,
        store.load_or_compute(val),
        recipe,
        val_labels=val.labels,
        store=store,
        seed=0,
    )
    store.run.close()
    return result, store.images_forwarded


def by_hand(folder: Path, pocket: Path, recipe: LinearRecipe, part: torch.Tensor | None) -> Any:
    """Train one classifier per block on a part, each on stored crops that it reads itself."""
    store = open_store(folder, recipe, DistContext())
    train = class_folders(pocket / "imagenet", "train")
    rows = None if part is None else part.tolist()
    labels = torch.tensor(train.labels)
    heads: dict[FeatureSet, ParallelLinearHeads] = {}
    for epoch in range(recipe.epochs):
        stored = store.load_or_compute(train, RandomCrop(epoch % recipe.crops, (0.08, 1.0), 0.5))
        for feature_set in store.feature_sets:
            x = stored.read(feature_set, rows)
            if epoch == 0:
                normaliser = Normaliser(recipe.norm, x)
                heads[feature_set] = ParallelLinearHeads(
                    normaliser, x.shape[1], 10, recipe, seed=0, device=torch.device("cpu")
                )
            truth = labels if part is None else labels[part]
            train_epoch(heads[feature_set], x, truth, recipe, seed=0, epoch=epoch)
    store.run.close()
    return heads


@pytest.mark.heavy
@pytest.mark.parametrize(("crops", "where"), [(3, "memory"), (3, "disk"), (2, "memory")])
def test_the_scores_are_those_of_stored_crops_and_every_crop_is_decoded_once(
    tmp_path: Path, pocket: Path, crops: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "disk":
        monkeypatch.setattr(crop_features, "USABLE", 0.0)
    recipe = replace(RECIPE, crops=crops, norm=("none", "batch"))
    result, forwarded = probe(tmp_path / "run", pocket, recipe, DistContext())
    assert forwarded == (1 + crops) * 60 + 30
    assert len(list((tmp_path / "run" / "store").iterdir())) == 2  # the centre crops alone
    train, val = (class_folders(pocket / "imagenet", split) for split in ("train", "val"))
    store = open_store(tmp_path / "run", recipe, DistContext())
    learnt, held_out = hold_out(torch.tensor(train.labels), recipe.held_out, 0)
    expected = []
    for feature_set, heads in by_hand(tmp_path / "hand", pocket, recipe, learnt).items():
        x = store.load_or_compute(train).read(feature_set, held_out.tolist())
        truth = torch.tensor(train.labels)[held_out]
        expected += (100 * heads.accuracy(x, truth)).flatten().tolist()
    assert [c["held_out_top1"] for c in result.compared] == expected
    chosen = FeatureSet.of(result.chosen)
    every = by_hand(tmp_path / "hand", pocket, recipe, None)[chosen]
    logits = every.predict(store.load_or_compute(val).read(chosen))
    logits = logits[recipe.norm.index(result.chosen["norm"]), 0]
    best = logits.sort(1, descending=True).values[:, :10]
    assert np.array_equal(result.ranking.logits, best.numpy().astype(np.float16))
    store.run.close()


def probe_all(folder: Path, pocket: Path, dist: DistContext) -> dict[str, Any]:
    """Run the three classifiers; return what they chose from, and the scored logits, on rank 0."""
    train, val = (class_folders(pocket / "imagenet", split) for split in ("train", "val"))
    results = {"linear": probe(folder, pocket, RECIPE, dist)[0]}
    few: dict[str, Any] = {"blocks": (2, 3, 4), "pooling": ("mean",)}
    probes: tuple[tuple[str, Callable[..., Any], Any], ...] = (
        ("knn", probe_knn, replace(KNN_POCKET, **few)),
        ("logistic", probe_logistic, replace(LOGISTIC_POCKET, **few, l2=(1e-3, 1e-2))),
    )
    for name, call, recipe in probes:
        store = open_store(folder, recipe, dist)
        subset = TrainingSubset(train, None, store.load_or_compute(train))
        features = store.load_or_compute(val)
        results[name] = call(
            subset, features, store.feature_sets, recipe, seed=0, run=store.run, dist=dist
        )
        store.run.close()
    return {
        name: [r.compared, r.chosen, r.ranking.ranked.tolist(), r.ranking.logits.tolist()]
        for name, r in results.items()
        if r is not None
    }


def write_results(folder: Path, pocket: Path) -> None:
    with init_distributed() as dist:
        results = probe_all(folder, pocket, dist)
        assert bool(results) == dist.is_main
        if dist.is_main:
            (folder / "results.json").write_text(json.dumps(results))


@pytest.mark.slow
def test_two_processes_choose_and_score_as_one_does(tmp_path: Path, pocket: Path) -> None:
    (tmp_path / "two").mkdir()
    two_processes_of(partial(write_results, tmp_path / "two", pocket))
    found = json.loads((tmp_path / "two" / "results.json").read_text())
    expected = probe_all(tmp_path / "one", pocket, DistContext())
    for name, one in expected.items():
        assert found[name][:3] == json.loads(json.dumps(one))[:3], name
        np.testing.assert_allclose(found[name][3], one[3], rtol=2e-3)


def test_features_that_are_not_numbers_are_refused(tmp_path: Path, pocket: Path) -> None:
    store = open_store(tmp_path, RECIPE, DistContext())
    images = class_folders(pocket / "imagenet", "val")
    load = FeatureStore._load_forward

    def nan_in_the_third(self: FeatureStore, *arguments: Any, **named: Any) -> Any:
        forward = load(self, *arguments, **named)
        return lambda pixels: forward(pixels).index_fill(0, torch.tensor([3]), torch.nan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureStore, "_load_forward", nan_in_the_third)
        with pytest.raises(DataError, match=r"under .*vit_pocket.* not numbers .* precision=fp32"):
            store.load_or_compute(images)
    assert not list((tmp_path / "store").iterdir())
    store.run.close()


def test_equal_images_are_scored(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("val", 2)):
        for label in "ab":
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (90, 60, 30)).save(folder / f"{number}.png")
    for task in ("linear", "knn", "fewshot"):
        arguments = ["transfer", task, "--ckpt", "random:vit_pocket", "--quiet", "-o", "blocks=4"]
        arguments += ["--data", str(tmp_path / "data"), "--out", str(tmp_path / task)]
        arguments += ["--fraction", "10%"] if task == "fewshot" else []
        done = CliRunner().invoke(cli, arguments)
        assert done.exception is None, (task, done.exception)
        metrics = json.loads((tmp_path / task / "record.json").read_text())["metrics"]
        assert metrics["top1"] == 50


def test_processes_share_the_memory_of_their_own_machine_alone() -> None:
    machines, needed = ["a", "b", "a", "b"], [1, 10, 100, 1000]
    found = [crop_features.needed_on_machine(machines, rank, needed) for rank in range(4)]
    assert found == [101, 1010, 101, 1010]
    assert crop_features.needed_on_machine(["a"], 0, [7]) == 7


def test_the_plan_counts_every_crop_once_and_no_disk_for_crops_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, checkpoint = DataSize(1_281_167, 50_000, 1000, "ImageNet-1K's"), read_checkpoint(RANDOM)
    recipe = replace(LINEAR_BEIT, img_size=(32, 32))
    per_image = 4 * 2 * 128 * 2  # blocks, poolings, channels, bytes of vit_pocket
    centre, crop = (per_image * images for images in (1_331_167, 1_281_167))
    for free, disk in ((2.1 * crop, centre), (1.9 * crop, centre + crop)):
        monkeypatch.setattr(crop_features, "available_memory", lambda _, free=free: free)
        work = plan_frozen(recipe, checkpoint, data, torch.device("cpu"))
        assert work.steps == 101 * math.ceil(1_281_167 / 256) + math.ceil(50_000 / 256)
        assert f"{101 * 1_281_167 + 50_000:,} images to decode" in work.counted
        assert work.disk == pytest.approx(disk, rel=1e-3)  # one crop at a time, not a hundred
        assert ("kept on disk" in work.held) == (disk > centre)
