"""Read label maps: what the labels of a data set mean, and which files hold labels that can be trusted.

A label map is a PNG of one channel whose value is the label. Of a palette PNG the index is the label, as in
MMSegmentation (`LoadAnnotations` with Pillow) and in Pascal VOC's files. An error names the file and the remedy.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from simmim_bench.data.decode import exif_orientation
from simmim_bench.errors import DataError
from simmim_bench.files import IS_LFS_POINTER, LFS_POINTER

IGNORED = 255  # MMSegmentation's value for pixels without a class
FORMATS = ("PNG", "JPEG")  # that Pillow may try; a JPEG is recognised to be refused
# Of the header of a PNG: the offsets of bit depth and colour type, and the type of grey images (W3C PNG, 11.2.2).
PNG_DEPTH, PNG_COLOUR, PNG_GREY = 24, 25, 0


@dataclass(frozen=True, kw_only=True)
class LabelScheme:
    """What the labels of a data set mean.

    Attributes:
        classes: number of classes.
        reduce_zero_label: as MMSegmentation's argument: label 0 is ignored and label 1 is the first class.
            Otherwise label 0 is the first class and 255 is ignored.
    """

    classes: int
    reduce_zero_label: bool = True

    @property
    def ignored(self) -> int:
        """The label of pixels without a class."""
        return 0 if self.reduce_zero_label else IGNORED

    @property
    def largest(self) -> int:
        """The label of the last class."""
        return self.classes if self.reduce_zero_label else self.classes - 1

    def to_classes(self, labels: np.ndarray) -> np.ndarray:
        """Convert labels in range to classes from 0, uint8; ignored pixels become `IGNORED`."""
        labels = labels.astype(np.uint8)
        # 0 wraps round to 255, which is ignored.
        return labels - np.uint8(1) if self.reduce_zero_label else labels

    def to_labels(self, classes: np.ndarray) -> np.ndarray:
        """Convert classes from 0 to labels, uint8."""
        return (classes + self.reduce_zero_label).astype(np.uint8)


def read_classes(path: Path, scheme: LabelScheme, image: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a label map as classes (H, W), uint8; ignored pixels are `IGNORED`.

    Args:
        image: its image, for messages.
        size: (H, W) of the upright image.

    Raises:
        DataError: the file cannot be decoded, does not hold labels, or has another size or a label out of range.
    """
    labels = read_labels(path, scheme.largest)
    check_map_size(path, labels.shape, image, size)
    _check_range(path, labels, scheme)
    return scheme.to_classes(labels)


def check_map_size(path: Path, shape: tuple[int, ...], image: Path, size: tuple[int, int]) -> None:
    """Check that a label map has the size of its image.

    Args:
        shape: (H, W, ...) of the label map.
        image: the file of the image.
        size: (H, W) of the upright image.

    Raises:
        DataError: the sizes differ.
    """
    if shape[:2] != size:
        raise DataError(
            f"annotation {path} is {shape[0]}x{shape[1]} pixels (HxW), its image "
            f"{size[0]}x{size[1]}{_size_remedy(image, shape[:2], size)}"
        )


def read_labels(path: Path, largest: int) -> np.ndarray:
    """Read the labels (H, W) of a label map, of any integer type.

    Args:
        largest: the label of the last class.

    Raises:
        DataError: the file cannot be decoded, or does not hold labels.
    """
    return labels_of(path, decode_map(path), largest)


def labels_of(path: Path, stored: StoredMap, largest: int) -> np.ndarray:
    """Return the labels (H, W) of a decoded label map; see `read_labels`."""
    fault = _channel_fault(stored.pixels, stored.mode)
    if fault is None and stored.palette is not None:
        fault = _palette_fault(stored.pixels, stored.palette, largest)
    if fault is not None:
        raise DataError(f"annotation {path} {fault}")
    return stored.pixels


@dataclass(frozen=True, kw_only=True)
class StoredMap:
    """The pixels of a label map as they are stored.

    Attributes:
        pixels: (H, W) or (H, W, channels).
        mode: Pillow's mode.
        palette: (colours, 3), uint8; None where the file has none.
    """

    pixels: np.ndarray
    mode: str
    palette: np.ndarray | None


