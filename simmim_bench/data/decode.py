"""Decode image files, whatever their format, to RGB.

One policy for all tasks. The content decides the format, not the suffix, and of several frames or pages the first
one is read. Colours become RGB by Pillow's `convert`, as in torchvision's, timm's and Detectron2's loaders:
palettes are looked up, grey is repeated, alpha is dropped, CMYK is converted without a colour profile. Of 16 bits
per channel the upper 8 are kept, in grey images as in coloured ones (Pillow's `convert` alone clips grey at 255).
Grey pixels of 32 bits have no defined range and are refused.

EXIF orientation is applied for COCO and ADE20K, whose published pipelines apply it (`read_image` in Detectron2's
data/detection_utils.py; cv2.IMREAD_COLOR in mmcv's image/io.py). It is not applied for pretraining and
classification, whose published pipelines use pixels as they are stored (`pil_loader` in torchvision's
datasets/folder.py; timm's data/dataset.py).
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from simmim_bench.data.jpeg import decode_jpeg, jpeg_size
from simmim_bench.data.listing import IMAGE_FORMATS
from simmim_bench.data.pixel_format import RGB, PixelFormat, wrong_channels
from simmim_bench.errors import DataError
from simmim_bench.files import IS_LFS_POINTER, LFS_POINTER
from simmim_bench.untrusted.tiffs import count_bands, is_tiff

Result = TypeVar("Result")
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLES, TIFF_WHITE_IS_ZERO = (
    258,
    262,
    277,
    0,
)  # tags of TIFF 6.0, and a value
# What makes an image of an EXIF orientation upright: CIPA DC-008 (Exif 2.32), section 4.6.4, tag 274.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height


def read_image(path: Path, *, upright: bool = False) -> Image.Image:
    """Read and decode an image file as RGB; see `decode_image`.

    Raises:
        DataError: The image cannot be decoded.
    """
    return decode_image(read_file(path), str(path), upright=upright)


def read_file(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(str(path), error.strerror) from error


def decode_image(content: bytes, name: str, *, upright: bool = False) -> Image.Image:
    """Decode an image as RGB.

    Args:
        content: content of the file.
        name: name of the file, for messages.
        upright: whether to apply the EXIF orientation, if the image has one.

    Raises:
        DataError: The image cannot be decoded.
    """

    pixels = None if upright or not any(jpeg_size(content)) else decode_jpeg(content)
    if pixels is not None:
        return Image.fromarray(pixels)

    def to_upright_rgb(image: Image.Image) -> Image.Image:
        check_samples(image, name, RGB)
        image.load()
        rgb = _to_rgb(image, name)
        turn = TURNS.get(read_orientation(image)) if upright else None
        return rgb if turn is None else rgb.transpose(turn)

    return open_image(content, name, to_upright_rgb)


def decode_array(content: bytes, name: str) -> np.ndarray:
    """Decode an image as RGB, (H, W, 3) uint8, with the pixels of `decode_image`.

    Raises:
        DataError: The image cannot be decoded.
    """
    pixels = decode_jpeg(content) if any(jpeg_size(content)) else None
    return np.array(decode_image(content, name)) if pixels is None else pixels


def open_image(
    content: bytes, name: str, use: Callable[[Image.Image], Result], wanted: PixelFormat = RGB
) -> Result:
    """Open an image and return what a function computes from it.

    Args:
        wanted: the format of the model, for the message on a TIFF of more channels than Pillow reads.

    Raises:
        DataError: the image cannot be opened, or the function cannot decode it.
    """
    try:
        with warnings.catch_warnings():
            # A damaged EXIF block or a trailing byte does not change the pixels.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
                return use(image)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        # Pillow knows no TIFF of several bands, but a damaged one of colours.
        unknown = isinstance(error, UnidentifiedImageError)
        bands = count_bands(content) if unknown else None
        if bands is not None and bands != wanted.in_chans:
            raise wrong_channels(name, bands, wanted) from error
        raise unreadable(name, _reason(content, error)) from error


def exif_orientation(content: bytes) -> int:
    """Return an image's EXIF orientation, 1 to 8; 1, upright, for an image without one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
                return read_orientation(image)
        except Exception:  # reported where the image is decoded
            return 1


def read_header(path: Path) -> tuple[tuple[int, int], int]:
    """Return (width, height) of an image's stored pixels, and its EXIF orientation, without decoding it.

    Raises:
        DataError: The file cannot be read as an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=readable_formats()) as image:
                return image.size, read_orientation(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        content = path.read_bytes() if path.is_file() else b""
        raise unreadable(str(path), _reason(content, error)) from error


def upright_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image that is turned upright by its EXIF orientation; see `read_header`."""
    size, orientation = read_header(path)
    return size[::-1] if orientation in SIDEWAYS else size


def read_orientation(image: Image.Image) -> int:
    """Return the orientation that remains to be applied to an opened image, 1 to 8; 1 if it is unknown.

    Pillow itself turns a TIFF.
    """
    if image.format == "TIFF":
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block, as in Detectron2's `_apply_exif_orientation`
        return 1
    return orientation if orientation in range(1, 9) else 1


@lru_cache(maxsize=1)
def readable_formats() -> tuple[str, ...]:
    """Return the formats that Pillow may try: others need external programs or hold no pixels."""
    # It logs the channels of a TIFF that it does not read; the error names them.
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    Image.init()
    return tuple(f for f in dict.fromkeys(IMAGE_FORMATS.values()) if f in Image.OPEN)


def unreadable(name: str, reason: str | None) -> DataError:
    """Return the error for an image that cannot be read."""
    return DataError(f"image {name} cannot be read: {reason}; replace it or remove it.")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert an image of any mode to RGB, as the module's docstring describes."""
    values = grey_of_16_bits(image)
    if values is not None:
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(
            f"image {name} has pixels of 32 bits (Pillow's mode {image.mode}), whose range is not defined; convert "
            "it to 8 or 16 bits, or pretrain with -o in_chans=1 -o value_range=float."
        )
    if "transparency" in image.info and image.mode in ("P", "L", "1"):
        return image.convert("RGBA").convert("RGB")  # the same colours; directly, Pillow warns
    return image.convert("RGB")


def check_samples(image: Image.Image, name: str, wanted: PixelFormat) -> None:
    """Refuse a TIFF of several bands that are no colours, of which Pillow reads the first one as grey.

    Raises:
        DataError: it has them.
    """
    samples = getattr(image, "tag_v2", {}).get(TIFF_SAMPLES, 1)
    if samples > 1 and len(image.getbands()) == 1:
        raise wrong_channels(name, samples, wanted)


def grey_of_16_bits(image: Image.Image) -> np.ndarray | None:
    """Return the values (H, W) of a grey image of 16 bits; None for any other image."""
    # Pillow before 11.0 reads 16-bit PNGs as mode I, and every version PGMs, whose values it scales to 16 bits.
    if not (
        image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    ):
        return None
    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})
    if tags.get(TIFF_BITS) == (12,):
        values <<= 4
    if tags.get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO:
        values = 65535 - values
    return values


def _reason(content: bytes, error: Exception) -> str:
    """Return why an image cannot be decoded; Pillow's message may hold an object's address."""
    if not content:
        return "the file is empty"
    if content.startswith(LFS_POINTER):
        return IS_LFS_POINTER
    if isinstance(error, UnidentifiedImageError) and is_tiff(content):
        return "it is a TIFF, but not one of RGB colours or grey of 8 or 16 bits that Pillow reads"
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of the formats that Pillow reads here ({', '.join(readable_formats())})"
    return str(error).rstrip(".") or type(error).__name__
