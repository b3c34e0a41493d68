"""Synthetic COCO data and one finished run, shared by the detection tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from simmim_bench.pocket.write import PocketCounts, write_pocket
from simmim_bench.results.record import Record


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("detection") / "pocket"
    counts = PocketCounts(
        imagenet_train=10, imagenet_val=10, coco_train=9, coco_val=5, ade20k_train=1, ade20k_val=1
    )
    write_pocket(out, counts=counts)
    return out / "coco"


@pytest.fixture
def own_coco(coco: Path, tmp_path: Path) -> Path:
    """Return a copy of the data that a test may change."""
    return Path(shutil.copytree(coco, tmp_path / "coco"))


@pytest.fixture(scope="session")
def finished(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """Return the directory and the record of a run that was not interrupted."""
    pytest.importorskip("detectron2")
    from support.detection import run

    out = tmp_path_factory.mktemp("detection_runs") / "vit"
    return out, run(out, coco)
