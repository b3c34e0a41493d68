"""Add up COCO's run lengths: pycocotools and hotcoco do not check that they fill their mask.

Where they do not, pycocotools may not return, and hotcoco computes another score.

The compressed form is that of `rleToString` in pycocotools' maskApi.c: groups of five bits, the lowest first, a sixth
bit for "more follow", a sign in the last group's highest bit; from the fourth run on, the difference to the run before
the previous one.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from simmim_bench.untrusted.json_text import parse_unlimited
from simmim_bench.untrusted.text import shorten

LONGEST = 7  # groups of a run, 35 bits: no image has such a run
CHUNK = 1 << 14  # characters that are decoded at once: their arrays stay in a processor's cache
# Of a results file: parsing it in Python takes ten times as long as the evaluation.
_SIZE, _COUNTS = rb'"size"\s*:\s*(\[[\d\s,]*\])', rb'"counts"\s*:\s*"((?:[^"\\]|\\.)*)"'
MASK = re.compile(rb"\{\s*(?:%b\s*,\s*%b|%b\s*,\s*%b)\s*\}" % (_SIZE, _COUNTS, _COUNTS, _SIZE))
COUNTS, IMAGE_ID = re.compile(rb'"counts"\s*:'), re.compile(rb'"image_id"\s*:\s*(\d+)\s*[,}]')
OUTLINES = re.compile(rb'"segmentation"\s*:\s*\[\s*[^\]\s]')
Match = re.Match[bytes]
Values = np.ndarray[Any, np.dtype[np.int64]]


def check_masks(text: bytes, truth: Mapping[str, Any]) -> None:
    """Check the masks in a results file, whose sizes and run lengths the libraries take on trust.

    Raises:
        ValueError: a mask is not given as run lengths, has another size than its image, or does not fill it.
    """
    if rb"\u" in text:  # would hide a key from the patterns; run lengths have no such escape
        raise ValueError("a key or text has a character as \\u and its number")
    if OUTLINES.search(text):
        raise ValueError("a mask is not given as run lengths")
    images = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
    for number, image, size, total in _find_masks(text):
        wanted = images.get(image)
        if wanted is None:
            continue  # the libraries report an unknown image
        if size != wanted:
            raise ValueError(
                f"detection {number:,} has a mask of size {shorten(str(size), 40)} in an image of {wanted}"
            )
        if total != wanted[0] * wanted[1]:
            raise ValueError(
                f"the run lengths of detection {number:,} do not add up to the pixels of its image; predict again"
            )


def _find_masks(text: bytes) -> Iterator[tuple[int, Any, Any, int | None]]:
    """Yield the number, the image id, the size and the sum of the run lengths of every detection with a mask."""
    found, ids = [*MASK.finditer(text)], [*IMAGE_ID.finditer(text)]
    if len(found) == len(ids) == len(COUNTS.findall(text)) and _one_each(text, found, ids):
        masks, images = [mask.groups() for mask in found], [image[1] for image in ids]
        counts = [first or second for _, first, second, _ in masks]
        # A backslash is a valid character of run lengths, and doubled in JSON.
        counts = [parse_unlimited(b'"%s"' % c).encode() if b"\\" in c else c for c in counts]
        parse = functools.cache(parse_unlimited)
        sizes = (parse(first or last) for first, _, _, last in masks)
        yield from zip(
            range(len(masks)), map(int, images), sizes, sum_compressed(counts), strict=True
        )
        return
    for number, entry in enumerate(parse_unlimited(text)):
        mask = entry.get("segmentation") if isinstance(entry, dict) else None
        if not mask:
            continue
        if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str | list):
            raise ValueError("a mask is not given as run lengths")
        yield number, entry.get("image_id"), mask.get("size"), sum_run_lengths(mask["counts"])


def _one_each(text: bytes, masks: Sequence[Match], images: Sequence[Match]) -> bool:
    """Return whether an object starts between every mask with its image id and the next: a key may be there twice."""
    spans = [
        (min(mask.start(), image.start()), max(mask.end(), image.end()))
        for mask, image in zip(masks, images, strict=True)
    ]
    return all(
        text.find(b"{", end, start) >= 0 for (_, end), (start, _) in itertools.pairwise(spans)
    )


def sum_run_lengths(counts: str | list[Any]) -> int | None:
    """Return the sum of a mask's run lengths, compressed or not; None if they are damaged."""
    if isinstance(counts, list):
        valid = all(type(count) is int and count >= 0 for count in counts)
        return sum(counts) if valid else None
    total = sum_compressed([counts.encode("utf-8", "replace")])[0]
    return total if total >= 0 else None


def sum_compressed(masks: Sequence[bytes]) -> list[int]:
    """Return the sum of the compressed run lengths of every mask; -1 for a damaged one."""
    return [total for chunk in _chunks(masks) for total in _sum_chunk(chunk)]


def _chunks(masks: Sequence[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for mask in masks:
        chunk.append(mask)
        size += len(mask)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _sum_chunk(masks: Sequence[bytes]) -> list[int]:
    # An empty mask is damaged, too: "o" continues beyond its end.
    masks = [mask or b"o" for mask in masks]
    lengths = np.array([len(mask) for mask in masks])
    groups = np.frombuffer(b"".join(masks), np.uint8).astype(np.int64) - 48
    end_of_mask = lengths.cumsum() - 1
    start_of_mask = end_of_mask - lengths + 1

    more = groups & 32 != 0
    damaged = more[end_of_mask] | np.logical_or.reduceat(
        (groups < 0) | (groups > 63), start_of_mask
    )
    more[end_of_mask] = False
    ends = np.flatnonzero(~more)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    position = np.minimum(np.arange(len(groups)) - np.repeat(starts, sizes), LONGEST)
    values = np.add.reduceat((groups & 31) << (5 * position), starts)
    values -= np.where(groups[ends] & 16, 1 << (5 * np.minimum(sizes, LONGEST)), 0)

    first = np.searchsorted(ends, start_of_mask)  # value of each mask
    count = np.diff(first, append=len(values))
    number = np.arange(len(values)) - np.repeat(first, count)
    mask = np.repeat(np.arange(len(masks)), count)
    for chosen in (number % 2 == 1, (number % 2 == 0) & (number > 0)):
        values[chosen] = _cumulate(values[chosen], mask[chosen])
    damaged |= np.maximum.reduceat(sizes, first) > LONGEST
    damaged |= np.minimum.reduceat(values, first) < 0
    totals: list[int] = np.where(damaged, -1, np.add.reduceat(values, first)).tolist()
    return totals


def _cumulate(values: Values, mask: Values) -> Values:
    """Return cumulative sums that begin anew with each mask."""
    if not len(values):
        return values
    total = values.cumsum()
    starts = np.flatnonzero(np.diff(mask, prepend=-1))
    return total - np.repeat(total[starts] - values[starts], np.diff(starts, append=len(values)))
