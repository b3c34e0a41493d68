"""Read PNG figures of other people: no other format, and not more pixels than a figure has.

Pillow tries every format that it knows, whatever the file is called; PostScript would start an interpreter.
Images of data sets are decoded by `data/decode.py`, whose list of formats holds none of that kind either.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from simmim_bench.errors import DataError
from simmim_bench.untrusted.paths import read_bytes

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 64 << 20
MAX_PIXELS = 50_000_000  # 150 MB as RGB; the figures of a pretraining run have up to 2 million


def read_png(path: Path, what: str) -> Image.Image:
    """Read a PNG as RGB.

    Raises:
        DataError: the file is missing, is no PNG, is damaged, or is too large.
    """
    return decode_png(read_bytes(path, what, MAX_BYTES), f"{what} {path}")


def decode_png(content: bytes, name: str) -> Image.Image:
    """Decode a PNG as RGB; see `read_png`."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked below
            with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(
                        f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}"
                    )
                return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        reason = "it is not a PNG" if type(error).__name__ == "UnidentifiedImageError" else error
        raise DataError(f"{name} cannot be read: {reason}; replace it or remove it.") from error
