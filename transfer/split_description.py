"""List the images of a classification transfer, and describe them as its record stores them."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from simmim_bench.data.hub import HubImages
from simmim_bench.data.hub_classes import describe_empty_classes
from simmim_bench.data.pixel_format import PixelFormat
from simmim_bench.data.sharing import open_once
from simmim_bench.data.sources import (
    ImageSource,
    check_same_classes,
    class_images,
    describe_left_out,
)
from simmim_bench.runs.context import RunContext
from transfer.fewshot import split_sha256
from transfer.job import TransferJob


def read_splits(context: RunContext, data: Path) -> tuple[ImageSource, ImageSource]:
    """Open the training and validation images, and log what lies with them and is not read.

    Args:
        data: a folder in ImageNet's layout, or `hfds:NAME`.

    Raises:
        DataError: a split is missing, or the classes of the splits differ.
    """
    train, val = (
        open_once(partial(class_images, data, split), context.dist) for split in ("train", "val")
    )
    check_same_classes(train, val, data)
    for images, split in ((train, "train"), (val, "val")):
        for line in (*describe_left_out(images, split), *_describe_hub(images)):
            context.run.log(line)
    return train, val


def describe_data(job: TransferJob[Any], train: ImageSource, val: ImageSource) -> dict[str, Any]:
    """Describe the data as a record stores it."""
    return {
        **job.data_set,
        **({"split": val.split} if isinstance(val, HubImages) else {}),
        "classes": len(val.classes),
        "train_images": len(train),
        "train_fingerprint": train.fingerprint(),
        "fingerprint": val.fingerprint(),
        **describe_images(job.checkpoint.pixel_format),
    }


def describe_images(pixel_format: PixelFormat) -> dict[str, Any]:
    """Describe images that are not RGB of 8 bits as a record stores them."""
    return {} if pixel_format.is_rgb else {"images": asdict(pixel_format)}


def _describe_hub(images: ImageSource) -> list[str]:
    """Return the log lines of a split of a Hugging Face dataset; none for other images."""
    if not isinstance(images, HubImages):
        return []
    lines = [f"data: {images.what}: images={len(images):,} classes={len(images.classes):,}"]
    if images.split == "test":
        lines.append(
            f"data: {images.what}: the test split is scored, as there is no validation split"
        )
    empty = describe_empty_classes(images)
    return [*lines, *([] if empty is None else [f"data: warning: {empty}"])]


def describe_split(images: ImageSource, split: Path | None) -> dict[str, Any]:
    """Describe the images that a split file lists, or the size of a sampled split of unequal classes.

    A split sampled evenly from the classes needs no description. The size of another one makes it a separate
    protocol: earlier versions rounded the number of images of every class instead of the total, so that their
    records have another number of images under the same recipe.
    """
    if split is None:
        uneven = len(set(Counter(images.labels).values())) > 1
        return {"sampled_images": len(images)} if uneven else {}
    return {"listed_split": str(split), "listed_split_sha256": split_sha256(images)}
