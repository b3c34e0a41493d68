"""Decode JPEGs to RGB by libjpeg-turbo, with Pillow's pixels in less time.

Pillow uses the same library with the same settings, so the pixels are equal bit by bit (tests/data/test_decode.py).
What the functions here refuse, such as CMYK and damaged files, is left to Pillow.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import Image

COLOURS = ("YCbCr", "Gray", "RGB")  # of the JPEGs that are decoded here


def jpeg_size(content: bytes) -> tuple[int, int]:
    """Return (H, W) of a JPEG that is decoded here, and (0, 0) for any other file."""
    if not content.startswith(b"\xff\xd8\xff"):
        return 0, 0
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return 0, 0
    # Pillow refuses twice its limit as a decompression bomb.
    limit = Image.MAX_IMAGE_PIXELS
    if colours not in COLOURS or (limit is not None and height * width > 2 * limit):
        return 0, 0
    return height, width


def decode_jpeg(content: bytes, at_least: tuple[int, int] = (0, 0)) -> np.ndarray | None:
    """Decode a JPEG of which `jpeg_size` returned a size.

    Args:
        at_least: least (H, W) in pixels of the result, which is reduced by up to eight; (0, 0) for full size.

    Returns:
        (H, W, 3) uint8; None where the file is damaged, of which Pillow may still decode some.
    """
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            content, "RGB", min_height=at_least[0], min_width=at_least[1], min_factor=1
        )
    except ValueError:
        return None
    return pixels