def decode_map(path: Path) -> StoredMap:
    """Decode a label map of any number of channels.

    Raises:
        DataError: the file cannot be decoded, or its format changes labels.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, and of damaged metadata
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                pixels, palette = np.asarray(image), image.getpalette()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        raise _unreadable(path, _reason(content, error)) from error
    fault = _format_fault(image.format, content)
    if fault is not None:
        raise DataError(f"annotation {path} {fault}")
    colours = None if palette is None else np.array(palette, np.uint8).reshape(-1, 3)
    return StoredMap(pixels=pixels, mode=image.mode, palette=colours)


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        f"annotation {path} cannot be read: {reason}; replace it or remove it and its image."
    )


def _reason(content: bytes, error: Exception) -> str:
    if content.startswith(LFS_POINTER):
        return IS_LFS_POINTER
    if not content:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):  # its message holds an object's address
        return "it is not a PNG"
    return str(error).rstrip(".") or type(error).__name__


def _format_fault(format_name: str | None, content: bytes) -> str | None:
    """Return why the format of a file changes labels; None if it does not."""
    if format_name != "PNG":
        return "is a JPEG, whose lossy compression changes labels; export it as a PNG."
    depth = content[PNG_DEPTH]
    if content[PNG_COLOUR] == PNG_GREY and depth in (2, 4):
        return (
            f"has {depth} bits per pixel, which readers scale to 0..255, so that label 1 becomes "
            f"{255 // (2**depth - 1)}; save it with 8 bits."
        )
    return None


def _channel_fault(labels: np.ndarray, mode: str) -> str | None:
    """Return why an array is no label map: several channels, or values that are no integers."""
    if labels.ndim == 2:
        if labels.dtype.kind in "biu" and labels.min() >= 0:
            return None
        return f"has values that are no labels ({mode}); save it as a greyscale PNG of 8 bits."
    channels = labels.shape[2]
    colours = labels[..., : 1 if channels == 2 else 3]
    fix = (
        "`simmim-bench data convert DIR OUT --colours FILE` replaces each colour by its class's label; a conversion to "
        "grey does not give labels."
    )
    if (colours == colours[..., :1]).all():
        fix = "save it as a greyscale PNG of 8 bits."
    return f"has {channels} channels ({mode}), but a label map has one; {fix}"


def _palette_fault(labels: np.ndarray, palette: np.ndarray, largest: int) -> str | None:
    """Return why the labels of a palette image are ambiguous: its greys are labels, too, but other ones.

    Programs that make PNGs smaller write grey images as palette images with another order.
    """
    used = np.unique(labels)
    if used[-1] >= len(palette):
        return None
    colours = palette[used]
    greys = colours[:, 0]
    if (colours != greys[:, None]).any() or greys.max() > largest or (greys == used).all():
        return None
    index = int(used[greys != used][0])
    return (
        f"is a palette image in which index {index} is shown as grey {palette[index, 0]}, and either could be the "
        "label; save it as a greyscale PNG of 8 bits."
    )


def _size_remedy(image: Path, shape: tuple[int, ...], size: tuple[int, int]) -> str:
    orientation = exif_orientation(image.read_bytes()) if shape == size[::-1] else 1
    if orientation == 1:
        return "; make both the same size."
    return (
        f" once its EXIF orientation {orientation} is applied, as MMSegmentation does; turn the map likewise, or "
        "remove the orientation from the image."
    )


def _check_range(path: Path, labels: np.ndarray, scheme: LabelScheme) -> None:
    allowed = labels <= scheme.largest
    if not scheme.reduce_zero_label:
        allowed |= labels == IGNORED
    if allowed.all():
        return
    found = int(labels.max() if scheme.reduce_zero_label else labels[~allowed].max())
    if not scheme.reduce_zero_label:
        remedy = (
            "use 255 for pixels to ignore, name all classes in classes.txt, or, if label 0 is to be ignored and "
            "label 1 is the first class, remove reduce_zero_label=false."
        )
    elif found == IGNORED:
        remedy = (
            "if 255 marks pixels to ignore, as 0 does, `simmim-bench data convert DIR OUT --ignore-label 0 "
            "--ignore-label 255` replaces it by 0; if it marks an object, replace it by the label of its class; if "
            "label 0 is a class, use -o reduce_zero_label=false, with which 255 is ignored."
        )
    else:
        remedy = "use 0 for pixels to ignore, or name all classes in classes.txt."
    raise DataError(
        f"annotation {path} has label {found}, but the largest label of {scheme.classes} classes is "
        f"{scheme.largest}; {remedy}"
    )
