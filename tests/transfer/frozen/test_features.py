"""Stored features belong to one checkpoint, one list of images and one preprocessing, and are computed once."""

from __future__ import annotations

import errno
import hashlib
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
from torch import Tensor
from torchvision.transforms.functional import normalize, to_tensor

import transfer.frozen.feature_file as feature_file
import transfer.frozen.feature_store as feature_store
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.sources import ImageList
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DataError, UsageError
from simmim_bench.probes.norms import Normaliser
from simmim_bench.runs.run_dir import RunDir
from transfer.frozen.feature_store import FeatureStore, StoredFeatures
from transfer.frozen.features import FeatureSet, RandomCrop, feature_sets
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


def features(images: ImageList, run: RunDir, **changed: Any) -> StoredFeatures:
    return store(run, **changed).load_or_compute(images)


@pytest.mark.parametrize(
    ("arch", "narrowest"), [("vit_pocket", 0), ("swin_pocket", 48), ("resnet_pocket", 64)]
)
def test_features_are_the_pooled_tokens_of_every_block(
    images: ImageList, run: RunDir, arch: str, narrowest: int
) -> None:
    opened = store(run, ckpt=f"random:{arch}")
    found = opened.load_or_compute(images)
    checkpoint = read_checkpoint(f"random:{arch}")
    model = load_backbone(checkpoint, RECIPE.img_size, seed=0).eval()
    assert len(found) == len(images)
    assert len(opened.feature_sets) == (4 * 3 if arch == "vit_pocket" else 4)

    def width(feature_set: FeatureSet) -> int:
        return narrowest * 2 ** (feature_set.block - 1) or 128

    for number in (0, 8, 29):
        pixels = to_tensor(Image.open(images.paths[number]).convert("RGB"))
        with torch.no_grad():
            expected = model.forward_pooled(
                normalize(pixels, list(checkpoint.mean), list(checkpoint.std))[None]
            )[0]
        for feature_set in opened.feature_sets:
            block = expected[feature_set.block - 1, :, : width(feature_set)]
            pooled = [
                block[checkpoint.spec.poolings.index(name)]
                for name in feature_set.pooling.split("+")
            ]
            row = found.read(feature_set)[number].float()
            torch.testing.assert_close(row, torch.cat(pooled), rtol=2e-3, atol=2e-4)
            assert torch.equal(found.read(feature_set, [number])[0].float(), row)


def test_a_second_task_runs_no_forward_pass(images: ImageList, run: RunDir) -> None:
    assert not store(run).has(images)
    first = features(images, run)
    assert store(run).has(images)
    # Neither the batch size nor the choice of a candidate changes the features, nor does another task's default.
    feature_set = FeatureSet(2, "cls+mean")
    for recipe in (
        replace(RECIPE, forward_batch_size=3, k=(5,)),
        LOGISTIC_POCKET,
        LINEAR_POCKET,
    ):
        second = store(run, recipe=recipe)
        again = second.load_or_compute(images)
        assert torch.equal(again.read(feature_set), first.read(feature_set))
        assert second.images_forwarded == 0


def test_only_requested_features_are_stored(images: ImageList, run: RunDir) -> None:
    everything = features(images, run)
    for blocks, number in (((2,), 2), ((-1,), 4)):
        fewer = features(images, run, recipe=replace(RECIPE, blocks=blocks, pooling=("cls",)))
        feature_set = FeatureSet(number, "cls")
        assert torch.equal(fewer.read(feature_set), everything.read(feature_set))
    sizes = sorted(p.stat().st_size for p in (run.path / "store").rglob("features.npy"))
    assert sizes[0] == sizes[1] < sizes[2] / 7


