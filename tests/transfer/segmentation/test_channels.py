"""Tests of segmentation with images of other channels than RGB, and of other values than 8 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support.channels import (
    FORMATS,
    SENTINEL,
    SIDE,
    equal_or_flipped,
    is_close,
    read_normalised,
    write_model,
    write_scenes,
)
from support.segmentation import RECIPE, assert_counts_every_labelled_pixel, split_of, transfer

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.cli.doctor_checks import examine_data
from simmim_bench.cli.doctor_request import DoctorRequest
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.display import Display
from simmim_bench.errors import DataError, UsageError
from simmim_bench.overrides import override
from simmim_bench.recipe import deviations
from transfer.images import check_images, default_overrides
from transfer.segmentation.recipes import ADE20K_VIT_160K

SMALL = replace(RECIPE, img_size=(SIDE, SIDE), scale_range=(1.0, 1.0), max_iters=2)


@pytest.mark.parametrize("pixel_format", FORMATS, ids=str)
def test_the_values_that_reach_the_model_are_those_of_another_reader(
    mmseg: None, pixel_format: PixelFormat, tmp_path: Path
) -> None:
    """Images are neither enlarged nor cropped; training images may be flipped."""
    from mmengine.dataset import Compose, pseudo_collate

    from transfer.segmentation.data import eval_pipeline, train_pipeline
    from transfer.segmentation.model import build_preprocessor

    ckpt = write_model(tmp_path / "model", pixel_format)
    split = split_of(write_scenes(tmp_path / "data", pixel_format), "training")
    preprocessor = build_preprocessor(read_checkpoint(ckpt), SMALL)
    for training, pipeline in ((True, train_pipeline), (False, eval_pipeline)):
        transforms = Compose(pipeline(SMALL, 3, pixel_format))
        for path, mask in zip(split.images, split.masks, strict=True):
            names = {"img_path": path, "seg_map_path": mask, "seg_fields": []}
            packed = transforms({**names, "reduce_zero_label": True})
            image = preprocessor(pseudo_collate([packed]), training)["inputs"][0]
            expected = read_normalised(path, ckpt)
            assert image.shape == expected.shape
            assert equal_or_flipped(image, expected) if training else is_close(image, expected)


@pytest.mark.parametrize("channels", [1, 5, 130])
def test_every_channel_is_resized_as_one_alone(mmseg: None, channels: int) -> None:
    """OpenCV itself has 128 channels at most, and drops the axis of a single one."""
    from transfer.segmentation.data import CoverResize

    image = np.random.default_rng(0).random((12, 10, channels)).astype(np.float32)
    inputs: dict[str, Any] = {"img": image, "img_shape": image.shape[:2]}
    found = CoverResize((24, 20), (1.0, 1.0)).transform(inputs)
    alone = [
        cv2.resize(np.ascontiguousarray(channel), (20, 24)) for channel in image.T.swapaxes(1, 2)
    ]
    np.testing.assert_allclose(found["img"], np.stack(alone, -1), rtol=1e-5)
    assert found["img_shape"] == (24, 20)


@pytest.mark.heavy
def test_a_run_on_thirteen_channels_keeps_them(mmseg: None, tmp_path: Path) -> None:
    ckpt = write_model(tmp_path / "model", SENTINEL)
    data = write_scenes(tmp_path / "data", SENTINEL)
    record = transfer(tmp_path / "run", data, SMALL, ckpt=ckpt)
    assert record.evaluated == 2
    assert_counts_every_labelled_pixel(tmp_path / "run", data)
    assert (tmp_path / "run/predictions.png").is_file()
    trained, before = read_checkpoint(str(tmp_path / "run")), read_checkpoint(ckpt)
    assert trained.pixel_format == SENTINEL
    assert (trained.mean, trained.std) == (before.mean, before.std)


def test_distortion_of_colours_is_refused_where_requested_and_left_out_by_default(
    tmp_path: Path,
) -> None:
    checkpoint = read_checkpoint(write_model(tmp_path / "model", SENTINEL))
    with pytest.raises(UsageError, match=r"13 channels and 16 bits; use -o photometric=false"):
        check_images("ade20k", ADE20K_VIT_160K, checkpoint)
    overrides = default_overrides(ADE20K_VIT_160K, checkpoint.pixel_format)
    assert deviations(override(ADE20K_VIT_160K, overrides), ADE20K_VIT_160K) == {
        "photometric": False
    }
    check_images("ade20k", override(ADE20K_VIT_160K, overrides), checkpoint)
    check_images("ade20k", ADE20K_VIT_160K, read_checkpoint("random:vit_pocket"))
    assert default_overrides(ADE20K_VIT_160K, RGB) == ()


def test_images_of_another_format_are_refused_by_a_run_and_by_doctor(
    mmseg: None, tmp_path: Path
) -> None:
    ckpt = write_model(tmp_path / "model", SENTINEL)
    good = write_scenes(tmp_path / "good", SENTINEL)
    bad = write_scenes(tmp_path / "bad", PixelFormat(13, "uint8"), train=1, val=1)
    with pytest.raises(DataError, match=r"8 bits per channel") as run:
        transfer(tmp_path / "run", bad, SMALL, ckpt=ckpt)

    def problems(data: Path) -> str:
        request = DoctorRequest(
            data_sets={"ade20k": data},
            data=(),
            ckpt=ckpt,
            arch=None,
            recipe=None,
            out=tmp_path,
            every_file=False,
        )
        findings = examine_data(request, read_checkpoint(ckpt), Display(quiet=True))
        return "".join(finding.said for finding in findings if finding.state == "problem")

    assert str(run.value) in problems(bad)
    assert problems(good) == ""


@pytest.mark.parametrize("pixel_format", [SENTINEL, PixelFormat(4, "float")], ids=str)
def test_mmsegmentations_own_loader_feeds_our_preprocessor(
    mmseg: None, pixel_format: PixelFormat, tmp_path: Path
) -> None:
    """Of pixels as their files store them, as in a config of MMSegmentation."""
    from mmcv.transforms import LoadImageFromFile

    from transfer.mmseg_backbone import SimMIMDataPreProcessor

    ckpt = write_model(tmp_path / "model", pixel_format)
    path = split_of(write_scenes(tmp_path / "data", pixel_format), "training").images[0]
    options = {"color_type": "unchanged", "imdecode_backend": "tifffile", "to_float32": True}
    loaded = LoadImageFromFile(**options).transform({"img_path": str(path)})
    pixels = torch.from_numpy(loaded["img"].transpose(2, 0, 1))
    preprocessor = SimMIMDataPreProcessor(ckpt, mean=[0.0], std=[1.0], bgr_to_rgb=True)
    assert is_close(preprocessor({"inputs": [pixels]})["inputs"][0], read_normalised(path, ckpt))
    with pytest.raises(UsageError, match="the images have 8 bits"):
        preprocessor({"inputs": [pixels.byte()]})
