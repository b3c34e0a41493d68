"""Read the bands of TIFF files of other people: any number of them, of any number type, in either layout.

tifffile parses the file. Its readers of vendors' metadata are switched off, sizes are checked before anything is
allocated, and a compressed strip or tile cannot expand beyond the size that its header declares. The first page is
read. A file that stores every band as a page, as tifffile writes an array (bands, H, W), is read as those bands.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from simmim_bench.errors import DataError, MissingFrameworkError

if TYPE_CHECKING:
    import numpy as np

HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # TIFF 6.0, section 2, and BigTIFF
MAX_VALUES = (
    500_000_000  # as of an RGB image of the size that Pillow refuses as a decompression bomb
)
MAX_BANDS = 1024
DEFLATE = (8, 32946)
# Compressions whose decoders take the size of their output: none, LZW, Deflate, PackBits, LZMA, Zstandard. Those of
# photographs (JPEG, JPEG 2000, WebP, ...) allocate what a header inside of the strip says.
COMPRESSIONS = (1, 5, *DEFLATE, 32773, 34925, 50000)
WITHOUT_IMAGECODECS = (1, *DEFLATE, 32773)
WHITE_IS_ZERO, PALETTE, YCBCR = 0, 3, 6  # PhotometricInterpretation
ORIENTATION, GDAL_NODATA = 274, 42113  # tags of TIFF 6.0 and of GDAL's GTiff driver


class TiffBands(NamedTuple):
    """The bands of a TIFF.

    Attributes:
        pixels: (bands, H, W), in the file's number type.
        bits: per value, as stored; 12 in 16-bit numbers for 12-bit images.
        white_is_zero: whether 0 is white.
        orientation: 1 to 8, as in EXIF.
        no_data: the value that marks pixels without data; None if the file names none.
    """

    pixels: np.ndarray
    bits: int
    white_is_zero: bool
    orientation: int
    no_data: float | None


def is_tiff(content: bytes) -> bool:
    """Return whether a file is a TIFF, by its first bytes."""
    return content.startswith(HEADERS)


def read_tiff(content: bytes, name: str, bands: int) -> TiffBands:
    """Read the bands of a TIFF.

    Args:
        content: content of the file.
        name: name of the image, for messages.
        bands: expected number; a file with another number is read as its first page.

    Raises:
        DataError: the file is damaged, too large, or of a kind that is not read.
        MissingFrameworkError: its compression needs imagecodecs.
    """
    import numpy as np

    try:
        with _open(content) as file:
            pages = _pages(file, bands)
            parts = [_read_page(page, content, name) for page in pages]
            first = pages[0]
            return TiffBands(
                pixels=parts[0] if len(parts) == 1 else np.concatenate(parts),
                bits=int(first.bitspersample),
                white_is_zero=first.photometric == WHITE_IS_ZERO,
                orientation=_orientation(first.tags.valueof(ORIENTATION)),
                no_data=_no_data(first.tags.valueof(GDAL_NODATA)),
            )
    except (DataError, MissingFrameworkError, MemoryError):
        raise
    except Exception as error:  # tifffile raises nearly every type on damaged files
        if "imagecodecs" in str(error):
            raise _needs_imagecodecs(name, "its encoding") from error
        raise _unreadable(name, error) from error


def count_bands(content: bytes) -> int | None:
    """Return the channels of a TIFF's first page; None for another file, or one whose header is damaged."""
    if not is_tiff(content):
        return None
    try:
        with _open(content) as file:
            count = file.pages[0].samplesperpixel
    except Exception:  # tifffile raises nearly every type on damaged files
        return None
    return count if isinstance(count, int) and 0 < count <= MAX_BANDS else None


