"""Tests of ADE20K's layout: damaged and missing files are refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.segmentation import RECIPE, transfer

from simmim_bench.errors import DataError
from transfer.segmentation import label_check


def image_of(data: Path, split: str = "training") -> Path:
    return sorted((data / "images" / split).glob("*.jpg"))[0]


def mask_of(data: Path, split: str = "training") -> Path:
    return sorted((data / "annotations" / split).glob("*.png"))[0]


def damage_label(data: Path) -> None:
    labels = np.array(Image.open(mask_of(data)))
    labels[3, 5] = 17
    Image.fromarray(labels).save(mask_of(data))


def damage_sixteen_bit_label(data: Path) -> None:
    # 257 would be label 1 in 8 bits.
    Image.fromarray(np.full((64, 64), 257, np.uint16)).save(mask_of(data))


def empty_images(data: Path) -> None:
    for path in (data / "images/training").glob("*"):
        path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no data": (shutil.rmtree, r"images/training does not exist"),
    "no validation": (
        lambda data: shutil.rmtree(data / "images/validation"),
        r"images/validation does not exist; .*ADE20K's layout",
    ),
    "no annotations": (
        lambda data: shutil.rmtree(data / "annotations/training"),
        r"annotations/training does not exist",
    ),
    "no images": (
        empty_images,
        r"images/training has no images; add them\.",
    ),
    "image without annotation": (
        lambda data: mask_of(data).unlink(),
        r"ADE_train_00000001\.png does not exist \(1 of 5 images",
    ),
    "label above K": (
        damage_label,
        r"ADE_train_00000001\.png has label 17, but the largest label of 16 classes is 16; use 0",
    ),
    "label above 255": (damage_sixteen_bit_label, r"has label 257, but the largest"),
    "mask of another size": (
        lambda data: Image.open(mask_of(data)).resize((60, 64)).save(mask_of(data)),
        r"\.png is 64x60 pixels \(HxW\), its image 64x64",
    ),
    "mask in colour": (
        lambda data: Image.open(mask_of(data)).convert("RGB").save(mask_of(data)),
        r"ADE_train_00000001\.png has 3 channels \(RGB\), but a label map has one; save it as",
    ),
    "truncated mask": (
        lambda data: truncate(mask_of(data, "validation")),
        r"ADE_val_00000001\.png cannot be read",
    ),
    "truncated image": (lambda data: truncate(image_of(data)), r"_00000001\.jpg cannot be read"),
    "one class": (
        lambda data: (data / "classes.txt").write_text("all\n"),
        r"classes\.txt names 1 classes; 2 to 255 are allowed",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_the_error_of_damaged_data_is_one_line_with_the_path(
    mmseg: None, data: Path, tmp_path: Path, case: str
) -> None:
    damage, message = DAMAGED[case]
    damage(data)
    with pytest.raises(DataError, match=message) as caught:
        transfer(tmp_path / "run", data)
    assert "\n" not in str(caught.value)


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_of_data_damaged_after_the_check_is_one_line_too(
    mmseg: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(label_check, "CHECK_AT_ONCE", 0)
    monkeypatch.setattr(label_check, "SAMPLE", 2)
    masks = sorted((data / "annotations/training").glob("*.png"))
    for index in set(range(len(masks))) - set(label_check.sample(len(masks))):
        mask = masks[index]
        Image.fromarray(np.full((64, 64), 99, np.uint8)).save(mask)
    with pytest.raises(DataError, match=r"^annotation .*png has label 99, ") as caught:
        transfer(tmp_path / "run", data, replace(RECIPE, num_workers=workers))
    assert "\n" not in str(caught.value)


def test_validation_without_labels_is_refused(mmseg: None, data: Path, tmp_path: Path) -> None:
    for mask in (data / "annotations/validation").glob("*.png"):
        Image.open(mask).point(lambda _: 0).save(mask)
    with pytest.raises(DataError, match=r"annotations/validation contain only label 0"):
        transfer(tmp_path / "run", data, replace(RECIPE, max_iters=1))


@pytest.mark.heavy
def test_ade20ks_class_names_are_used_without_classes_txt(
    mmseg: None, data: Path, tmp_path: Path
) -> None:
    (data / "classes.txt").unlink()
    record = transfer(tmp_path / "run", data, replace(RECIPE, max_iters=1))
    assert record.details["classes"] == 150
    with np.load(tmp_path / "run/predictions/confusion.npz") as stored:
        assert stored["names"][[0, 7, 149]].tolist() == ["wall", "bed", "flag"]
