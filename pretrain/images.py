"""Open the images of a pretraining run: those to train on, and those whose loss is measured after each epoch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pretrain.recipes import PretrainRecipe
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.hold_out import SEED
from simmim_bench.data.pretraining_images import (
    any_images,
    choose_splits,
    held_out_images,
)
from simmim_bench.data.sharing import open_once
from simmim_bench.data.sources import ImageSource, describe_left_out
from simmim_bench.runs.context import RunContext


def open_splits(
    context: RunContext, recipe: PretrainRecipe, data: Path, saved: Checkpoint | None
) -> tuple[ImageSource, ImageSource, dict[str, Any]]:
    """Open the images to train on and the held-out ones, and log what lies with them and is not read.

    Args:
        saved: the checkpoint that the run continues from.

    Returns:
        Training images, held-out images, and where these are from.

    Raises:
        UsageError: training images are to be held out, but there are validation images.
        DataError: images that cannot be used.
    """
    run, dist = context.run, context.dist
    images = open_once(partial(any_images, data), dist)
    val = open_once(partial(held_out_images, data), dist, measure=False)
    # A run of an earlier version, which trains on all images; it continues with the same batches.
    earlier = val is None and saved is not None and "held_out" not in saved.provenance
    train, held_out = images, images
    if not earlier:
        train, held_out = choose_splits(data, images, val, recipe.val_fraction)
    for line in describe_left_out(images, "train"):
        run.log(line)
    if earlier:
        run.log("pretrain: warning: held_out_loss of this run is of training images")
        return train, held_out, {"from": "trained images", "images": len(images)}
    if val is not None:
        for line in describe_left_out(val, "val"):
            run.log(line)
        return train, held_out, {"from": "val", "images": len(val)}
    share = len(held_out) / len(images)
    run.log(
        f"pretrain: no validation images: held out images={len(held_out):,} of {len(images):,} ({share:.1%}), the same "
        "in every run; --val-fraction changes the part"
    )
    return (
        train,
        held_out,
        {"from": "train", "images": len(held_out), "fraction": share, "seed": SEED},
    )
