"""A dense probe predicts what an independent loop over patches and pixels predicts, and needs no MMSegmentation."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pytest
import torch
from PIL import Image
from support.cli import fails, run
from support.commands import forget, run_command, two_processes_of
from support.dense import KNN, LOGISTIC, probe, write_data
from support.segmentation import assert_counts_every_labelled_pixel, entries
from torchvision.transforms.functional import normalize, to_tensor

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.diagnostics.estimate import DataSize
from simmim_bench.errors import DataError, UsageError
from simmim_bench.overrides import override
from simmim_bench.results.record import read_record
from simmim_bench.tasks import TASKS
from transfer.dense.estimate import plan_dense
from transfer.dense.recipes import ADE20K_KNN, ADE20K_LOGISTIC, DenseRecipe
from transfer.tasks import frameworks_for

AnyDense = TypeVar("AnyDense", bound=DenseRecipe)


def single(recipe: AnyDense) -> AnyDense:
    """Return a recipe with the last map and no norm as the only ones."""
    return replace(recipe, blocks=(-1,), norm=("none",))


def bands(colours: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of 32 x 32 pixels with vertical bands of 8 pixels, and its labels."""
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
    classes = np.repeat(np.array(colours), 8)[None].repeat(32, 0)
    return palette[classes], (classes + 1).astype(np.uint8)


@pytest.mark.parametrize(
    "recipe", [replace(single(KNN), k=(1,)), replace(single(LOGISTIC), l2=(1e-7,))]
)
def test_classes_that_align_with_patches_are_predicted_without_an_error(
    recipe: DenseRecipe, tmp_path: Path
) -> None:
    """The validation images are the training images, so that each patch is its own nearest neighbour."""
    pairs = [bands([0, 1, 2, 3]), bands([3, 0, 1, 2]), bands([2, 2, 0, 1])]
    data = write_data(tmp_path / "data", {"training": pairs, "validation": pairs}, classes=4)
    record = probe(tmp_path / "run", data, recipe)
    assert record.metrics["miou"] == 100
    assert record.details["candidates"] == 1
    assert record.details["patches"] == 3 * 64


def test_a_run_equals_loops_over_patches_and_pixels(tmp_path: Path) -> None:
    """Images are resized, cut into two overlapping windows, and have ignored pixels."""
    generator = np.random.default_rng(0)

    def pair() -> tuple[np.ndarray, np.ndarray]:
        coarse = generator.integers(0, 256, (5, 7, 3), np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((56, 40), Image.Resampling.BICUBIC))
        return image, generator.integers(0, 4, (5, 7)).astype(np.uint8).repeat(8, 0).repeat(8, 1)

    images = {"training": [pair() for _ in range(3)], "validation": [pair() for _ in range(2)]}
    data = write_data(tmp_path / "data", images, classes=3)
    recipe = replace(single(KNN), k=(5,))
    probe(tmp_path / "run", data, recipe, seed=4, label_maps=True)

    model = load_backbone("random:vit_pocket", (32, 32), seed=4).eval()
    checkpoint = read_checkpoint("random:vit_pocket")
    corners = [0, 12]  # of 44 columns: the smallest width at which 40 x 56 pixels cover 32 x 32

    def features(image: np.ndarray) -> list[torch.Tensor]:
        resized = Image.fromarray(image).resize((44, 32), Image.Resampling.BICUBIC)
        found = []
        for left in corners:
            window = resized.crop((left, 0, left + 32, 32))
            pixels = normalize(to_tensor(window), checkpoint.mean, checkpoint.std)
            with torch.no_grad():
                found.append(model.forward_maps(pixels[None])[-1][0].half().float())
        return found

    bank, fractions = [], []
    for image, labels in images["training"]:
        small = np.asarray(Image.fromarray(labels).resize((44, 32), Image.Resampling.NEAREST))
        for left, cells in zip(corners, features(image), strict=True):
            for y in range(8):
                for x in range(8):
                    patch = small[4 * y : 4 * y + 4, left + 4 * x : left + 4 * x + 4]
                    counts = [int((patch == label).sum()) for label in (1, 2, 3)]
                    if sum(counts):
                        bank.append(cells[:, y, x] / cells[:, y, x].norm())
                        fractions.append(np.array(counts) / sum(counts))

    def interpolated(scores: np.ndarray, y: float, x: float) -> np.ndarray:
        """Interpolate (h, w, K) at a position in cells."""
        y, x = (min(max(p, 0), n - 1) for p, n in zip((y, x), scores.shape, strict=False))
        top, left = int(y), int(x)
        bottom, right = min(top + 1, scores.shape[0] - 1), min(left + 1, scores.shape[1] - 1)
        b, a = y - top, x - left
        upper = (1 - a) * scores[top, left] + a * scores[top, right]
        lower = (1 - a) * scores[bottom, left] + a * scores[bottom, right]
        return np.asarray((1 - b) * upper + b * lower)

    for number, (image, _) in enumerate(images["validation"]):
        total, covered = np.zeros((32, 44, 3)), np.zeros((32, 44, 1))
        for left, cells in zip(corners, features(image), strict=True):
            votes = np.zeros((8, 8, 3))
            for y in range(8):
                for x in range(8):
                    query = cells[:, y, x] / cells[:, y, x].norm()
                    similar = torch.stack(bank) @ query
                    nearest = similar.argsort(descending=True)[:5]
                    weights = (similar[nearest].double() / 0.02).softmax(0)
                    votes[y, x] = sum(
                        float(w) * fractions[n] for w, n in zip(weights, nearest, strict=True)
                    )
            for y in range(32):
                for x in range(32):
                    total[y, left + x] += interpolated(
                        votes, (y + 0.5) / 4 - 0.5, (x + 0.5) / 4 - 0.5
                    )
                    covered[y, left + x] += 1
        mean = total / covered
        expected = [
            [
                interpolated(mean, (y + 0.5) * 32 / 40 - 0.5, (x + 0.5) * 44 / 56 - 0.5).argmax()
                for x in range(56)
            ]
            for y in range(40)
        ]
        with Image.open(tmp_path / f"run/predictions/label_maps/{number}.png") as stored:
            found = np.asarray(stored).astype(int) - 1
        assert np.mean(found != np.array(expected)) < 0.002  # rounding, where two classes are equal
    assert_counts_every_labelled_pixel(tmp_path / "run", data)


