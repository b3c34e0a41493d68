"""Tests of detection with images of other channels than RGB, and of other values than 8 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.channels import (
    FORMATS,
    SENTINEL,
    SIDE,
    equal_or_flipped,
    read_normalised,
    write_model,
    write_objects,
)

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.pixel_format import PixelFormat
from simmim_bench.diagnostics.data_checks import Reading
from simmim_bench.display import Display
from simmim_bench.errors import UsageError

pytest.importorskip("detectron2")
from support.detection import RECIPE, annotations_of, change, run

from transfer.detection.coco_layout import read_splits
from transfer.detection.data import train_loader, training_stream, val_loader
from transfer.detection.doctor_checks import check_coco
from transfer.detection.model import build_detector

SMALL = replace(RECIPE, img_size=(SIDE, SIDE), scale_range=(1.0, 1.0), max_iters=2)


@pytest.mark.parametrize("pixel_format", FORMATS, ids=str)
def test_the_values_that_reach_the_model_are_those_of_another_reader(
    pixel_format: PixelFormat, tmp_path: Path
) -> None:
    """Images are neither enlarged nor cropped; training images may be flipped."""
    ckpt = write_model(tmp_path / "model", pixel_format)
    train, val = read_splits(write_objects(tmp_path / "data", pixel_format), "refuse")
    model = build_detector(
        read_checkpoint(ckpt),
        SMALL,
        num_classes=1,
        masks=True,
        seed=0,
        device=torch.device("cpu"),
    )
    stream = training_stream(train, SMALL, 0, pixel_format)
    for loader in (train_loader(stream, SMALL), val_loader(val, SMALL, pixel_format)):
        batch = next(iter(loader))
        for mapped, image in zip(batch, model.preprocess_image(batch).tensor, strict=True):
            expected = read_normalised(Path(mapped["file_name"]), ckpt)
            assert image.shape == expected.shape
            assert equal_or_flipped(image, expected)


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_every_channel_is_resized_as_pillow_resizes_it_alone(channels: int, dtype: Any) -> None:
    """Pillow would take four channels for RGBA, and weight colours by alpha."""
    from detectron2.data.transforms import ResizeTransform

    from transfer.detection.channels import ChannelInput

    pixels = (np.random.default_rng(0).random((40, 30, channels)) * 255).astype(dtype)
    image = ChannelInput(pixels, PixelFormat(channels, "uint8" if dtype is np.uint8 else "float"))
    image.transform(ResizeTransform(40, 30, 16, 12))
    alone = [
        np.asarray(Image.fromarray(channel).resize((12, 16), Image.Resampling.BILINEAR))
        for channel in np.ascontiguousarray(pixels.transpose(2, 0, 1))
    ]
    assert image.image.dtype == dtype
    limit = 1 if dtype is np.uint8 else 1e-3  # levels of 255
    assert np.abs(image.image.astype(float) - np.stack(alone, -1)).max() <= limit


def test_a_run_on_thirteen_channels_keeps_them(tmp_path: Path) -> None:
    ckpt = write_model(tmp_path / "model", SENTINEL)
    record = run(tmp_path / "run", write_objects(tmp_path / "data", SENTINEL), SMALL, arch=ckpt)
    assert record.evaluated == 2
    assert (tmp_path / "run/predictions.png").is_file()
    trained, before = read_checkpoint(str(tmp_path / "run")), read_checkpoint(ckpt)
    assert trained.pixel_format == SENTINEL
    assert (trained.mean, trained.std) == (before.mean, before.std)


def test_doctor_finds_images_of_another_size_or_format(tmp_path: Path) -> None:
    def problems(data: Path) -> str:
        reading = Reading(display=Display(quiet=True), pixel_format=SENTINEL)
        found = [f for f in check_coco(data, reading) if f.state == "problem"]
        return "".join(f"{f.said} {f.items}" for f in found)

    data = write_objects(tmp_path / "data", SENTINEL)
    assert problems(data) == ""
    change(annotations_of(data), lambda content: content["images"][0].update(width=99))
    assert f"is {SIDE} x {SIDE} pixels, but its entry in the annotations is 99 x" in problems(data)
    other = write_objects(tmp_path / "other", PixelFormat(13, "uint8"))
    assert "8 bits per channel" in problems(other)


def test_a_yaml_config_is_refused_for_images_that_detectron2_does_not_read(tmp_path: Path) -> None:
    from detectron2.config import get_cfg

    from transfer.detectron2_backbone import add_simmim_config, pixel_statistics

    sentinel = write_model(tmp_path / "sentinel", SENTINEL)
    with pytest.raises(UsageError, match=r"13 channels and 16 bits, which the mapper"):
        add_simmim_config(get_cfg(), sentinel)
    statistics, checkpoint = pixel_statistics(sentinel), read_checkpoint(sentinel)
    assert statistics["pixel_mean"] == [65535 * value for value in checkpoint.mean]
    assert statistics["input_format"] is None
    grey = get_cfg()
    add_simmim_config(grey, write_model(tmp_path / "grey", PixelFormat(1, "uint8")))
    assert grey.INPUT.FORMAT == "L"
    assert grey.MODEL.PIXEL_MEAN == [255 * 0.1]
