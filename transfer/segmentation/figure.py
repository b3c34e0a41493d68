"""Render predictions.png of an ADE20K transfer: image, ground truth and prediction of validation images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from simmim_bench.data.captions import PAPER, add_captions
from simmim_bench.data.figures import read_colours
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.files import replacing
from transfer.segmentation.ade20k_layout import SegmentationSplit
from transfer.segmentation.label_maps import IGNORED, LabelScheme, read_classes

TILE_HEIGHT = 192  # pixels of one row
GAP = 4  # pixels between columns
HEADINGS = ("image", "ground truth", "prediction")
MOST_CLASSES = 30  # in the legend


def write_figure(
    path: Path,
    split: SegmentationSplit,
    predicted: Sequence[np.ndarray],
    palette: np.ndarray,
    scheme: LabelScheme,
    pixel_format: PixelFormat = RGB,
    *,
    names: Sequence[str],
) -> None:
    """Write the first images of a split, one row per image: image, ground truth, prediction; the legend is below.

    Args:
        predicted: one map (H, W) of classes for each image to show.
        palette: (K, 3) colours in 0..255; ignored pixels are black.
        names: of the K classes; the legend has those that occur, the most frequent first.
        pixel_format: of the images, as the checkpoint takes them.
    """
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    rows, counts = [], np.zeros(256, np.int64)
    for image_path, mask_path, classes in zip(split.images, split.masks, predicted, strict=False):
        image = read_colours(image_path, pixel_format, upright=True)
        height, width = image.shape[:2]
        truth = read_classes(mask_path, scheme, image_path, (height, width))
        counts += np.bincount(np.append(truth, classes), minlength=256)
        width = round(width * TILE_HEIGHT / height)
        rows.append(
            [
                Image.fromarray(tile).resize((width, TILE_HEIGHT), Image.Resampling.NEAREST)
                for tile in (image, colours[truth], colours[classes])
            ]
        )
    widest = max(row[0].width for row in rows)
    columns = [(i * (widest + GAP), heading) for i, heading in enumerate(HEADINGS)]
    grid = Image.new("RGB", (columns[-1][0] + widest, len(rows) * TILE_HEIGHT), PAPER)
    for number, row in enumerate(rows):
        for (left, _), tile in zip(columns, row, strict=True):
            grid.paste(tile, (left, number * TILE_HEIGHT))
    frequent = [i for i in np.argsort(-counts[: len(names)], kind="stable") if counts[i]]
    legend = [(names[i], colours[i].tolist()) for i in frequent[:MOST_CLASSES]]
    if len(frequent) > MOST_CLASSES:
        legend.append((f"and {len(frequent) - MOST_CLASSES} rarer classes", PAPER))
    if counts[IGNORED]:
        legend.append(("not labelled", colours[IGNORED].tolist()))
    with replacing(path) as temporary:
        captioned = add_captions(np.asarray(grid), columns, legend)
        Image.fromarray(captioned).save(temporary, format="PNG")
