"""Claims about kept features: whose they are, and that they are computed once."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

import transfer.frozen.features as module
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.sources import ImageList, class_folders
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DataError, UsageError
from simmim_bench.runs.run_dir import RunDir
from transfer.frozen.feature_store import Features, FeatureStore
from transfer.frozen.features import Crop, FeatureSet, feature_sets
from transfer.frozen.norms import Normaliser
from transfer.frozen.recipes import KNN_POCKET, LINEAR_POCKET, LOGISTIC_POCKET, FrozenRecipe
from transfer.inference import forward_batches

RECIPE = replace(KNN_POCKET, forward_batch_size=7)
RANDOM = "random:vit_pocket"


@pytest.fixture
def images(pocket: Path) -> ImageList:
    return class_folders(pocket / "imagenet", "val")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    opened = RunDir(tmp_path, Display(quiet=True), writes=False)
    yield opened
    opened.close()


def store(
    run: RunDir, *, ckpt: str = RANDOM, recipe: FrozenRecipe = RECIPE, seed: int = 0
) -> FeatureStore:
    checkpoint = read_checkpoint(ckpt)
    sets = tuple(feature_sets(recipe, checkpoint.spec))
    return FeatureStore(run.path / "store", checkpoint, recipe, sets, seed, run, DistContext())


def features(images: ImageList, run: RunDir, **changed: Any) -> Features:
    return store(run, **changed).of(images)


@pytest.mark.parametrize(
    ("arch", "narrowest"), [("vit_pocket", 0), ("swin_pocket", 48), ("resnet_pocket", 64)]
)
def test_features_are_the_pooled_tokens_of_every_block(
    images: ImageList, run: RunDir, arch: str, narrowest: int
) -> None:
    kept = store(run, ckpt=f"random:{arch}")
    found = kept.of(images)
    checkpoint = read_checkpoint(f"random:{arch}")
    model = load_backbone(checkpoint, RECIPE.img_size, seed=0).eval()
    assert len(found) == len(images)
    assert len(kept.sets) == (4 * 3 if arch == "vit_pocket" else 4)

    def width(one: FeatureSet) -> int:
        return narrowest * 2 ** (one.block - 1) or 128

    for number in (0, 8, 29):
        pixels = to_tensor(Image.open(images.paths[number]).convert("RGB"))
        with torch.no_grad():
            wanted = model.forward_pooled(
                normalize(pixels, list(checkpoint.mean), list(checkpoint.std))[None]
            )[0]
        for one in kept.sets:
            parts = [
                wanted[one.block - 1, checkpoint.spec.poolings.index(part), : width(one)]
                for part in one.pooling.split("+")
            ]
            row = found.read(one)[number].float()
            torch.testing.assert_close(row, torch.cat(parts), rtol=2e-3, atol=2e-4)
            assert torch.equal(found.read(one, [number])[0].float(), row)


def test_a_second_task_makes_no_pass(
    images: ImageList, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not store(run).has(images)
    first = features(images, run)
    assert store(run).has(images)

    def no_pass(*_: object, **__: object) -> None:
        raise AssertionError("the backbone was asked again")

    monkeypatch.setattr(module, "forward_batches", no_pass)
    # What does not change the features changes nothing: the batch, the choices made on them.
    again = features(images, run, recipe=replace(RECIPE, forward_batch_size=3, k=(5,)))
    one = FeatureSet(2, "cls+mean")
    assert torch.equal(again.read(one), first.read(one))
    # Another task's defaults ask for the same.
    features(images, run, recipe=LOGISTIC_POCKET)
    features(images, run, recipe=LINEAR_POCKET)


def test_only_what_is_asked_for_is_kept(images: ImageList, run: RunDir) -> None:
    everything = features(images, run)
    for blocks, number in (((2,), 2), ((-1,), 4)):
        fewer = features(images, run, recipe=replace(RECIPE, blocks=blocks, pooling=("cls",)))
        one = FeatureSet(number, "cls")
        assert torch.equal(fewer.read(one), everything.read(one))
    sizes = sorted(p.stat().st_size for p in (run.path / "store").rglob("features.npy"))
    assert sizes[0] == sizes[1] < sizes[2] / 7


def test_random_crops_follow_from_seed_and_number_whatever_the_batch(
    images: ImageList, run: RunDir
) -> None:
    one, crop = FeatureSet(3, "mean"), Crop(0, (0.2, 0.6), 0.5)
    first = store(run).of(images, crop).read(one)
    other = store(run).of(images, replace(crop, number=1)).read(one)
    store(run).drop(images, crop)
    assert len(list((run.path / "store").iterdir())) == 1
    again = store(run, recipe=replace(RECIPE, forward_batch_size=30)).of(images, crop).read(one)
    torch.testing.assert_close(first.float(), again.float(), rtol=2e-3, atol=2e-3)
    assert (first - other).abs().max() > 0.05
    assert (first - features(images, run).read(one)).abs().max() > 0.05


@pytest.mark.parametrize(
    ("ckpt", "changed", "message"),
    [
        (RANDOM, {"blocks": (8,)}, "vit_pocket has no block 8; choose from 1 to 4, .* -o blocks=4"),
        (RANDOM, {"blocks": (0,)}, "has no block 0; .* -o blocks=1"),
        ("random:swin_pocket", {"pooling": ("cls",)}, "no class token; use -o pooling=mean"),
    ],
)
def test_features_that_a_backbone_does_not_have_are_refused(
    run: RunDir, ckpt: str, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        store(run, ckpt=ckpt, recipe=replace(RECIPE, **changed))


def test_features_that_do_not_fit_on_the_disk_are_refused_before_the_pass(
    images: ImageList, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(run.path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"need 0.0 GB, 0.0 are free .* choose another --features"):
        features(images, run)
    assert not list((run.path / "store").iterdir())


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"recipe": replace(RECIPE, img_size=(16, 16))}, {"ckpt": "random:swin_pocket"}],
    ids=["seed", "size", "checkpoint"],
)
def test_other_features_have_another_place(
    images: ImageList, run: RunDir, changed: dict[str, Any]
) -> None:
    features(images, run)
    features(images, run, **changed)
    features(images.subset(range(9)), run)
    assert len(list((run.path / "store").iterdir())) == 3


def test_features_are_of_the_precision_that_computed_them(images: ImageList, run: RunDir) -> None:
    def precision_of(request: Literal["auto", "fp32", "bf16"]) -> str:
        recipe = replace(RECIPE, precision=request, blocks=(1,))
        features(images, run, recipe=recipe)
        newest = max((run.path / "store").iterdir(), key=lambda folder: folder.stat().st_ctime_ns)
        found: str = json.loads((newest / "features.json").read_text())["precision"]
        return found

    assert precision_of("auto") == "fp32"
    assert precision_of("fp32") == "fp32"
    assert len(list((run.path / "store").iterdir())) == 1
    assert precision_of("bf16") == "bf16"
    kept = {json.loads(p.read_text())["precision"] for p in run.path.rglob("features.json")}
    assert kept == {"fp32", "bf16"}


@pytest.mark.parametrize("damage", ["another checkpoint", "cut", "no array", "empty"])
def test_features_of_another_checkpoint_or_damaged_ones_are_refused(
    images: ImageList, run: RunDir, damage: str
) -> None:
    features(images, run)
    (folder,) = (run.path / "store").iterdir()
    if damage == "another checkpoint":
        found = json.loads((folder / "features.json").read_text())
        (folder / "features.json").write_text(json.dumps({**found, "checkpoint": "0" * 64}))
        message = r"not those of this checkpoint and data \(another checkpoint\)"
    elif damage == "cut":
        content = (folder / "features.npy").read_bytes()
        (folder / "features.npy").write_bytes(content[: len(content) // 2])
        message = "are damaged"
    elif damage == "empty":
        (folder / "features.npy").write_bytes(b"")
        message = "are damaged"
    else:
        np.save(folder / "features.npy", np.zeros(3))
        message = "are damaged"
    with pytest.raises(DataError, match=message):
        features(images, run)


def test_an_interrupted_pass_leaves_nothing(
    images: ImageList, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = module.forward_batches

    def stop_in_the_middle(*arguments: Any, **named: Any) -> Any:
        for number, batch in enumerate(batches(*arguments, **named)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(module, "forward_batches", stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        features(images, run)
    assert not list((run.path / "store").iterdir())


def test_two_runs_that_write_the_same_features_do_not_disturb_each_other(
    images: ImageList, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, passes = module.forward_batches, 0

    def let_another_run_pass_by(*arguments: Any, **named: Any) -> Any:
        nonlocal passes
        passes += 1
        first = passes == 1
        for number, batch in enumerate(batches(*arguments, **named)):
            if first and number == 2:
                features(images, run)
            yield batch

    monkeypatch.setattr(module, "forward_batches", let_another_run_pass_by)
    one = FeatureSet(2, "mean")
    found = features(images, run).read(one)
    assert passes == 2
    assert len(list((run.path / "store").iterdir())) == 1
    monkeypatch.undo()
    alone = replace(store(run), folder=run.path / "alone").of(images)
    assert torch.equal(found, alone.read(one))


def test_features_that_were_not_finished_or_half_removed_are_made_again(
    images: ImageList, run: RunDir
) -> None:
    one = FeatureSet(2, "mean")
    first = features(images, run).read(one)
    (folder,) = (run.path / "store").iterdir()
    (folder / "features.json").unlink()
    (folder / "features.npy").write_bytes(b"")
    assert not store(run).has(images)
    assert torch.equal(features(images, run).read(one), first)
    assert list((run.path / "store").iterdir()) == [folder]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve space")
def test_the_space_is_taken_before_the_pass(
    images: ImageList, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, taken = module.forward_batches, []

    def look(*arguments: Any, **named: Any) -> Any:
        (file,) = (run.path / "store").rglob("features.npy")
        taken.append(512 * file.stat().st_blocks)
        return batches(*arguments, **named)

    monkeypatch.setattr(module, "forward_batches", look)
    features(images, run)
    assert taken[0] >= 2 * 4 * 2 * len(images) * 128  # blocks, poolings, images, channels

    def disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", disk_full)
    with pytest.raises(DataError, match=r"No space left .* another --features"):
        features(images.subset(range(9)), run)


def test_a_norm_sees_no_channel_that_a_narrow_stage_does_not_have(
    images: ImageList, run: RunDir
) -> None:
    first = features(images, run, ckpt="random:swin_pocket").read(FeatureSet(1, "mean"))
    normed = Normaliser(["layer"], first)(first)[0]
    assert normed.shape == (len(images), 48)
    torch.testing.assert_close(
        normed.std(1, correction=0), torch.ones(len(images)), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(("count", "size"), [(30, 1), (30, 4), (30, 7), (2, 3)])
def test_each_process_takes_neighbours_and_none_is_taken_twice(
    run: RunDir, count: int, size: int
) -> None:
    dataset = [(torch.full((3, 4, 4), float(number)), 0) for number in range(count)]
    shares = [
        [
            number
            for numbers, rows in forward_batches(
                lambda pixels: pixels[:, 0, 0, 0],
                dataset,
                batch_size=4,
                num_workers=0,
                precision="fp32",
                run=run,
                dist=DistContext(rank, size),
                description="numbers",
            )
            for number, row in zip(numbers, rows, strict=True)
            if number == row
        ]
        for rank in range(size)
    ]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
