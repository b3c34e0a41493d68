"""The check of `simmim-bench doctor` for images to pretrain on, in any layout that `pretrain` takes.

The images are listed and read by the functions of a run, so that its errors and its lines on what is left out are found
here in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from simmim_bench.data.packed import packing_in_words
from simmim_bench.data.pretraining_images import any_images, held_out_images
from simmim_bench.data.sources import ImageSource
from simmim_bench.diagnostics.data_checks import FindingGroup, Reading
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.diagnostics.images import ReadImages
from simmim_bench.display import plural
from simmim_bench.errors import DataError, MissingFrameworkError

GROUP = "pretraining"


def check_pretraining_data(data: Path, reading: Reading) -> list[Finding]:
    """Check what `--data` of `pretrain` names: a folder, tar shards, or a Hugging Face dataset.

    Args:
        reading: which of the images are decoded.

    Returns:
        Counts, faults and their remedies.
    """
    group = FindingGroup(GROUP)
    return [
        *_examine("train", lambda: any_images(data), reading, group),
        *_examine("val", lambda: held_out_images(data), reading, group),
    ]


def _examine(
    split: str,
    open_images: Callable[[], ImageSource | None],
    reading: Reading,
    group: FindingGroup,
) -> Iterator[Finding]:
    try:
        images = open_images()
    except (DataError, MissingFrameworkError) as error:
        yield group.finding(split, "problem", str(error))
        return
    if images is None:
        yield group.finding(split, "ok", "none; the held-out loss is that of training images")
        return
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
    if images.left_out:
        yield group.finding(f"{split} files", "warning", images.left_out.describe())
    yield from found.remarks(split, group)
