"""List the images of a classification transfer, and describe them as its record stores them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from simmim_bench.data.class_checks import check_same_classes, class_sizes
from simmim_bench.data.class_splits import class_images
from simmim_bench.data.hold_out import SEED, image_names
from simmim_bench.data.hub import HubImages
from simmim_bench.data.hub_classes import describe_empty_classes
from simmim_bench.data.named import HUB_PREFIX
from simmim_bench.data.packed import describe_packing
from simmim_bench.data.pixel_format import PixelFormat
from simmim_bench.data.pretraining_images import any_images, split_training_images
from simmim_bench.data.sharing import open_once
from simmim_bench.data.sources import ImageSource, describe_left_out
from simmim_bench.data.subsets import limit_images
from simmim_bench.runs.context import RunContext
from transfer.fewshot import describe_draw, draw_warnings, few_shot_images, split_sha256
from transfer.job import TransferJob


def read_splits(context: RunContext, job: TransferJob[Any]) -> tuple[ImageSource, ImageSource]:
    """Open the training and validation images, and log what lies with them and is not read.

    Args:
        job: its data is a folder in ImageNet's layout, a label file, or `hfds:NAME`; its recipe has the number of
            images to use of each split, and the fraction of the training images to hold out.

    Raises:
        UsageError: the limit is less than the number of classes, or images are to be held out of data with a validation
            split.
        DataError: a split is missing, or the classes of the splits differ.
    """
    data, recipe = job.data, job.recipe
    train, val = (
        open_once(partial(class_images, data, split, recipe.val_fraction), context.dist)
        for split in ("train", "val")
    )
    check_same_classes(train, val, data)
    for images, split in ((train, "train"), (val, "val")):
        left_out = describe_left_out(images, split)
        if split == "val" and recipe.val_fraction is not None:  # that of the training images
            left_out = []
        for line in (*left_out, *_describe_hub(images)):
            context.run.log(line)
    if recipe.val_fraction is not None:
        every = len(train) + len(val)
        context.run.log(
            f"data: held out val={len(val):,} of {every:,} training images ({len(val) / every:.1%}, val_fraction="
            f"{recipe.val_fraction:g}), the same in every run"
        )
        seen = 0
        if context.dist.is_main:
            seen = count_seen_held_out(job.checkpoint.provenance, data, val)
        if seen:
            context.run.log(
                f"data: warning: {job.checkpoint.name} was pretrained, without labels, on {seen:,} of the {len(val):,} "
                f"images of {data} that are scored here; pretrain with --val-fraction {recipe.val_fraction:g}, too, or "
                "pretrain and score on one split that `simmim-bench data split` wrote"
            )
    if (limit := recipe.limit) is not None:
        train, val = limit_images(train, limit, "train"), limit_images(val, limit, "val")
        context.run.log(f"data: limit={limit:,} train={len(train):,} val={len(val):,}")
    return train, val


def count_seen_held_out(provenance: Mapping[str, Any], data: Path, val: ImageSource) -> int:
    """Count the held-out images of a transfer that its checkpoint was pretrained on.

    Pretraining and a transfer with one fraction may hold out different images: pretraining holds out a fraction of all
    images where most classes are very small, and knows no classes of a Hugging Face dataset and of unpacked shards.

    Args:
        provenance: of the checkpoint.
        data: the data set of the transfer, whose training images `val` is a part of.
    """
    known, recipe = provenance.get("data"), provenance.get("recipe")
    if not isinstance(known, Mapping) or not isinstance(recipe, Mapping):
        return 0
    if _data_path(str(known.get("root"))) != _data_path(str(data)):
        return 0
    if "held_out" not in provenance:  # of an earlier version, which trained on all images
        return len(val)
    fraction = (recipe.get("deviates") or {}).get("val_fraction")
    if not (isinstance(fraction, float) and 0 < fraction <= 0.5):
        fraction = None
    trained, _ = split_training_images(any_images(data), fraction)
    return len({*image_names(trained)} & {*image_names(val)})


def _data_path(data: str) -> str:
    """Return the absolute path of a data set; of a Hugging Face dataset its name without the column of labels."""
    return data.partition("#")[0] if data.startswith(HUB_PREFIX) else os.path.abspath(data)


@dataclass(frozen=True)
class FewShot:
    """The training images that a job of `fewshot` learns from.

    Attributes:
        indices: of the images among the training images, ascending.
        data: what the record's `data` says of them, besides `describe_data`.
        details: what the record's `details` say of them.
    """

    indices: list[int]
    data: dict[str, Any]
    details: dict[str, Any]


def choose_few_shot(context: RunContext, job: TransferJob[Any], train: ImageSource) -> FewShot:
    """Sample or read the training images that a job of `fewshot` learns from, and log how many of each class.

    Args:
        job: its recipe has the `draw`, its options `fraction` and `split`.

    Raises:
        UsageError, DataError: see `few_shot_images`.
    """
    split: Path | None = job.options.get("split")
    draw = job.recipe.draw
    indices = few_shot_images(train, job.fraction, context.seed, split, draw)
    chosen = train.subset(indices)
    names, sizes, counts = train.classes, class_sizes(train), class_sizes(chosen)
    described = describe_draw(names, sizes, counts, draw if split is None else "listed")
    per_class = described["images_per_class"]
    context.run.log(
        f"fewshot: images={len(indices):,} fraction={described['fraction']:.2%} draw={described['draw']} "
        f"per_class={per_class['min']:,} to {per_class['max']:,}"
    )
    if split is None:
        for warning in draw_warnings(names, sizes, counts, job.fraction, draw):
            context.run.log(f"fewshot: warning: {warning}")
    return FewShot(indices, describe_split(chosen, split), {"few_shot": described})


def describe_data(job: TransferJob[Any], train: ImageSource, val: ImageSource) -> dict[str, Any]:
    """Describe the data as a record stores it."""
    return {
        **job.data_set,
        **({"split": val.split} if isinstance(val, HubImages) else {}),
        "classes": len(val.classes),
        "train_images": len(train),
        "train_fingerprint": train.fingerprint(),
        "fingerprint": val.fingerprint(),
        **(describe_packing(train) or describe_packing(val)),
        **describe_images(job.checkpoint.pixel_format),
        **describe_held_out(job.recipe.val_fraction),
    }


def describe_held_out(fraction: float | None) -> dict[str, Any]:
    """Describe scored images that were held out of the training images as a record stores them."""
    return {} if fraction is None else {"held_out": {"fraction": fraction, "seed": SEED}}


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
