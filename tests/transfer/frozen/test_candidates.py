"""Candidates are compared on held-out images of every class, and every class is still learnt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from simmim_bench.cli.main import cli
from simmim_bench.data.subsets import balanced_subset
from simmim_bench.errors import DataError
from transfer.frozen.candidates import assign_folds, hold_out


def counts(labels: torch.Tensor) -> list[int]:
    return torch.bincount(labels, minlength=3).tolist()


def test_every_class_holds_out_its_fraction_and_keeps_at_least_one() -> None:
    labels = torch.tensor([0] * 500 + [1] * 2 + [2] * 1)
    learnt, held_out = hold_out(labels, 0.2, seed=0)
    assert counts(labels[held_out]) == [100, 1, 0]
    assert counts(labels[learnt]) == [400, 1, 1]
    assert sorted([*learnt.tolist(), *held_out.tolist()]) == list(range(503))
    assert counts(labels[hold_out(labels, 0.9, seed=0)[0]]) == [50, 1, 1]


@pytest.mark.parametrize(("per_class", "fraction"), [(6, 0.1), (30, 0.1), (35, 0.2), (500, 0.15)])
def test_equal_classes_hold_out_the_images_of_a_balanced_subset(
    per_class: int, fraction: float
) -> None:
    labels = torch.arange(4).repeat(per_class)
    expected = balanced_subset(labels.tolist(), fraction, 3)
    assert hold_out(labels, fraction, 3)[1].tolist() == expected


def test_one_image_per_class_is_too_few_to_compare_candidates() -> None:
    with pytest.raises(
        DataError, match="3 images in 3 classes are too few to hold out some of each class"
    ):
        hold_out(torch.arange(3), 0.2, 0)
    assert assign_folds(torch.arange(3), 5, 0) is None


def test_a_class_of_one_image_is_in_no_fold_and_other_classes_are_spread() -> None:
    labels = torch.tensor([0] * 10 + [1] * 2 + [2])
    folds = assign_folds(labels, 5, 0)
    assert folds is not None
    assert folds[12] == -1
    assert torch.bincount(folds[:10]).tolist() == [2] * 5
    assert folds[10] != folds[11]


def run_transfer(task: str, out: Path, data: Path, *more: str) -> Result:
    arguments = ["transfer", task, "--ckpt", "random:vit_pocket", "--data", str(data), "--quiet"]
    return CliRunner().invoke(cli, [*arguments, "--out", str(out), *more])


@pytest.fixture
def uneven_data(tmp_path: Path, pocket: Path) -> Path:
    """Return the synthetic ImageNet-layout data with one image in the first class and two in the second."""
    shutil.copytree(pocket / "imagenet", tmp_path / "data")
    for number, folder in enumerate(sorted((tmp_path / "data" / "train").iterdir())[:2]):
        for image in sorted(folder.iterdir())[number + 1 :]:
            image.unlink()
    return tmp_path / "data"


def test_small_classes_are_learnt_but_not_compared_on(tmp_path: Path, uneven_data: Path) -> None:
    named = ["-o", "blocks=2,3", "-o", "pooling=mean"]
    done = run_transfer("linear", tmp_path / "linear", uneven_data, *named, "-o", "epochs=2")
    assert done.exception is None
    done = run_transfer(
        "linear", tmp_path / "logistic", uneven_data, "--recipe", "logistic_pocket", *named
    )
    assert done.exception is None
    details = json.loads((tmp_path / "logistic" / "record.json").read_text())["details"]
    assert details["candidates"] == 2 * 5
    assert details["choice"] == "compared on classes of two images or more: 1 of 10 have one"
    assert details["choice"] in (tmp_path / "logistic" / "log.txt").read_text()


def test_a_choice_that_could_not_be_compared_is_reported(tmp_path: Path, pocket: Path) -> None:
    ten_percent = ["--fraction", "10%"]  # one image per class
    done = run_transfer("fewshot", tmp_path / "logistic", pocket / "imagenet", *ten_percent)
    assert done.exception is None
    details = json.loads((tmp_path / "logistic" / "record.json").read_text())["details"]
    assert details["choice"] == "nothing compared: no class has two images"
    assert details["choice"] in (tmp_path / "logistic" / "log.txt").read_text()
    more = [*ten_percent, "--recipe", "linear_pocket", "--features", str(tmp_path / "new")]
    done = run_transfer("fewshot", tmp_path / "linear", pocket / "imagenet", *more)
    assert isinstance(done.exception, DataError)
    assert "10 images in 10 classes are too few to hold out some of each class" in str(
        done.exception
    )
    assert not (tmp_path / "new").exists()  # refused before the pass of the backbone
