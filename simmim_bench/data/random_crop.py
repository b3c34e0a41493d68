"""Decode an image fast to a random crop, a (3, H, W) uint8 tensor.

The crop is that of SimMIM's data/data_simmim.py: torchvision's RandomResizedCrop and flip, with equal random
numbers for equal seeds. Its pixels differ from PIL's by at most one of 255 levels. For a large JPEG, which is
decoded at a half, a quarter or an eighth of its size, they differ by about one level on average
(tests/data/test_decode.py).
"""

from __future__ import annotations

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from simmim_bench.data.decode import decode_image
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.data.pixels import decode_pixels

ASPECT_RATIO = (3 / 4, 4 / 3)  # of a crop; SimMIM: data/data_simmim.py
REDUCTIONS = (8, 4, 2)  # divisors of a JPEG's size at which libjpeg-turbo decodes fast
MIN_REDUCED_SIZE = (
    2.0  # size of a reduced crop relative to the result, at least; Pillow's reducing_gap
)


def random_crop_flip(
    content: bytes,
    name: str,
    img_size: tuple[int, int],
    crop_scale: tuple[float, float],
    pixel_format: PixelFormat = RGB,
) -> Tensor:
    """Crop a random region of an image, resize it, and flip it horizontally with probability 1/2.

    Uses torch's global random generator; equal seeds have equal crops, whatever the format of the images.

    Args:
        content: content of the file.
        name: name of the file, for messages.
        img_size: (H, W) of the result.
        crop_scale: range of the crop's area as a fraction of the image's.

    Returns:
        (C, H, W), as `decode_pixels` returns it.

    Raises:
        DataError: the image cannot be decoded, or is of another format.
    """
    if pixel_format.is_rgb:
        return _crop_flip_rgb(content, name, img_size, crop_scale)
    pixels = decode_pixels(content, name, pixel_format)
    top, left, rows, columns = RandomResizedCrop.get_params(
        pixels, list(crop_scale), list(ASPECT_RATIO)
    )
    flipped = bool(torch.rand(1) < 0.5)
    region = pixels[:, top : top + rows, left : left + columns].unsqueeze(0)
    resized = F.interpolate(region, img_size, mode="bilinear", antialias=True)[0]
    return resized.flip(2) if flipped else resized


def _crop_flip_rgb(
    content: bytes, name: str, img_size: tuple[int, int], crop_scale: tuple[float, float]
) -> Tensor:
    """Crop and flip an image of RGB, (3, H, W) uint8; see `random_crop_flip`."""
    height, width = _jpeg_size(content)
    pixels = None if height else np.array(decode_image(content, name))
    if pixels is not None:
        height, width = pixels.shape[:2]
    bounds = torch.empty((1, height, width), device="meta")
    top, left, rows, columns = RandomResizedCrop.get_params(
        bounds, list(crop_scale), list(ASPECT_RATIO)
    )
    flipped = bool(torch.rand(1) < 0.5)
    if pixels is None:
        pixels = _decode_jpeg(content, name, (height, width), (rows, columns), img_size)
    resized = _resize(pixels, (top, left, rows, columns), (height, width), img_size)
    return resized.flip(2) if flipped else resized


def _resize(
    pixels: np.ndarray, crop: tuple[int, ...], size: tuple[int, int], wanted: tuple[int, int]
) -> Tensor:
    """Crop and resize an image that may have been decoded at a reduced size.

    Args:
        pixels: (h, w, 3) uint8, the image, possibly reduced.
        crop: (top, left, rows, columns) in pixels of the full-size image.
        size: (H, W) of the full-size image.
        wanted: (H, W) of the result.
    """
    top, left, rows, columns = crop
    if pixels.shape[:2] == size:
        region = torch.from_numpy(pixels[top : top + rows, left : left + columns])
        # Several times as fast as PIL's resizing, and equal to it within one level.
        return F.interpolate(
            region.permute(2, 0, 1).unsqueeze(0), wanted, mode="bilinear", antialias=True
        )[0]
    y, x = pixels.shape[0] / size[0], pixels.shape[1] / size[1]
    box = (left * x, top * y, (left + columns) * x, (top + rows) * y)
    resized = Image.fromarray(pixels).resize(wanted[::-1], Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def _jpeg_size(content: bytes) -> tuple[int, int]:
    """Return (H, W) of a JPEG that the fast decoder supports, and (0, 0) for any other file."""
    if not content.startswith(b"\xff\xd8\xff"):
        return 0, 0
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return 0, 0
    return (height, width) if colorspace in ("YCbCr", "Gray", "RGB") else (0, 0)


def _decode_jpeg(
    content: bytes,
    name: str,
    size: tuple[int, int],
    crop: tuple[int, int],
    wanted: tuple[int, int],
) -> np.ndarray:
    """Decode a JPEG at the smallest size at which the crop still has enough pixels.

    Args:
        size: (H, W) of the image.
        crop: (rows, columns) of the crop.
        wanted: (H, W) of the result.
    """
    at_least = (0, 0)
    for divisor in REDUCTIONS:
        if all(
            side >= MIN_REDUCED_SIZE * divisor * goal
            for side, goal in zip(crop, wanted, strict=True)
        ):
            at_least = (-(-size[0] // divisor), -(-size[1] // divisor))
            break
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            content, "RGB", min_height=at_least[0], min_width=at_least[1], min_factor=1
        )
    except ValueError:  # PIL may decode what simplejpeg refuses
        return np.array(decode_image(content, name))
    return pixels
