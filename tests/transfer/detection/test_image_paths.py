"""A `file_name` of COCO annotations names no file outside of the data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from transfer.detection.coco_images import check_size, image_faults, resolve_names


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for folder in ("data/val2017", "data/train2017", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / folder / f"{Path(folder).name}.png")
    return tmp_path / "data" / "val2017"


def content_of(name: str) -> dict[str, Any]:
    return {"images": [{"id": 1, "file_name": name, "height": 4, "width": 4}]}


@pytest.mark.parametrize("absolute", [False, True])
def test_a_file_of_the_data_folder_is_found_and_another_one_refused(
    images: Path, absolute: bool
) -> None:
    root = images.parents[1]
    for name, found in (("data/train2017/train2017.png", True), ("elsewhere/elsewhere.png", False)):
        content = content_of(str(root / name) if absolute else f"../../{name}")
        resolve_names(content, images)
        faults = list(image_faults(Path("a.json"), content, images))
        assert [f"is outside of the data folder {images.parent}" in f for f in faults] == (
            [] if found else [True]
        )


@pytest.mark.parametrize("name", ["", ".", "..", "/", "\0", "x" * 5000, "\ud800", "../val2017"])
def test_a_name_that_is_no_file_is_reported_as_missing(images: Path, name: str) -> None:
    content = content_of(name)
    resolve_names(content, images)
    (fault,) = image_faults(Path("a.json"), content, images)
    assert "does not exist" in fault


def test_the_size_of_postscript_is_not_read(images: Path) -> None:
    (images / "x.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    assert check_size({"file_name": "x.jpg", "height": 4, "width": 4}, images) == 1
