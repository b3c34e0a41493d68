"""Tests of dense probes on images of other channels than RGB, and of other values than 8 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.channels import (
    FORMATS,
    SENTINEL,
    SIDE,
    is_close,
    read_normalised,
    write_model,
    write_scenes,
)
from support.dense import KNN, probe

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.pixel_format import PixelFormat
from simmim_bench.display import Display
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run
from transfer.dense.patches import PatchReader, probed_levels
from transfer.dense.windows import WindowDataset
from transfer.segmentation.ade20k_layout import find_split
from transfer.segmentation.label_maps import LabelScheme

ALONE = replace(KNN, blocks=(-1,), norm=("none",), k=(1,))


@pytest.mark.parametrize("pixel_format", FORMATS, ids=str)
def test_the_values_that_reach_the_backbone_are_those_of_another_reader(
    pixel_format: PixelFormat, tmp_path: Path
) -> None:
    """The images are as large as a window."""
    assert ALONE.img_size == (SIDE, SIDE)
    ckpt = write_model(tmp_path / "model", pixel_format)
    split = find_split(write_scenes(tmp_path / "data", pixel_format), "validation")
    checkpoint = read_checkpoint(ckpt)
    dataset = WindowDataset(split, LabelScheme(classes=3), ALONE, pixel_format=pixel_format)
    reached: list[torch.Tensor] = []
    with open_run(
        tmp_path / "run", recipe=ALONE, deviates={}, arguments={}, display=Display(quiet=True)
    ) as opened:
        levels = probed_levels(ALONE, checkpoint.spec)
        reader = PatchReader(RunContext(run=opened, seed=0), checkpoint, ALONE, levels)
        first = reader._model.get_submodule("patch_embed")
        first.register_forward_pre_hook(lambda module, inputs: reached.append(inputs[0]))
        list(reader.read(dataset, [0, 1], "test"))
    for image, path in zip(torch.cat(reached), split.images, strict=True):
        assert is_close(image, read_normalised(path, ckpt))


def test_nearest_patches_of_thirteen_channels_find_themselves(tmp_path: Path) -> None:
    """The validation images are the training images: every patch is its own nearest neighbour."""
    ckpt = write_model(tmp_path / "model", SENTINEL)
    data = write_scenes(tmp_path / "data", SENTINEL)
    for path in (data / "images/training").iterdir():
        (data / "images/validation" / path.name).write_bytes(path.read_bytes())
    record = probe(tmp_path / "run", data, ALONE, ckpt)
    assert record.metrics["miou"] == 100
    assert (tmp_path / "run/predictions.png").is_file()
