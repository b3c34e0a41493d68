"""Convert the pixels of masks to labels from 1, with 0 for pixels that are ignored: ADE20K's labels.

A mask holds labels (greyscale or palette indices) or colours. With a colour table, the colours of a palette image
count. Labels and colours that the table does not have are counted over all masks, and refused together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simmim_bench.data.decode import upright_size
from simmim_bench.display import plural
from simmim_bench.errors import DataError
from transfer.layouts.class_table import LabelMapping, first_label_error
from transfer.layouts.source import MaskPair
from transfer.segmentation.label_maps import StoredMap, check_map_size, decode_map, labels_of

SHOWN = 4  # unknown labels or colours that a message lists
MAX_UNKNOWN = 1000  # different ones until which masks are read: a photograph has more colours


class MaskConverter:
    """Converts masks, and counts what the class table does not have.

    Attributes:
        pixels: pixels by label of the result.
    """

    def __init__(self, mapping: LabelMapping) -> None:
        self.table, self.mapping = mapping.table, mapping
        self.pixels = np.zeros(256, np.int64)
        self._unknown: Counter[str] = Counter()
        self._masks: Counter[str] = Counter()
        self._first: dict[str, Path] = {}

    def convert(self, pair: MaskPair) -> np.ndarray:
        """Return the labels (H, W) of a mask, uint8; 0 where they are unknown, which `check` refuses.

        Raises:
            DataError: a file is damaged, the sizes of image and mask differ, or the mask is ambiguous.
            UsageError: the mask holds labels, and the class table does not say whether they begin with 0 or 1.
        """
        stored = decode_map(pair.mask)
        width, height = upright_size(pair.image)
        check_map_size(pair.mask, stored.pixels.shape, pair.image, (height, width))
        values, by_colour = self._values(pair.mask, stored)
        # Masks are even in most places: runs of equal pixels are few, and sorting all pixels takes ten times as long.
        flat = values.ravel()
        starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
        lengths = np.diff(starts, append=len(flat))
        used, inverse = np.unique(flat[starts], return_inverse=True)
        labels = self._choose(pair.mask, used, stored, by_colour)
        for number in (number for number, label in enumerate(labels) if label is None):
            pixels = int(lengths[inverse == number].sum())
            self._count_unknown(self._shown(int(used[number]), by_colour), pixels, pair.mask)
        run_labels = np.array([label or 0 for label in labels], np.uint8)[inverse]
        new = np.repeat(run_labels, lengths).reshape(values.shape)
        self.pixels += np.bincount(new.ravel(), minlength=256)
        return new

    def _values(self, mask: Path, stored: StoredMap) -> tuple[np.ndarray, bool]:
        """Return the values (H, W) of a mask, and whether they are colours: 65536 r + 256 g + b."""
        pixels = stored.pixels.astype(np.uint8) if stored.mode == "1" else stored.pixels
        if stored.mode in ("RGBA", "LA"):
            if (pixels[..., -1] != 255).any():
                raise DataError(
                    f"annotation {mask} has transparent pixels, whose colour is not defined; save it without alpha."
                )
            pixels = pixels[..., :-1]
        if pixels.ndim == 3:
            if self.table.colours and pixels.shape[2] == 3:
                red, green, blue = np.moveaxis(pixels.astype(np.int64), 2, 0)
                return 65536 * red + 256 * green + blue, True
            if (pixels == pixels[..., :1]).all():
                return pixels[..., 0], False
            if pixels.shape[2] == 3:
                raise DataError(
                    f"annotation {mask} holds colours, and {self.table.where} has none; name the colour of every class "
                    "with --colours FILE."
                )
        largest = max(self.mapping.new)
        palette = None if self.table.colours else stored.palette
        return labels_of(
            mask, StoredMap(pixels=pixels, mode=stored.mode, palette=palette), largest
        ), False

    def _choose(
        self, mask: Path, used: np.ndarray, stored: StoredMap, by_colour: bool
    ) -> list[int | None]:
        """Return the label of the result for each value that a mask has; None where it is unknown."""
        as_labels = [self.mapping.new.get(value) for value in used.tolist()]
        if not self.table.colours:
            return as_labels
        if by_colour:
            return [self._of_colour(*_unpack(value)) for value in used.tolist()]
        as_colours = [self._of_colour(*_shown_as(value, stored)) for value in used.tolist()]
        if None in as_colours:
            # Labels from 1 end with the number of classes.
            labels = {*self.mapping.new, len(self.table.names)}
            if not self.table.numbered and labels.issuperset(used.tolist()):
                raise first_label_error(self.table)
            return as_labels if None not in as_labels else as_colours
        if None not in as_labels and as_labels != as_colours:
            raise DataError(
                f"annotation {mask} has one channel, whose values are labels and colours of {self.table.where}; save "
                "it in colour, or remove the colours from the table."
            )
        return as_colours

    def _of_colour(self, red: int, green: int, blue: int) -> int | None:
        label = self.table.colours.get((red, green, blue))
        return None if label is None else self.mapping.new[label]

    def _shown(self, value: int, by_colour: bool) -> str:
        return f"colour {','.join(map(str, _unpack(value)))}" if by_colour else f"label {value}"

    def _count_unknown(self, shown: str, pixels: int, mask: Path) -> None:
        self._unknown[shown] += pixels
        self._masks[shown] += 1
        self._first.setdefault(shown, mask)
        if len(self._unknown) > MAX_UNKNOWN:
            self.check()

    def check(self) -> None:
        """Raise an error for labels and colours that the class table does not have.

        Raises:
            DataError: there are some.
        """
        if not self._unknown:
            return
        shown = [
            f"{what} ({plural(count, 'pixel')} in {plural(self._masks[what], 'mask')}, the first is "
            f"{self._first[what]})"
            for what, count in self._unknown.most_common(SHOWN)
        ]
        others = len(self._unknown) - len(shown)
        more = f" and {others:,} others" if others > 0 else ""
        raise DataError(
            f"masks have what class table {self.table.where} does not: {', '.join(shown)}{more}; "
            f"{self._remedy(self._unknown.most_common(1)[0][0])}"
        )

    def _remedy(self, what: str) -> str:
        kind, _, value = what.partition(" ")
        if kind == "colour":
            return f"add it, as `NAME {value.replace(',', ' ')}`, or as `void {value.replace(',', ' ')}` to ignore it."
        return f"ignore it with --ignore-label {value}, or name its class in a table with lines `{value},NAME`."


def _unpack(value: int) -> tuple[int, int, int]:
    return value >> 16, value >> 8 & 255, value & 255


def _shown_as(value: int, stored: StoredMap) -> tuple[int, int, int]:
    """Return the colour by which a value of one channel is shown."""
    if stored.palette is not None:
        if value >= len(stored.palette):
            return -1, -1, -1
        red, green, blue = stored.palette[value].tolist()
        return red, green, blue
    grey = 255 * value if stored.mode == "1" else value
    return grey, grey, grey


def absent_classes(names: Sequence[str], pixels: np.ndarray) -> list[str]:
    """Return the names of the classes that no mask has, given the pixels by label."""
    return [name for label, name in enumerate(names, 1) if not pixels[label]]
