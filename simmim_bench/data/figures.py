"""Figures of images and of what a model computes from them: sample and load the images, and arrange tiles as a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid, save_image

from simmim_bench.data.datasets import ImageDataset, eval_transform
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.data.pixels import read_pixels
from simmim_bench.data.sources import ImageSource
from simmim_bench.errors import UsageError
from simmim_bench.files import replacing

Channels = tuple[int, ...]

MIN_TILE_SIZE = 160  # pixels; smaller tiles are enlarged by an integer factor
PERCENTILES = (2, 98)  # ours, as in GIS programs: rendered as 0 and 1
SMALLEST_RANGE = 1e-12
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
    pixel_format: PixelFormat = RGB,
) -> Tensor:
    """Load images as (B, C, H, W), normalised, resized to cover `img_size` and centre-cropped to its aspect.

    Args:
        skip_unreadable: the most unreadable images that the next image replaces.
        pixel_format: of the images.
    """
    transform = eval_transform(
        img_size, crop_ratio=1.0, mean=mean, std=std, pixel_format=pixel_format
    )
    dataset = ImageDataset(images, transform, skip_unreadable=skip_unreadable)
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


def denormalise(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return images (B, C, H, W) in the unit of mean and standard deviation: [0, 1], or values as stored."""
    scale, shift = images.new_tensor(std).view(-1, 1, 1), images.new_tensor(mean).view(-1, 1, 1)
    return images * scale + shift


def shown_channels(channels: Channels | None, pixel_format: PixelFormat) -> Channels:
    """Return the channels that are shown, counted from 1: by default the first three, or the first of fewer.

    Raises:
        UsageError: the images do not have one of them, or they are neither one nor three.
    """
    count = pixel_format.in_chans
    if channels is None:
        return (1, 2, 3) if count >= 3 else (1,)
    given = ",".join(map(str, channels))
    if len(channels) not in (1, 3):
        raise UsageError(
            f"--channels {given} names {len(channels)} channels; use three, for red, green and blue, or one for grey."
        )
    for channel in channels:
        if not 1 <= channel <= count:
            raise UsageError(
                f"--channels {given}: the model takes {pixel_format}; use numbers from 1 to {count}."
            )
    return channels


def renderer(
    images: Tensor, pixel_format: PixelFormat, channels: Channels | None = None
) -> Callable[[Tensor], Tensor]:
    """Return a function that renders images of any channels (B, C, H, W) as RGB (B, 3, H, W) in about [0, 1].

    Values of 16 bits and values as stored are stretched, channel by channel, from the 2nd to the 98th percentile.

    Args:
        images: all images of the figure, which determine the percentiles; in the unit of `denormalise`.
        pixel_format: of the images.
        channels: those that become red, green and blue, or one for grey, counted from 1.
    """
    indices = [channel - 1 for channel in shown_channels(channels, pixel_format)]
    low, high = images.new_zeros(1, 1, 1), images.new_ones(1, 1, 1)
    if pixel_format.value_range != "uint8":
        values = images[:, indices].transpose(0, 1).flatten(1).cpu().numpy()
        ends = np.percentile(values, PERCENTILES, axis=1)
        low, high = (images.new_tensor(end).view(-1, 1, 1) for end in ends)

    def render(pixels: Tensor) -> Tensor:
        stretched = (pixels[:, indices] - low) / (high - low).clamp_min(SMALLEST_RANGE)
        return stretched.expand(-1, 3, -1, -1)

    return render


def read_colours(
    path: Path, pixel_format: PixelFormat = RGB, *, upright: bool = False
) -> np.ndarray:
    """Read an image of any channels as RGB (H, W, 3), uint8; see `renderer`.

    Raises:
        DataError: the image cannot be decoded, or is of another format.
    """
    pixels = read_pixels(path, pixel_format, upright=upright)
    if pixel_format.is_rgb:
        return pixels.permute(1, 2, 0).numpy()
    images = pixels[None] / pixel_format.decoded_unit
    colours = renderer(images, pixel_format)(images)[0].clamp(0, 1).permute(1, 2, 0)
    return (255 * colours).round().byte().numpy()


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
