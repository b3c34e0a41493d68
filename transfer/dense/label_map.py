"""Assemble the scores of an image's windows to the classes of its pixels.

As MMSegmentation does (mmseg/models/segmentors/encoder_decoder.py), the scores of each window are interpolated to its
pixels, averaged where windows overlap, interpolated to the original image, and compared. The scores of a few classes at
a time are held at full size, so that memory is bounded.

Legend: n windows, K classes, (h, w) cells of a map.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from transfer.dense.classifiers import Scorer
from transfer.dense.patches import Level
from transfer.dense.recipes import DenseRecipe
from transfer.dense.windows import Size, WindowedImage

PIXELS = 2**26  # scores of pixels held at a time; a quarter of a GiB


def predict_image(
    scorer: Scorer, image: WindowedImage, features: Tensor, recipe: DenseRecipe, level: Level
) -> Iterator[np.ndarray]:
    """Yield the predicted classes (H, W), uint8, of an image by every setting of a classifier.

    Args:
        features: (n, h, w, D) of the image's windows.
    """
    grid = features.shape[:3]
    for scores in scorer(features.flatten(0, 2)):
        maps = scores.unflatten(0, grid).permute(0, 3, 1, 2)
        yield assemble_classes(maps, image, recipe.img_size, level.stride)


def assemble_classes(
    scores: Tensor, image: WindowedImage, window: Size, stride: int, *, at_once: int = PIXELS
) -> np.ndarray:
    """Return the class of the highest score of every pixel, (H, W) uint8; of equal ones the first.

    Args:
        scores: (n, K, h, w) of the image's windows.
        window: (H, W) of a window in pixels.
        stride: side of a cell in pixels.
        at_once: scores of pixels to hold at a time.
    """
    rows, columns = (max(sides) for sides in zip(image.size, image.resized, strict=True))
    best = scores.new_full(image.size, -torch.inf)
    classes = torch.zeros(image.size, dtype=torch.uint8, device=scores.device)
    first = 0
    for part in scores.split(max(1, at_once // (rows * columns)), dim=1):
        pixels = _interpolate(_average_windows(part, image, window, stride), image.size)
        highest, number = pixels.max(0)
        better = highest > best
        best = torch.where(better, highest, best)
        classes = torch.where(better, (first + number).to(torch.uint8), classes)
        first += part.shape[1]
    return classes.cpu().numpy()


def _average_windows(scores: Tensor, image: WindowedImage, window: Size, stride: int) -> Tensor:
    """Return the scores (K, H, W) of the resized image's pixels."""
    height, width = window
    total = scores.new_zeros(scores.shape[1], *image.resized)
    covered = scores.new_zeros(image.resized)
    for cells, (top, left) in zip(scores, image.corners, strict=True):
        # Where a window does not divide into cells, the last ones reach beyond it.
        pixels = _interpolate(cells, (cells.shape[1] * stride, cells.shape[2] * stride))
        region = ..., slice(top, top + height), slice(left, left + width)
        total[region] += pixels[:, :height, :width]
        covered[region] += 1
    return total.div_(covered)


def _interpolate(scores: Tensor, size: Size) -> Tensor:
    """Interpolate scores (K, h, w) bilinearly to another size."""
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
