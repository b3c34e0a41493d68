"""Re-encode an image for packing: its shorter side reduced to a given one, as a JPEG, or its bytes unchanged.

The pixels are those that `decode.py` reads for pretraining and classification: stored colours without a profile, CMYK
and palettes as RGB, without alpha, not turned by an EXIF orientation. Grey images stay grey. An image that is small
enough is copied, whatever its format, so that it loses nothing.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from simmim_bench.data.decode import TIFF_BITS, check_samples, decode_image, open_image
from simmim_bench.data.listing import IMAGE_FORMATS
from simmim_bench.data.packed import Packing
from simmim_bench.data.pixel_format import RGB
from simmim_bench.data.pixels import png_of_16_bits
from simmim_bench.errors import DataError

# The first suffix of every format.
SUFFIX_OF = {form: suffix for suffix, form in reversed(IMAGE_FORMATS.items())}
DEEP_MODES = ("I", "F")  # and "I;16", ... : Pillow's modes of more than 8 bits


@dataclass(frozen=True)
class Stored:
    """An image as it is stored in a shard.

    Attributes:
        suffix: of its format, such as ".jpg".
        resized: whether it was re-encoded.
    """

    content: bytes
    suffix: str
    resized: bool


def reencode(content: bytes, name: str, packing: Packing) -> Stored:
    """Return an image for a shard.

    Every image is decoded, so that one that cannot be read is found here and not in a training.

    Raises:
        DataError: the image cannot be decoded; or it is to be resized and has more than 8 bits or other channels than
            JPEG.
    """

    def convert(image: Image.Image) -> Stored:
        if min(image.size) <= packing.short_side:
            image.load()
            return Stored(content, SUFFIX_OF.get(str(image.format), ".jpg"), resized=False)
        _check_depth(image, content, name)
        image.load()
        if image.mode not in ("L", "RGB"):
            grey = image.mode in ("1", "LA")
            image = decode_image(content, name).convert("L" if grey else "RGB")
        return Stored(_to_jpeg(_shrink(image, packing.short_side), packing), ".jpg", resized=True)

    return open_image(content, name, convert)


def _check_depth(image: Image.Image, content: bytes, name: str) -> None:
    check_samples(image, name, RGB)
    bits = getattr(image, "tag_v2", {}).get(TIFF_BITS, (8,))
    deep = image.mode in DEEP_MODES or image.mode.startswith("I;") or max(bits) > 8
    if deep or png_of_16_bits(content) is not None:
        raise DataError(
            f"image {name} has more than 8 bits per channel, which a JPEG would lose; convert the images to 8 bits, or "
            "use them without packing."
        )


def _shrink(image: Image.Image, short_side: int) -> Image.Image:
    """Reduce an image so that its shorter side has `short_side` pixels; the longer one is rounded."""
    shorter = min(image.size)
    width, height = ((side * short_side + shorter // 2) // shorter for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)  # antialiased


def _to_jpeg(image: Image.Image, packing: Packing) -> bytes:
    buffer = io.BytesIO()
    # Optimised Huffman tables: 2 % fewer bytes. A comment of the source would be copied.
    image.save(
        buffer, "JPEG", quality=packing.quality, subsampling="4:2:0", optimize=True, comment=b""
    )
    return buffer.getvalue()