def test_random_crops_depend_on_seed_and_number_and_not_on_the_batch(
    images: ImageList, run: RunDir
) -> None:
    feature_set, crop = FeatureSet(3, "mean"), RandomCrop(0, (0.2, 0.6), 0.5)

    def read(opened: FeatureStore, crop: RandomCrop | None) -> Tensor:
        return opened.load_or_compute(images, crop).read(feature_set)

    first = read(store(run), crop)
    other = read(store(run), replace(crop, number=1))
    store(run).discard(images, crop)
    assert len(list((run.path / "store").iterdir())) == 1
    again = read(store(run, recipe=replace(RECIPE, forward_batch_size=30)), crop)
    torch.testing.assert_close(first.float(), again.float(), rtol=2e-3, atol=2e-3)
    assert (first - other).abs().max() > 0.05
    assert (first - read(store(run), None)).abs().max() > 0.05


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


def test_features_larger_than_the_free_disk_space_are_refused_before_the_pass(
    images: ImageList, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(run.path)._replace(free=1000)
    monkeypatch.setattr("transfer.frozen.feature_file.shutil.disk_usage", lambda _: usage)
    with pytest.raises(
        DataError, match=r"need 0.0 GB, but .* has 0.0 GB free; choose another --features"
    ):
        features(images, run)
    assert not list((run.path / "store").iterdir())


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"recipe": replace(RECIPE, img_size=(16, 16))},
        {"recipe": replace(RECIPE, resizing="fast")},
        {"ckpt": "random:swin_pocket"},
    ],
    ids=["seed", "size", "resizing", "checkpoint"],
)
def test_other_features_have_another_directory(
    images: ImageList, run: RunDir, changed: dict[str, Any]
) -> None:
    features(images, run)
    features(images, run, **changed)
    features(images.subset(range(9)), run)
    assert len(list((run.path / "store").iterdir())) == 3


def test_the_identity_of_a_padded_swins_features_states_the_padding(
    images: ImageList, run: RunDir
) -> None:
    identities = []
    for window in (None, 3):  # stages of 16, 8, 4 and 2 tokens; windows of 4 divide them
        recipe = replace(RECIPE, window_size=window)
        features(images.subset(range(2)), run, ckpt="random:swin_pocket", recipe=recipe)
    for file in run.path.rglob("features.json"):
        identity = json.loads(file.read_text())
        identities.append((identity["window_size"], identity.get("padding")))
    assert sorted(identities, key=str) == [(3, "before the shift"), (None, None)]


def test_features_of_another_precision_are_stored_separately(
    images: ImageList, run: RunDir
) -> None:
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
    stored = {json.loads(p.read_text())["precision"] for p in run.path.rglob("features.json")}
    assert stored == {"fp32", "bf16"}


