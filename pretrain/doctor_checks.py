"""The check of `simmim-bench doctor` for images to pretrain on, in any layout that `pretrain` takes.

The images are listed and read by the functions of a run, so that its errors and its lines on what is left out are found
here in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from simmim_bench.data.packed import packing_in_words
from simmim_bench.data.pretraining_images import (
    any_images,
    choose_splits,
    held_out_images,
)
from simmim_bench.data.sources import ImageSource
from simmim_bench.diagnostics.data_checks import FindingGroup, Reading
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.diagnostics.images import ReadImages
from simmim_bench.display import plural
from simmim_bench.errors import DataError, MissingFrameworkError, UsageError

GROUP = "pretraining"


def check_pretraining_data(data: Path, reading: Reading) -> list[Finding]:
    """Check what `--data` of `pretrain` names: a folder, tar shards, a label file, or a Hugging Face dataset.

    Args:
        reading: which of the images are decoded, and the fraction of the training images that is held out.

    Returns:
        Counts, faults and their remedies.
    """
    group = FindingGroup(GROUP)
    fraction = reading.val_fraction
    found: list[Finding] = []
    images = _open("train", lambda: any_images(data), group, found)
    held_out = _open("val", lambda: held_out_images(data), group, found)
    try:
        if images is not None and not found:
            every = images
            images, val = choose_splits(data, every, held_out, fraction)
            if held_out is None:
                held = f"{len(val):,} of {plural(len(every), 'image')} are held out"
                said = f"no validation images: {held}; --val-fraction changes the part"
                found.append(group.finding("split", "ok", said))
            held_out = val
    except (DataError, UsageError) as error:
        found.append(group.finding("split", "problem", str(error)))
    if images is not None:
        found += _examine("train", images, reading, group)
        if images.left_out:
            found.append(group.finding("train files", "warning", images.left_out.describe()))
    if held_out is not None:
        found += _examine("val", held_out, reading, group)
        if held_out.left_out and images is not None and held_out.left_out != images.left_out:
            found.append(group.finding("val files", "warning", held_out.left_out.describe()))
    return found


def _open(
    split: str,
    open_images: Callable[[], ImageSource | None],
    group: FindingGroup,
    found: list[Finding],
) -> ImageSource | None:
    """Open a split; None where there is none, or where it cannot be opened, which is added to the findings."""
    try:
        return open_images()
    except (DataError, MissingFrameworkError) as error:
        found.append(group.finding(split, "problem", str(error)))
        return None


def _examine(
    split: str, images: ImageSource, reading: Reading, group: FindingGroup
) -> Iterator[Finding]:
    found = ReadImages(reading.pixel_format)
    how, faults = reading.read(
        f"{GROUP} {split}", len(images), lambda index: found.read(images, index)
    )
    yield group.finding(
        split,
        "ok",
        f"{plural(len(images), 'image')}; {how}{packing_in_words(images)}",
        facts={"images": len(images)},
    )
    yield from group.problems(f"{split} images", faults)
    yield from found.remarks(split, group)
