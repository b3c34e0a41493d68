"""Crop, flip, resize and normalise images of any `PixelFormat` but RGB of 8 bits, as tensors (C, H, W).

The geometry is that of the transforms of RGB images in `datasets.py`. Photometric augmentations (RandAugment, colour
jitter) are defined for RGB of 8 bits alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision import transforms as T

from simmim_bench.data.normalise import normalise_like_torchvision
from simmim_bench.data.pixel_format import PixelFormat
from simmim_bench.data.pixels import decode_pixels

Step = Callable[[Tensor], Tensor]


def decode_pixels_then(
    pixel_format: PixelFormat, steps: Sequence[Step]
) -> Callable[[bytes, str], Tensor]:
    """Return a function that decodes an image of a format and applies transforms of tensors."""
    return functools.partial(_decode_and_apply, pixel_format, tuple(steps))


def _decode_and_apply(
    pixel_format: PixelFormat, steps: Sequence[Step], content: bytes, name: str
) -> Tensor:
    pixels = decode_pixels(content, name, pixel_format)
    for step in steps:
        pixels = step(pixels)
    return pixels


def random_crop_steps(
    crop: T.RandomResizedCrop, hflip: float, pixel_format: PixelFormat
) -> list[Step]:
    """Return a random crop, which also resizes, and a flip.

    Args:
        crop: torchvision's, or one with other crops.
        hflip: probability of a horizontal flip.
    """
    limit = functools.partial(limit_range, pixel_format=pixel_format)
    return [crop, limit, T.RandomHorizontalFlip(hflip)]


def resize_pixels(
    pixels: Tensor,
    size: Sequence[int],
    pixel_format: PixelFormat,
    mode: T.InterpolationMode = T.InterpolationMode.BICUBIC,
) -> Tensor:
    """Resize an image (C, H, W) to (H, W), antialiased."""
    resized: Tensor = T.functional.resize(pixels, list(size), mode, antialias=True)
    return limit_range(resized, pixel_format=pixel_format)


def limit_range(pixels: Tensor, *, pixel_format: PixelFormat) -> Tensor:
    """Clip what bicubic interpolation computes outside of the range of 16 bits, as is done for 8 bits."""
    return pixels.clamp_(0, 1) if pixel_format.value_range == "uint16" else pixels


def last_steps(
    mean: Sequence[float],
    std: Sequence[float],
    *,
    as_bytes: bool,
    random_erasing: float = 0.0,
) -> list[Step]:
    """Return the normalisation and random erasing; nothing where the device does both (`as_bytes`)."""
    if as_bytes:
        return []
    steps: list[Step] = [functools.partial(normalise_like_torchvision, mean=mean, std=std)]
    if random_erasing:
        steps.append(RandomErasing(random_erasing, mode="pixel", device="cpu"))
    return steps
