"""What the images of a data set are like: their channels, and the range of their values.

A pretraining recipe states both, its checkpoint keeps them, and every transfer reads its images accordingly. The
default, RGB of 8 bits, is read as described in `decode.py`; all others are in `pixels.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from simmim_bench.errors import DataError, UsageError

ValueRange = Literal["uint8", "uint16", "float"]
VALUE_RANGES: tuple[ValueRange, ...] = ("uint8", "uint16", "float")
WORDS = {"uint8": "8 bits", "uint16": "16 bits", "float": "values as stored"}


@dataclass(frozen=True)
class PixelFormat:
    """Channels and value range of images.

    Attributes:
        in_chans: channels of every image.
        value_range: "uint8", 8 bits per channel; "uint16", 16 bits, read with their full precision; "float", TIFFs of
            any number type, whose values are used as stored. Mean and standard deviation are for values divided by
            255, by 65535, and for the values themselves.
    """

    in_chans: int = 3
    value_range: ValueRange = "uint8"

    @property
    def is_rgb(self) -> bool:
        """Whether images are read as RGB of 8 bits, whatever their files hold."""
        return self == RGB

    @property
    def unit(self) -> int:
        """The value, as a file stores it, that is 1 in mean and standard deviation."""
        return {"uint8": 255, "uint16": 65535, "float": 1}[self.value_range]

    @property
    def decoded_unit(self) -> int:
        """The value of a decoded tensor (`pixels.decode_pixels`) that is 1 in mean and standard deviation."""
        return self.unit if self.value_range == "uint8" else 1

    @property
    def options(self) -> str:
        """The overrides of a pretraining recipe for such images."""
        return f"-o in_chans={self.in_chans} -o value_range={self.value_range}"

    def __str__(self) -> str:
        if self.is_rgb:
            return "RGB images"
        return f"images of {count_channels(self.in_chans)} and {WORDS[self.value_range]}"


RGB = PixelFormat()


def check_statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Check a normalisation of the input.

    Raises:
        UsageError: a value is not a finite number, or a standard deviation is not positive.
    """
    for name, values, low in (("mean", mean, -math.inf), ("std", std, 0.0)):
        if not values or not all(
            isinstance(value, int | float) and low < value < math.inf for value in values
        ):
            raise UsageError(
                f"the {name} {ascii(list(values))[:80]} cannot normalise an image; use finite numbers"
                f"{', larger than 0' if name == 'std' else ''}."
            )
    if len(mean) != len(std):
        raise UsageError(f"{len(mean)} values of the mean and {len(std)} of the std; use as many.")


def wrong_channels(name: str, channels: int, wanted: PixelFormat) -> DataError:
    """Return the error for an image whose channels are not those of the model."""
    return DataError(
        f"image {name} has {count_channels(channels)}, but the model takes {wanted}; use images of "
        f"{count_channels(wanted.in_chans)}, pretrain with -o in_chans={channels}, or adapt a checkpoint: simmim-bench "
        f"convert SRC DST --in-chans {channels}."
    )


def count_channels(channels: int) -> str:
    """Return a number of channels in words."""
    return "1 channel" if channels == 1 else f"{channels} channels"
