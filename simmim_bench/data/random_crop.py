"""Decode an image fast to a random crop, a (3, H, W) uint8 tensor.

The crop is that of SimMIM's data/data_simmim.py: torchvision's RandomResizedCrop and flip, with equal random
numbers for equal seeds. Its pixels differ from PIL's by at most one of 255 levels. For a large JPEG, which is
decoded at a half, a quarter or an eighth of its size, they differ by about one level on average
(tests/data/test_decode.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from simmim_bench.data.decode import decode_image
from simmim_bench.data.jpeg import decode_jpeg, jpeg_size
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.data.pixels import decode_pixels

ASPECT_RATIO = (3 / 4, 4 / 3)  # of a crop; SimMIM: data/data_simmim.py
REDUCTIONS = (8, 4, 2)  # divisors of a JPEG's size at which libjpeg-turbo decodes fast
MIN_REDUCED_SIZE = (
    2.0  # size of a reduced crop relative to the result, at least; Pillow's reducing_gap
)
WHOLE = (0, 0)  # least (H, W) of an image that is decoded at full size


# Decoded images by their least (H, W) in pixels, for further crops of the same file
Decoded = dict[tuple[int, int], Any]


class RandomCropFlip:
    """`random_crop_flip` as a function of a file's content and name, which decodes it once for several crops.

    The decoded image is kept for the next calls with the same bytes object, until as many crops were made of it.
    Every crop has the pixels that it has without the others.

    Args:
        img_size, crop_scale, pixel_format: see `random_crop_flip`.
        crops_per_decode: most crops of one decoding.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        crop_scale: tuple[float, float],
        pixel_format: PixelFormat = RGB,
        *,
        crops_per_decode: int = 1,
    ) -> None:
        self.img_size, self.crop_scale, self.pixel_format = img_size, crop_scale, pixel_format
        self.crops_per_decode = crops_per_decode
        self._content, self._decoded, self._crops = b"", Decoded(), 0

    def __call__(self, content: bytes, name: str) -> Tensor:
        """Return a crop; see `random_crop_flip`."""
        if content is not self._content:
            self._content, self._decoded, self._crops = content, {}, 0
        try:
            return random_crop_flip(
                content,
                name,
                self.img_size,
                self.crop_scale,
                self.pixel_format,
                decoded=self._decoded,
            )
        finally:
            self._crops += 1
            if self._crops >= self.crops_per_decode:
                self._content, self._decoded = b"", {}


def random_crop_flip(
    content: bytes,
    name: str,
    img_size: tuple[int, int],
    crop_scale: tuple[float, float],
    pixel_format: PixelFormat = RGB,
    *,
    decoded: Decoded | None = None,
) -> Tensor:
    """Crop a random region of an image, resize it, and flip it horizontally with probability 1/2.

    Uses torch's global random generator; equal seeds have equal crops, whatever the format of the images.

    Args:
        content: content of the file.
        name: name of the file, for messages.
        img_size: (H, W) of the result.
        crop_scale: range of the crop's area as a fraction of the image's.
        decoded: decoded images of the same content, which are used and added to; None to keep none.

    Returns:
        (C, H, W), as `decode_pixels` returns it.

    Raises:
        DataError: the image cannot be decoded, or is of another format.
    """
    decoded = {} if decoded is None else decoded
    if pixel_format.is_rgb:
        return _crop_flip_rgb(content, name, img_size, crop_scale, decoded)
    if WHOLE not in decoded:
        decoded[WHOLE] = decode_pixels(content, name, pixel_format)
    pixels: Tensor = decoded[WHOLE]
    top, left, rows, columns = RandomResizedCrop.get_params(
        pixels, list(crop_scale), list(ASPECT_RATIO)
    )
    flipped = bool(torch.rand(1) < 0.5)
    region = pixels[:, top : top + rows, left : left + columns].unsqueeze(0)
    resized = F.interpolate(region, img_size, mode="bilinear", antialias=True)[0]
    return resized.flip(2) if flipped else resized


def _crop_flip_rgb(
    content: bytes,
    name: str,
    img_size: tuple[int, int],
    crop_scale: tuple[float, float],
    decoded: Decoded,
) -> Tensor:
    """Crop and flip an image of RGB, (3, H, W) uint8; see `random_crop_flip`."""
    height, width = jpeg_size(content)
    is_jpeg = bool(height)
    if not is_jpeg:
        if WHOLE not in decoded:
            decoded[WHOLE] = np.array(decode_image(content, name))
        height, width = decoded[WHOLE].shape[:2]
    bounds = torch.empty((1, height, width), device="meta")
    top, left, rows, columns = RandomResizedCrop.get_params(
        bounds, list(crop_scale), list(ASPECT_RATIO)
    )
    flipped = bool(torch.rand(1) < 0.5)
    at_least = reduced_size((height, width), (rows, columns), img_size) if is_jpeg else WHOLE
    if at_least not in decoded:
        decoded[at_least] = _decode_jpeg(content, name, at_least)
    resized = _resize(decoded[at_least], (top, left, rows, columns), (height, width), img_size)
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


def reduced_size(
    size: tuple[int, int], crop: tuple[int, int], wanted: tuple[int, int]
) -> tuple[int, int]:
    """Return the least (H, W) at which to decode a JPEG: the smallest reduction at which the crop has enough pixels.

    Args:
        size: (H, W) of the image.
        crop: (rows, columns) of the crop.
        wanted: (H, W) of the result.
    """
    for divisor in REDUCTIONS:
        if all(
            side >= MIN_REDUCED_SIZE * divisor * goal
            for side, goal in zip(crop, wanted, strict=True)
        ):
            return -(-size[0] // divisor), -(-size[1] // divisor)
    return WHOLE


def _decode_jpeg(content: bytes, name: str, at_least: tuple[int, int]) -> np.ndarray:
    """Decode a JPEG at the smallest size that libjpeg-turbo reduces to and that has at least (H, W) pixels."""
    pixels = decode_jpeg(content, at_least)
    return np.array(decode_image(content, name)) if pixels is None else pixels
