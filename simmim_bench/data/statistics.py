"""Compute what a pretraining recipe needs of images other than RGB: their format, mean and standard deviation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from simmim_bench.data.decode import grey_of_16_bits, open_image
from simmim_bench.data.figures import evenly_spaced
from simmim_bench.data.pixel_format import PixelFormat, ValueRange
from simmim_bench.data.pixels import STORED_AS, decode_pixels, png_of_16_bits
from simmim_bench.data.sources import ImageSource
from simmim_bench.display import Display
from simmim_bench.errors import DataError, UsageError
from simmim_bench.untrusted.tiffs import is_tiff, stored_bands

CHANNELS_OF_MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of all pixels of some images, and their range, by channel.

    Attributes:
        images: number of images that were read.
        mean, std, low, high: in the unit of a recipe's mean and std; see `PixelFormat`.
    """

    pixel_format: PixelFormat
    images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def options(self) -> str:
        """The overrides of a pretraining recipe for such images."""
        mean, std = (",".join(f"{v:.6g}" for v in values) for values in (self.mean, self.std))
        return f"{self.pixel_format.options} -o mean={mean} -o std={std}"


def compute_statistics(
    images: ImageSource,
    *,
    channels: int | None,
    value_range: ValueRange | None,
    count: int,
    display: Display,
) -> Statistics:
    """Read images and compute the statistics of all their pixels.

    Args:
        channels, value_range: the format of the images; None to find it in them.
        count: at most this many images are read, evenly spaced.

    Raises:
        UsageError: the format is not given, and the images are of several.
        DataError: an image cannot be decoded, or is of another format.
    """
    chosen = evenly_spaced(images, count)
    wanted = _find_format(chosen, channels, value_range)
    total = np.zeros(wanted.in_chans)
    squares, pixels = np.zeros_like(total), 0
    low, high = np.full_like(total, np.inf), np.full_like(total, -np.inf)
    shift: np.ndarray | None = None
    with display.task("statistics", len(chosen)) as task:
        for content, name in _contents(chosen):
            values = decode_pixels(content, name, wanted).flatten(1).double().numpy()
            if wanted.value_range == "uint8":
                values = values / 255
            if shift is None:  # squares of values far from zero would lose the standard deviation
                shift = values.mean(1)
            centred = values - shift[:, None]
            total += centred.sum(1)
            squares += (centred**2).sum(1)
            pixels += values.shape[1]
            low, high = np.minimum(low, values.min(1)), np.maximum(high, values.max(1))
            task.advance()
    assert shift is not None
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    constant = [str(number) for number, value in enumerate(std, 1) if not value]
    if constant:
        raise DataError(
            f"channel {', '.join(constant)} is constant in the {len(chosen):,} images that were read, and cannot be "
            "normalised; remove it from the images."
        )
    as_tuples = [tuple(map(float, array)) for array in (mean + shift, std, low, high)]
    return Statistics(wanted, len(chosen), *as_tuples)


def _contents(images: ImageSource) -> Iterator[tuple[bytes, str]]:
    for index in range(len(images)):
        yield images.read(index), images.name(index)


def _find_format(
    images: ImageSource, channels: int | None, value_range: ValueRange | None
) -> PixelFormat:
    """Return the format that is given, completed by that of the images."""
    if channels is not None and value_range is not None:
        return PixelFormat(channels, value_range)
    found: dict[PixelFormat, str] = {}
    for content, name in _contents(images):
        stored = stored_format(content, name)
        wanted = PixelFormat(channels or stored.in_chans, value_range or stored.value_range)
        found.setdefault(wanted, name)
    if len(found) > 1:
        examples = ", ".join(f"{name} {one}" for one, name in [*found.items()][:3])
        raise UsageError(
            f"the images are of {len(found)} formats ({examples}); name one with --channels and --value-range."
        )
    return next(iter(found))


def stored_format(content: bytes, name: str) -> PixelFormat:
    """Return the format of an image as it is stored.

    Raises:
        DataError: the image cannot be read, or has pixels that no format has.
    """
    if is_tiff(content):
        bands, kind = stored_bands(content, name)
        ranges: dict[str, ValueRange] = {"uint8": "uint8", "uint16": "uint16", "bool": "uint8"}
        return PixelFormat(bands, ranges.get(kind, "float"))

    def inspect(image: Image.Image) -> PixelFormat:
        sixteen = png_of_16_bits(content)
        if sixteen is not None:
            return PixelFormat(len(sixteen), "uint16")
        image.load()
        if grey_of_16_bits(image) is not None:
            return PixelFormat(1, "uint16")
        if image.mode not in STORED_AS:
            raise DataError(f"image {name} has pixels of Pillow's mode {image.mode}; convert it.")
        return PixelFormat(CHANNELS_OF_MODES[STORED_AS[image.mode]])

    return open_image(content, name, inspect)
