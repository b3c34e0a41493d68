"""Headings and legends of figures of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simmim_bench.untrusted.text import shorten, visible

FONT_SIZE = 13  # pixels
LINE = 20  # height of a line in pixels
MAX_NAME = 24  # characters of a name in a legend
INK, PAPER = (0, 0, 0), (255, 255, 255)


def add_captions(
    image: np.ndarray,
    headings: Sequence[tuple[int, str]],
    legend: Sequence[tuple[str, Sequence[int]]] = (),
) -> np.ndarray:
    """Return an image (H, W, 3), uint8, with headings above and a legend below.

    Args:
        headings: the left end of each in pixels, and its text, which is cut off where the next one begins.
        legend: names with their colours in 0..255, in rows as wide as the image.
    """
    font = _font()
    width = image.shape[1]
    top = Image.new("RGB", (width, LINE), PAPER)
    for (left, text), (right, _) in zip(headings, [*headings[1:], (width, "")], strict=True):
        column = Image.new("RGB", (max(1, right - left), LINE), PAPER)
        ImageDraw.Draw(column).text((4, 2), text, INK, font)
        top.paste(column, (left, 0))
    return np.concatenate([np.asarray(top), image, _legend(width, legend, font)])


def _legend(
    width: int, entries: Sequence[tuple[str, Sequence[int]]], font: ImageFont.FreeTypeFont
) -> np.ndarray:
    """Return the rows of a legend (H, W, 3); no row without entries."""
    if not entries:
        return np.zeros((0, width, 3), np.uint8)
    places, x, y = list[tuple[int, int, str, Sequence[int]]](), 0, 0
    for name, colour in entries:
        text = shorten(visible(name), MAX_NAME)
        needed = LINE + round(font.getlength(text)) + 12
        if x and x + needed > width:
            x, y = 0, y + LINE
        places.append((x, y, text, colour))
        x += needed
    rows = Image.new("RGB", (width, y + LINE), PAPER)
    draw = ImageDraw.Draw(rows)
    for left, above, text, colour in places:
        square = (left + 4, above + 4, left + LINE - 4, above + LINE - 4)
        draw.rectangle(square, fill=(colour[0], colour[1], colour[2]), outline=INK)
        draw.text((left + LINE, above + 2), text, INK, font)
    return np.asarray(rows)


def _font() -> ImageFont.FreeTypeFont:
    """Return matplotlib's own font, which has more alphabets than Pillow's."""
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), FONT_SIZE)
