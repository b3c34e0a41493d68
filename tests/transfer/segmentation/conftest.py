"""Synthetic ADE20K data and one finished run, shared by the segmentation tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from support.segmentation import transfer

from simmim_bench.pocket.write import PocketCounts, write_pocket
from transfer.segmentation.run import require_mmseg


@pytest.fixture(scope="session")
def mmseg() -> None:
    """Skip the test if MMSegmentation is not installed; else import it without its greeting."""
    pytest.importorskip("mmseg", reason="needs the extra [seg]")
    require_mmseg()


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "pocket"
    one = dict.fromkeys(("coco_train", "coco_val"), 1) | dict.fromkeys(
        ("imagenet_train", "imagenet_val"), 10
    )
    write_pocket(root, counts=PocketCounts(ade20k_train=5, ade20k_val=3, **one))
    image = Image.open(root / "ade20k/images/validation/ADE_val_00000002.jpg").resize((57, 75))
    image.save(root / "ade20k/images/validation/ADE_val_00000002.jpg")
    mask = Image.open(root / "ade20k/annotations/validation/ADE_val_00000002.png")
    mask.resize((57, 75), Image.Resampling.NEAREST).save(
        root / "ade20k/annotations/validation/ADE_val_00000002.png"
    )
    return root / "ade20k"


@pytest.fixture
def data(generated: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may change."""
    return Path(shutil.copytree(generated, tmp_path / "data"))


@pytest.fixture(scope="session")
def finished(mmseg: None, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run that was not interrupted."""
    path = tmp_path_factory.mktemp("finished") / "run"
    transfer(path, generated)
    return path
