"""Figures of images and of what a model computes from them: sample and load the images, and arrange tiles as a grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid, save_image

from simmim_bench.data.datasets import ImageDataset, eval_transform
from simmim_bench.data.sources import ImageSource
from simmim_bench.files import replacing

MIN_TILE_SIZE = 160  # pixels; smaller tiles are enlarged by an integer factor
TILES_PER_ROW = 6  # of a grid, where an image has no more of them


def evenly_spaced(images: ImageSource, count: int) -> ImageSource:
    """Return `count` evenly spaced images of a source, or all if it has fewer."""
    count = min(count, len(images))
    return images.subset([i * len(images) // count for i in range(count)])


def load_uncropped(
    images: ImageSource,
    img_size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    skip_unreadable: int = 0,
) -> Tensor:
    """Load images as (B, 3, H, W), normalised, resized to cover `img_size` and centre-cropped to its aspect.

    Args:
        skip_unreadable: the most unreadable images that the next image replaces.
    """
    transform = eval_transform(img_size, crop_ratio=1.0, mean=mean, std=std)
    dataset = ImageDataset(images, transform, skip_unreadable=skip_unreadable)
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


def denormalise(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return images (B, 3, H, W) with pixels in [0, 1]."""
    scale, shift = images.new_tensor(std).view(-1, 1, 1), images.new_tensor(mean).view(-1, 1, 1)
    return images * scale + shift


def tile_grid(tiles: Tensor) -> Tensor:
    """Arrange T tiles of each of B images, (B, T, 3, H, W) with pixels in [0, 1], as one grid (3, height, width).

    The tiles of an image are next to each other; a row has as many images as fit.
    """
    factor = max(1, MIN_TILE_SIZE // max(tiles.shape[-2:]))
    enlarged = F.interpolate(tiles.flatten(0, 1).clamp(0, 1).cpu(), scale_factor=factor)
    images_per_row = max(1, TILES_PER_ROW // tiles.shape[1])
    grid: Tensor = make_grid(
        enlarged, nrow=images_per_row * tiles.shape[1], padding=4, pad_value=1.0
    )
    return grid


def write_grid(tiles: Tensor, out: Path) -> None:
    """Write the grid of `tile_grid` as a PNG.

    Raises:
        DataError: the file cannot be written.
    """
    with replacing(out) as temporary:
        save_image(tile_grid(tiles), str(temporary), format="png")
