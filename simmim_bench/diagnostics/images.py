"""What the checks of `simmim-bench doctor` for classification and pretraining find in the images of a split."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from simmim_bench.data.decode import exif_orientation
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.data.pixels import decode_pixels
from simmim_bench.data.sources import ImageSource
from simmim_bench.diagnostics.data_checks import FindingGroup
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.display import plural
from simmim_bench.untrusted.tiffs import count_bands, stored_bands

DARK = 15  # of 255: the upper 8 of 16 bits that hold values of 12 bits


@dataclass
class ReadImages:
    """What the images of a split that were read are found to be.

    Attributes:
        pixel_format: what they should be like.
        turned: images with an EXIF orientation other than upright.
        dark: images of 8 bits without a pixel above `DARK`.
        pages: TIFFs of several pages of equal size, of which the first one is read.
        copies: names of the images by the hash of their content.
    """

    pixel_format: PixelFormat = RGB
    turned: list[str] = field(default_factory=list)
    dark: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    copies: dict[bytes, list[str]] = field(default_factory=lambda: defaultdict(list))

    def read(self, images: ImageSource, index: int) -> None:
        """Decode an image, as a run does, and note what it is.

        Raises:
            DataError: the image cannot be decoded.
        """
        content, name = images.read(index), images.name(index)
        pixels = decode_pixels(content, name, self.pixel_format)
        if pixels.dtype == torch.uint8 and int(pixels.max()) <= DARK:
            self.dark.append(name)
        if count_bands(content) == 1:
            bands, _ = stored_bands(content, name)
            read = 1 if self.pixel_format.is_rgb else self.pixel_format.in_chans
            if bands not in (1, read):
                self.pages.append(name)
        if exif_orientation(content) != 1:
            self.turned.append(name)
        self.copies[hashlib.sha256(content).digest()].append(name)

    def remarks(self, split: str, group: FindingGroup) -> Iterator[Finding]:
        """Yield what a user may want to change in a split whose images can all be used."""
        if self.turned:
            yield group.finding(
                f"{split} orientation",
                "warning",
                f"{plural(len(self.turned), 'image has', 'images have')} an EXIF orientation, which classification "
                "and pretraining do not apply, as published pipelines do not",
                remedy="to have them upright, rotate the files",
                items=self.turned,
            )
        if self.dark:
            yield group.finding(
                f"{split} range",
                "warning",
                f"{plural(len(self.dark), 'image is', 'images are')} nearly black: no pixel is above {DARK} of 255",
                remedy="where 12 bits are stored as 16, multiply the pixels by 16",
                items=self.dark,
            )
        if self.pages:
            yield group.finding(
                f"{split} pages",
                "warning",
                f"{plural(len(self.pages), 'TIFF has', 'TIFFs have')} several pages of equal size, of which the first "
                "one is read",
                remedy="if the pages are channels, pretrain with -o in_chans=... and their mean and std, which "
                "`simmim-bench data statistics DIR` prints",
                items=self.pages,
            )
        again = [names for names in self.copies.values() if len(names) > 1]
        if again:
            extra = sum(len(names) - 1 for names in again)
            read = sum(map(len, self.copies.values()))
            yield group.finding(
                f"{split} copies",
                "warning",
                f"{extra:,} of the {read:,} images {'are copies' if extra > 1 else 'is a copy'} of another one",
                items=[" = ".join(names) for names in again],
            )
