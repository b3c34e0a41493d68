"""Render predictions.png of an ADE20K transfer: image, ground truth and prediction of validation images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from simmim_bench.data.figures import read_colours
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.files import replacing
from transfer.segmentation.ade20k_layout import SegmentationSplit
from transfer.segmentation.label_maps import LabelScheme, read_classes

TILE_HEIGHT = 192  # pixels of one row


def write_figure(
    path: Path,
    split: SegmentationSplit,
    predicted: Sequence[np.ndarray],
    palette: np.ndarray,
    scheme: LabelScheme,
    pixel_format: PixelFormat = RGB,
) -> None:
    """Write the first images of a split, one row per image: image, ground truth, prediction.

    Args:
        predicted: one map (H, W) of classes for each image to show.
        palette: (K, 3) colours in 0..255; ignored pixels are black.
        pixel_format: of the images, as the checkpoint takes them.
    """
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    rows = []
    for image_path, mask_path, classes in zip(split.images, split.masks, predicted, strict=False):
        image = read_colours(image_path, pixel_format, upright=True)
        height, width = image.shape[:2]
        truth = read_classes(mask_path, scheme, image_path, (height, width))
        tiles = [image, colours[truth], colours[classes]]
        width = round(width * TILE_HEIGHT / height)
        resized = [
            Image.fromarray(tile).resize((width, TILE_HEIGHT), Image.Resampling.NEAREST)
            for tile in tiles
        ]
        rows.append(np.concatenate([np.asarray(tile) for tile in resized], axis=1))
    widest = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows]
    with replacing(path) as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary, format="PNG")
