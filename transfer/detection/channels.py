"""Resize images of any channels and number type in Detectron2's augmentations.

Detectron2's `ResizeTransform` takes four channels of 8 bits for RGBA, whose colours Pillow weights by alpha, fails on
five, and resizes other numbers than 8 bits without the antialiasing of Pillow's filters. Imports Detectron2 at the
top: import this module after `framework.require_detectron2` has passed.
"""

from __future__ import annotations

import numpy as np
import torch
from detectron2.data.transforms import AugInput, ResizeTransform, Transform
from PIL import Image
from torchvision.transforms import InterpolationMode

from simmim_bench.data.pixel_format import PixelFormat
from simmim_bench.data.pixel_transforms import resize_pixels


class ChannelInput(AugInput):
    """An image (H, W, C), uint8 or float32, whose channels are resized independently, bilinearly, antialiased."""

    image: np.ndarray

    def __init__(self, image: np.ndarray, pixel_format: PixelFormat) -> None:
        super().__init__(image)
        self.pixel_format = pixel_format

    def transform(self, tfm: Transform) -> None:
        """Apply a transform to the image."""
        if not isinstance(tfm, ResizeTransform):
            super().transform(tfm)
            return
        assert tfm.interp == Image.Resampling.BILINEAR
        pixels = torch.from_numpy(np.ascontiguousarray(self.image)).permute(2, 0, 1)
        resized = resize_pixels(
            pixels, (tfm.new_h, tfm.new_w), self.pixel_format, InterpolationMode.BILINEAR
        )
        self.image = resized.permute(1, 2, 0).numpy()