@pytest.mark.parametrize("damage", ["another checkpoint", "bit", "cut", "no array", "empty"])
def test_features_of_another_checkpoint_or_damaged_ones_are_refused(
    images: ImageList, run: RunDir, damage: str
) -> None:
    features(images, run)
    (folder,) = (run.path / "store").iterdir()
    if damage == "another checkpoint":
        found = json.loads((folder / "features.json").read_text())
        (folder / "features.json").write_text(json.dumps({**found, "checkpoint": "0" * 64}))
        message = "were computed with a different checkpoint; remove the directory"
    elif damage == "cut":
        content = (folder / "features.npy").read_bytes()
        (folder / "features.npy").write_bytes(content[: len(content) // 2])
        message = "are damaged"
    elif damage == "bit":
        content = (folder / "features.npy").read_bytes()
        (folder / "features.npy").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        message = "content differs from its SHA-256"
    elif damage == "empty":
        (folder / "features.npy").write_bytes(b"")
        message = "are damaged"
    else:
        np.save(folder / "features.npy", np.zeros(3))
        message = "are damaged"
    with pytest.raises(DataError, match=message):
        features(images, run)


def test_features_stored_without_hashes_are_computed_again(images: ImageList, run: RunDir) -> None:
    first = features(images, run).read(FeatureSet(2, "cls"))
    next((run.path / "store").rglob("features.sha256.json")).unlink()
    again = store(run)
    assert torch.equal(again.load_or_compute(images).read(FeatureSet(2, "cls")), first)
    assert again.images_forwarded == len(images)
    assert store(run).has(images)


def test_processes_together_check_every_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_file, "BLOCK", 10)
    content = bytearray(range(95))
    (tmp_path / "features.npy").write_bytes(content)
    hashes = [hashlib.sha256(content[i : i + 10]).hexdigest() for i in range(0, 95, 10)]
    assert feature_file.hash_blocks(tmp_path / "features.npy") == hashes
    (tmp_path / "features.sha256.json").write_text(json.dumps(hashes))
    for place in (0, 13, 94):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (tmp_path / "features.npy").write_bytes(damaged)
        found = [feature_file.is_intact(tmp_path, rank, 3) for rank in range(3)]
        assert found == [rank != place // 10 % 3 for rank in range(3)]


def test_an_interrupted_pass_leaves_no_files(
    images: ImageList, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = forward_batches

    def stop_in_the_middle(*arguments: Any, **named: Any) -> Any:
        for number, batch in enumerate(batches(*arguments, **named)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(feature_store, "forward_batches", stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        features(images, run)
    assert not list((run.path / "store").iterdir())


def test_two_runs_that_write_the_same_features_do_not_disturb_each_other(
    images: ImageList, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, passes = forward_batches, 0

    def run_another_pass(*arguments: Any, **named: Any) -> Any:
        nonlocal passes
        passes += 1
        first = passes == 1
        for number, batch in enumerate(batches(*arguments, **named)):
            if first and number == 2:
                features(images, run)
            yield batch

    monkeypatch.setattr(feature_store, "forward_batches", run_another_pass)
    feature_set = FeatureSet(2, "mean")
    found = features(images, run).read(feature_set)
    assert passes == 2
    assert len(list((run.path / "store").iterdir())) == 1
    monkeypatch.undo()
    alone = replace(store(run), folder=run.path / "alone").load_or_compute(images)
    assert torch.equal(found, alone.read(feature_set))


def test_unfinished_or_partly_removed_features_are_computed_again(
    images: ImageList, run: RunDir
) -> None:
    feature_set = FeatureSet(2, "mean")
    first = features(images, run).read(feature_set)
    (folder,) = (run.path / "store").iterdir()
    (folder / "features.json").unlink()
    (folder / "features.npy").write_bytes(b"")
    assert not store(run).has(images)
    assert torch.equal(features(images, run).read(feature_set), first)
    assert list((run.path / "store").iterdir()) == [folder]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve space")
def test_disk_space_is_reserved_before_the_pass(
    images: ImageList, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, reserved = forward_batches, []

    def measure(*arguments: Any, **named: Any) -> Any:
        (file,) = (run.path / "store").rglob("features.npy")
        reserved.append(512 * file.stat().st_blocks)
        return batches(*arguments, **named)

    monkeypatch.setattr(feature_store, "forward_batches", measure)
    features(images, run)
    assert reserved[0] >= 2 * 4 * 2 * len(images) * 128  # blocks, poolings, images, channels

    def disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transfer.frozen.feature_file.os.posix_fallocate", disk_full)
    with pytest.raises(DataError, match=r"No space left .* another --features"):
        features(images.subset(range(9)), run)


def test_a_norm_ignores_the_padding_of_a_narrow_stage(images: ImageList, run: RunDir) -> None:
    first = features(images, run, ckpt="random:swin_pocket").read(FeatureSet(1, "mean"))
    normed = Normaliser(["layer"], first)(first)[0]
    assert normed.shape == (len(images), 48)
    torch.testing.assert_close(
        normed.std(1, correction=0), torch.ones(len(images)), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(("count", "size"), [(30, 1), (30, 4), (30, 7), (2, 3)])
def test_each_process_forwards_consecutive_images_and_each_image_once(
    run: RunDir, count: int, size: int
) -> None:
    dataset: Any = [(torch.full((3, 4, 4), float(number)), 0) for number in range(count)]
    by_process = [
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
    assert [number for numbers in by_process for number in numbers] == list(range(count))
    assert max(map(len, by_process)) - min(map(len, by_process)) <= 1
