"""Claims about kept features: whose they are, and that they are computed once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

import transfer.features as module
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoint import read_checkpoint
from simmim_bench.display import Display
from simmim_bench.errors import DataError
from simmim_bench.rundir import RunDir
from simmim_bench.sources import ImageList, class_folders
from simmim_bench.team import Team
from transfer.features import BlockFeatures, are_kept, block_features
from transfer.recipes import PROBE_POCKET

RECIPE = replace(PROBE_POCKET, batch_size=7)
RANDOM = "random:vit_pocket"


@pytest.fixture
def images(pocket: Path) -> ImageList:
    return class_folders(pocket / "imagenet", "val")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    opened = RunDir(tmp_path, Display(quiet=True), writes=False)
    yield opened
    opened.close()


def features(images: ImageList, run: RunDir, **changed: Any) -> BlockFeatures:
    arguments = {"recipe": RECIPE, "store": run.path / "store", "seed": 0, **changed}
    checkpoint = read_checkpoint(arguments.pop("ckpt", RANDOM))
    return block_features(
        checkpoint, images, arguments.pop("recipe"), run=run, team=Team(), **arguments
    )


def test_features_are_the_mean_tokens_of_every_block(images: ImageList, run: RunDir) -> None:
    found = features(images, run)
    checkpoint = read_checkpoint(RANDOM)
    model = load_backbone(checkpoint, RECIPE.img_size, seed=0).eval()
    assert (found.blocks, len(found)) == (model.spec.num_blocks, len(images))
    for number in (0, 8, 29):
        pixels = to_tensor(Image.open(images.paths[number]).convert("RGB"))
        with torch.no_grad():
            wanted = model.forward_block_means(
                normalize(pixels, list(checkpoint.mean), list(checkpoint.std))[None]
            )[0]
        for block in range(found.blocks):
            torch.testing.assert_close(
                found.block(block)[number], wanted[block], rtol=2e-3, atol=2e-4
            )
            assert torch.equal(found.block(block, [number])[0], found.block(block)[number])


def test_a_second_task_makes_no_pass(
    images: ImageList, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = read_checkpoint(RANDOM)
    assert not are_kept(checkpoint, images, RECIPE, store=run.path / "store", seed=0)
    first = features(images, run)
    assert are_kept(checkpoint, images, RECIPE, store=run.path / "store", seed=0)

    def no_pass(*_: object, **__: object) -> None:
        raise AssertionError("the backbone was asked again")

    monkeypatch.setattr(module, "forward_batches", no_pass)
    # What does not change the features changes nothing: the batch, the choices made on them.
    again = features(images, run, recipe=replace(RECIPE, batch_size=3, k=5, l2=(1.0,)))
    assert torch.equal(again.block(1), first.block(1))


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


@pytest.mark.parametrize("damage", ["another checkpoint", "no description", "cut", "no array"])
def test_features_of_another_checkpoint_or_damaged_ones_are_refused(
    images: ImageList, run: RunDir, damage: str
) -> None:
    features(images, run)
    (folder,) = (run.path / "store").iterdir()
    if damage == "another checkpoint":
        found = json.loads((folder / "features.json").read_text())
        (folder / "features.json").write_text(json.dumps({**found, "checkpoint": "0" * 64}))
        message = r"not those of this checkpoint and data \(another checkpoint\)"
    elif damage == "no description":
        (folder / "features.json").unlink()
        message = "is not there"
    elif damage == "cut":
        content = (folder / "features.npy").read_bytes()
        (folder / "features.npy").write_bytes(content[: len(content) // 2])
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