def stored_bands(content: bytes, name: str) -> tuple[int, str]:
    """Return the number of bands of a TIFF, or of its pages where each is one of the bands, and their number type.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with _open(content) as file:
            first, bands = file.pages[0], 1
            kind = str(first.dtype)
            if first.samplesperpixel > 1:
                return first.samplesperpixel, kind
            for number in range(1, MAX_BANDS):
                try:
                    bands += _kind(file.pages[number]) == _kind(first)
                except IndexError:
                    return (bands if bands == number else 1), kind
            return 1, kind
    except Exception as error:  # tifffile raises nearly every type on damaged files
        raise _unreadable(name, error) from error


def _kind(page: Any) -> tuple[Any, ...]:
    return page.shape, str(page.dtype), page.photometric


def _unreadable(name: str, error: Exception) -> DataError:
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    return DataError(
        f"image {name} cannot be read: {ascii(reason)[1:-1][:200]}; replace it or remove it."
    )


def _open(content: bytes) -> Any:
    import tifffile

    # It logs oddities of metadata that the pixels do not depend on; faults raise.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    vendors: dict[str, Any] = {f"is_{kind}": False for kind in tifffile.TIFF.FILE_FLAGS}
    return tifffile.TiffFile(io.BytesIO(content), **vendors)


def _pages(file: Any, bands: int) -> list[Any]:
    """Return the first page; where each page is one of the bands, all of them."""
    first = file.pages[0]
    if first.samplesperpixel != 1 or not 1 < bands <= MAX_BANDS:
        return [first]
    pages = [first]
    for number in range(1, bands + 1):
        try:
            pages.append(file.pages[number])
        except IndexError:
            break
    alike = len({_kind(page) for page in pages}) == 1
    return pages if len(pages) == bands and alike else [first]


def _read_page(page: Any, content: bytes, name: str) -> np.ndarray:
    """Decode a page as (bands, H, W)."""
    sizes = (page.imagewidth, page.imagelength, page.samplesperpixel, page.imagedepth)
    if not all(isinstance(size, int) and size > 0 for size in sizes) or page.imagedepth != 1:
        raise ValueError(f"its size {sizes} is not that of an image")
    segment = math.prod((page.tilewidth or 1, page.tilelength or 1, page.tiledepth or 1))
    if page.samplesperpixel > MAX_BANDS or max(math.prod(sizes), segment) > MAX_VALUES:
        raise ValueError(
            f"it has {page.imagewidth} x {page.imagelength} pixels of {page.samplesperpixel} channels, more than "
            f"{MAX_VALUES:,} values"
        )
    if page.photometric in (PALETTE, YCBCR):
        raise ValueError(
            "its channels are not colours but a palette's numbers or YCbCr; convert it"
        )
    kind = getattr(page.compression, "name", str(page.compression))
    if page.compression not in COMPRESSIONS:
        raise ValueError(f"its compression {kind} is not read; write it with Deflate or LZW")
    installed = importlib.util.find_spec("imagecodecs") is not None
    if not installed and page.compression not in WITHOUT_IMAGECODECS:
        raise _needs_imagecodecs(name, f"its compression {kind}")
    if not installed and page.compression in DEFLATE:
        _check_deflated(page, content)
    pixels: np.ndarray = page.asarray(maxworkers=1)
    axes = page.axes
    if sorted(axes) not in (["X", "Y"], ["S", "X", "Y"]):
        raise ValueError(f"its axes {axes} are not those of an image")
    if "S" not in axes:
        return pixels[None]
    return pixels.transpose([axes.index(axis) for axis in "SYX"])


def _check_deflated(page: Any, content: bytes) -> None:
    """Refuse strips or tiles that expand beyond their size; tifffile's own decoder has no limit."""
    limit = math.prod(page.chunks) * page.dtype.itemsize
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        unpacker = zlib.decompressobj()
        unpacker.decompress(content[start : start + size], limit)
        if unpacker.unconsumed_tail and unpacker.decompress(unpacker.unconsumed_tail, 1):
            raise ValueError("a strip or tile is larger than the file declares")


def _orientation(value: Any) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _no_data(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _needs_imagecodecs(name: str, what: str) -> MissingFrameworkError:
    return MissingFrameworkError(
        f"image {name} needs the package imagecodecs for {what}: pip install 'simmim-bench[tiff]'."
    )
