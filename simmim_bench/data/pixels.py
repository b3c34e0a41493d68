"""Decode images of any channels and of 8 bits, 16 bits or real numbers to tensors, as a `PixelFormat` describes them.

RGB of 8 bits is read by `decode.py`. For every other format nothing is converted in silence: an image with another
number of channels or bits is refused by name, with one exception, an 8-bit image for a model of one channel. It
becomes grey by Pillow's `convert("L")`, as in torchvision's `Grayscale` and timm's loader.

TIFFs hold any number of channels: as samples of a pixel, interleaved or in planes, or as one page each. PNGs and the
other formats hold up to four, alpha included, which is read as stored. Grey where 0 is white is inverted, and the
orientation of a TIFF is applied, as Pillow does. GDAL's no-data value is refused among real numbers, where it is far
from all others; among integers it is a value like any other, often 0 at the border of a satellite image.

Pixels of 16 bits become float32 in [0, 1], divided by 65535; real numbers become float32 as stored. A uint8 tensor
is divided by 255 where it is normalised (`normalise.normalise`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png

from simmim_bench.data import decode
from simmim_bench.data.pixel_format import RGB, PixelFormat, wrong_channels
from simmim_bench.errors import DataError
from simmim_bench.untrusted.tiffs import is_tiff, read_tiff

PNG_SIGNATURE, PNG_BIT_DEPTH = (
    b"\x89PNG\r\n\x1a\n",
    24,
)  # and the byte that holds it (PNG, section 11.2.1)
GREY_8 = PixelFormat(1, "uint8")
MAX_UINT16 = 65535
# The mode that has a mode's channels as stored; palettes are looked up.
STORED_AS = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA"}


def decode_pixels(
    content: bytes, name: str, pixel_format: PixelFormat = RGB, *, upright: bool = False
) -> Tensor:
    """Decode an image as (C, H, W): uint8 for 8 bits, else float32 in the unit of mean and standard deviation.

    Args:
        content: content of the file.
        name: name of the file, for messages.
        upright: whether to apply the EXIF orientation, if the image has one.

    Raises:
        DataError: the image cannot be decoded, or is of another format.
        MissingFrameworkError: its compression needs imagecodecs.
    """
    if pixel_format.is_rgb:
        return _to_tensor(decode.decode_image(content, name, upright=upright))
    if is_tiff(content) and pixel_format != GREY_8:
        return torch.from_numpy(_read_tiff(content, name, pixel_format))
    if pixel_format.value_range == "float":
        raise DataError(
            f"image {name} is no TIFF, but the model takes {pixel_format}; use TIFFs, or pretrain with "
            "-o value_range=uint8 or uint16."
        )

    def read(image: Image.Image) -> Tensor:
        found = _read_image(image, content, name, pixel_format)
        orientation = decode.read_orientation(image) if upright else 1
        return torch.from_numpy(turn_upright(found, orientation))

    return decode.open_image(content, name, read, pixel_format)


def read_pixels(path: Path, pixel_format: PixelFormat = RGB, *, upright: bool = False) -> Tensor:
    """Read and decode an image file as (C, H, W); see `decode_pixels`.

    Raises:
        DataError: the image cannot be decoded, or is of another format.
        MissingFrameworkError: its compression needs imagecodecs.
    """
    return decode_pixels(decode.read_file(path), str(path), pixel_format, upright=upright)


def _to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an image (C, H, W)."""
    pixels = np.array(image)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _read_image(image: Image.Image, content: bytes, name: str, wanted: PixelFormat) -> np.ndarray:
    """Read an image that Pillow has opened as (C, H, W), uint8 or float32."""
    sixteen, bits = png_of_16_bits(content), 16
    if sixteen is not None:
        values = sixteen
    else:
        decode.check_samples(image, name, wanted)
        image.load()
        grey = decode.grey_of_16_bits(image)
        if grey is not None:
            values = grey[None]
        elif image.mode not in STORED_AS:
            raise DataError(
                f"image {name} has pixels of Pillow's mode {image.mode}, which a model of {wanted} does not take; "
                "convert it."
            )
        else:
            bits = 8
            transparent = image.mode == "P" and "transparency" in image.info
            mode = "RGBA" if transparent else STORED_AS[image.mode]
            converted = image if image.mode == mode else image.convert(mode)
            if wanted == GREY_8:
                converted = converted.convert("L")
            pixels = np.array(converted)
            values = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    _check_channels(name, len(values), wanted)
    _check_bits(name, bits, wanted)
    return values if wanted.value_range == "uint8" else _to_unit(values)


def png_of_16_bits(content: bytes) -> np.ndarray | None:
    """Decode a PNG of 16 bits, of whose colours Pillow keeps the upper 8, as (C, H, W); None for any other image.

    Pillow must have opened the image before: it refuses one of too many pixels.
    """
    if not content.startswith(PNG_SIGNATURE) or content[PNG_BIT_DEPTH] != 16:
        return None
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    values: np.ndarray = decode_png(data, ImageReadMode.UNCHANGED).numpy()
    return values


def _read_tiff(content: bytes, name: str, wanted: PixelFormat) -> np.ndarray:
    """Read a TIFF as (C, H, W), uint8 or float32."""
    found = read_tiff(content, name, wanted.in_chans)
    values = found.pixels
    _check_channels(name, len(values), wanted)
    if wanted.value_range != "float":
        integers = values.dtype.kind == "u" and found.bits in (8, 16)
        _check_bits(name, found.bits if integers else str(values.dtype), wanted)
        if found.white_is_zero:
            values = np.iinfo(values.dtype).max - values
        if wanted.value_range == "uint16":
            values = _to_unit(values)
    else:
        values = _to_float(values, found.no_data, name)
    return turn_upright(values, found.orientation)


def _to_unit(values: np.ndarray) -> np.ndarray:
    """Return values of 16 bits divided by 65535, float32."""
    scaled: np.ndarray = values.astype(np.float32) / np.float32(MAX_UINT16)
    return scaled


def _to_float(values: np.ndarray, no_data: float | None, name: str) -> np.ndarray:
    """Return values as float32; refuse those that are not finite and those that mark missing data."""
    if values.dtype.kind not in "iuf":
        raise DataError(f"image {name} has pixels of type {values.dtype}; convert them to numbers.")
    if no_data is not None and (values == no_data).any():
        raise DataError(
            f"image {name} has pixels without data (GDAL's no-data value {no_data:g}); fill them or remove the image."
        )
    with np.errstate(over="ignore"):
        converted: np.ndarray = values.astype(np.float32)
    if not np.isfinite(converted).all():
        raise DataError(
            f"image {name} has pixels that are not finite numbers (NaN or infinity); fill them or remove the image."
        )
    return converted


def _check_channels(name: str, channels: int, wanted: PixelFormat) -> None:
    if channels != wanted.in_chans:
        raise wrong_channels(name, channels, wanted)


def _check_bits(name: str, bits: int | str, wanted: PixelFormat) -> None:
    """Refuse an image whose values have another range: 8 bits read as 16 would be nearly black."""
    if f"uint{bits}" == wanted.value_range:
        return
    has = f"{bits} bits per channel" if isinstance(bits, int) else f"values of type {bits}"
    other = f"uint{bits}" if bits in (8, 16) else "float"
    raise DataError(
        f"image {name} has {has}, but the model takes {wanted}; use images of {wanted.value_range}, or pretrain with "
        f"-o value_range={other}."
    )


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (C, H, W) of an EXIF orientation, 1 to 8, upright; see `decode.TURNS`."""
    if orientation >= 5:
        pixels = pixels.transpose(0, 2, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, :, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
