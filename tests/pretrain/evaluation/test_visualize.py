"""Check reconstruction grids, and the masks for visualisation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support.tiny import TINY

from pretrain.evaluation.visualize import largest_boxes
from pretrain.masking.masks import box_mask, centre_mask
from pretrain.simmim import SimMIM
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, write_checkpoint
from simmim_bench.cli.main import cli
from simmim_bench.errors import BenchError

SIZES = {"mask_patch_size": 16, "patch_size": 4}


def test_centre_mask_is_symmetric() -> None:
    mask = centre_mask((128, 64), mask_ratio=0.25, **SIZES)
    assert mask.shape == (32, 16)
    assert torch.equal(mask, mask.flip(0))
    assert torch.equal(mask, mask.flip(1))
    assert mask.mean() == pytest.approx(0.25)
    assert mask[16, 8] == 1
    assert mask[0].sum() == 0


@pytest.mark.parametrize(
    "box", [(20, 3, 40, 17), (0, 0, 96, 64), (16, 16, 32, 32), (-9, 60, 5, 99)]
)
def test_box_mask_hides_the_units_that_it_touches(box: tuple[int, ...]) -> None:
    left, top, right, bottom = box
    touched = np.zeros((64, 96))
    touched[max(top, 0) : bottom, max(left, 0) : right] = 1
    naive = touched.reshape(4, 16, 6, 16).max((1, 3)).repeat(4, 0).repeat(4, 1)
    assert np.array_equal(box_mask(box, (64, 96), **SIZES).numpy(), naive)


def write_annotations(path: Path, boxes: list[tuple[int, list[float]]]) -> Path:
    images = [
        {"id": 1, "file_name": "a.png", "width": 100, "height": 50},
        {"id": 2, "file_name": "b.png", "width": 50, "height": 50},
    ]
    objects = [{"image_id": image, "bbox": box, "iscrowd": 0} for image, box in boxes]
    path.write_text(json.dumps({"images": images, "annotations": objects}))
    return path


def test_boxes_are_transformed_like_the_images(tmp_path: Path) -> None:
    # 100 x 50 pixels, resized to 64 x 32 and cropped to 32 x 32: 16 pixels are cut on either side.
    boxes = [(1, [50.0, 25, 25, 25]), (1, [40.0, 0, 5, 5]), (2, [0.0, 0, 50, 50])]
    found = largest_boxes(write_annotations(tmp_path / "i.json", boxes), (32, 32))
    assert found == {"a.png": [16.0, 16.0, 32.0, 32.0]}  # b's box covers the whole image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a checkpoint and two images."""
    spec = TINY["vit"]
    write_checkpoint(
        tmp_path / "ckpt",
        state=SimMIM(spec).state_dict(),
        spec=spec,
        form="pretrain",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": "tiny"},
    )
    (tmp_path / "images").mkdir()
    for name, size in (("a.png", (100, 50)), ("b.png", (50, 50))):
        Image.new("RGB", size, (200, 120, 40)).save(tmp_path / "images" / name)
    return tmp_path


def visualize(folder: Path, *more: str) -> object:
    paths = ["--ckpt", str(folder / "ckpt"), "--images", str(folder / "images")]
    out = ["--out", str(folder / "grid.png")]
    return CliRunner().invoke(cli, ["visualize", *paths, *out, *more]).exception


@pytest.mark.parametrize(
    "masking", ["random", "square", "block", "pixels", "regions", "multimodal", "centre", "boxes"]
)
def test_masked_tile_is_grey_where_hidden(folder: Path, masking: str) -> None:
    more = ["--mask", masking, "--mask-patch-size", "4"]
    if masking == "boxes":
        content = write_annotations(folder / "i.json", [(1, [50.0, 25, 25, 25])])
        more += ["--annotations", str(content)]
    assert visualize(folder, *more) is None
    grid = np.asarray(Image.open(folder / "grid.png").convert("RGB")).astype(int)
    tile = 160 + 4  # tiles of 32 pixels, enlarged by 5, and their border
    masked = grid[4 : 4 + 160, 4 + tile : 4 + tile + 160][2::5, 2::5]
    hidden = np.asarray((np.abs(masked - 127.5) < 2).all(-1))
    if masking == "boxes":
        assert hidden[16:, 16:].all()
        assert hidden.sum() == 16 * 16
    elif masking == "centre":
        assert hidden[8:24, 8:24].all()
        assert not hidden[:4].any()
    else:
        units = 32**2 if masking == "pixels" else 8**2
        assert hidden.mean() == pytest.approx(math.ceil(0.6 * units) / units)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mask", "boxes"], "--mask boxes and --annotations go together"),
        (["--annotations", "i.json"], "--mask boxes and --annotations go together"),
        (["--mask", "boxes", "--annotations", "gone.json"], "does not exist"),
    ],
)
def test_invalid_mask_options_are_rejected(folder: Path, more: list[str], message: str) -> None:
    error = visualize(folder, *more)
    assert isinstance(error, BenchError)
    assert message in str(error)


@pytest.mark.parametrize("content", ["[]", '{"images": []}', '{"images": [{}], "annotations": []}'])
def test_annotations_other_than_coco_are_rejected(folder: Path, content: str) -> None:
    (folder / "bad.json").write_text(content)
    error = visualize(folder, "--mask", "boxes", "--annotations", str(folder / "bad.json"))
    assert isinstance(error, BenchError)
    assert error.exit_code == 4