def test_the_choice_does_not_depend_on_the_validation_labels(pocket: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(pocket / "ade20k", tmp_path / "data"))
    recipe = replace(LOGISTIC, patches=200, blocks=(2, 4), l2=(1e-4, 1e-2))
    first = probe(tmp_path / "first", data, recipe)
    for path in (data / "annotations/validation").glob("*.png"):
        labels = np.asarray(Image.open(path))
        Image.fromarray(np.where(labels > 0, 17 - labels, 0).astype(np.uint8)).save(path)
    second = probe(tmp_path / "second", data, recipe)
    compared = [
        json.loads((tmp_path / name / "compared.json").read_text()) for name in ("first", "second")
    ]
    assert compared[0] == compared[1]
    assert len(compared[0]) == first.details["candidates"] == 4
    best = max(compared[0], key=lambda candidate: candidate["held_out_miou"])
    assert first.details["held_out_miou"] == best["held_out_miou"]
    assert first.metrics != second.metrics


def run_without_mmseg(arguments: tuple[str, ...]) -> None:
    """Run the command line in a process that cannot import MMSegmentation."""
    frameworks = ("mmseg", "mmengine", "mmcv")
    forget(*frameworks)  # which the server has imported
    cast(Any, sys.modules).update(dict.fromkeys(frameworks))  # an import of None fails
    run_command(arguments)


@pytest.mark.heavy
def test_two_processes_without_mmsegmentation_score_as_one(pocket: Path, tmp_path: Path) -> None:
    recipe = replace(KNN, patches=400, forward_batch_size=1)
    named = f"scenes={pocket / 'ade20k'}"
    arguments = (
        *("transfer", "ade20k", "--ckpt", "random:vit_pocket", "--data", named),
        *("--recipe", "ade20k_knn_pocket", "-o", "img_size=32", "-o", "patches=400"),
        *("-o", "forward_batch_size=1", "--out", str(tmp_path / "two"), "--label-maps"),
    )
    two_processes_of(partial(run_without_mmseg, arguments))
    one = probe(tmp_path / "one", pocket / "ade20k", recipe)
    two = read_record(tmp_path / "two" / "record.json")
    assert (two.data["name"], one.data.get("name")) == ("scenes", None)
    assert np.array_equal(entries(tmp_path / "one"), entries(tmp_path / "two"))
    choices = [(tmp_path / name / "compared.json").read_text() for name in ("one", "two")]
    assert choices[0] == choices[1]
    assert one.evaluated == len(list((pocket / "ade20k/images/validation").iterdir()))
    assert len(list((tmp_path / "two/predictions/label_maps").iterdir())) == one.evaluated
    assert (tmp_path / "two/predictions.png").is_file()
    for command in ("build", "check"):
        code, _, err = run("leaderboard", command, tmp_path / "two", "--out", tmp_path / "tables")
        assert code == 0, err
    evaluate = ("evaluate", "ade20k", "--ckpt", tmp_path / "two", "--data", pocket / "ade20k")
    assert "trains no model" in fails(2, *evaluate, "--out", tmp_path / "evaluated")


def test_frameworks_follow_the_recipe() -> None:
    task = TASKS["ade20k"]
    assert frameworks_for(task) == {"mmengine", "mmcv", "mmseg"}
    for recipe in (ADE20K_KNN, ADE20K_LOGISTIC):
        assert frameworks_for(task, recipe) == set()
    assert frameworks_for(TASKS["coco"], ADE20K_KNN) == {"detectron2"}


def test_images_and_recipes_that_cannot_be_used_are_refused(pocket: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(pocket / "ade20k", tmp_path / "data"))
    first, *others = sorted((data / "images/training").iterdir())
    for path in others:
        path.unlink()
    with pytest.raises(DataError, match=r"training has 1 image .* too few to hold out"):
        probe(tmp_path / "few", data, KNN)
    assert probe(tmp_path / "single", data, replace(single(KNN), k=(3,))).metrics
    first.write_bytes(b"no image")
    with pytest.raises(DataError, match=f"{first.name} cannot be"):
        probe(tmp_path / "damaged", data, replace(single(KNN), k=(3,)))
    with pytest.raises(UsageError, match=r"slide_stride .* is larger than the window"):
        override(ADE20K_KNN, ["slide_stride=600"])


def test_the_plan_counts_the_windows_of_every_pass() -> None:
    """Images of 4 to 3 are two windows of 512 pixels; 200 are held out for 4 maps with 2 norms."""
    recipe = replace(ADE20K_KNN, img_size=(64, 64))
    checkpoint = read_checkpoint("random:vit_pocket")
    plan = plan_dense(recipe, checkpoint, DataSize(1000, 100, 150, "your"), torch.device("cpu"))
    assert plan.steps == -(-2 * (1000 + 8 * 200 + 100) // 16)
    assert "2 windows" not in plan.counted
    assert plan.load is not None
