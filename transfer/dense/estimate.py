"""Plan a transfer on frozen patch features before it starts: forward passes and memory."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.datasets import covering_size
from simmim_bench.data.decode import decode_image
from simmim_bench.diagnostics.estimate import DataSize, Work
from simmim_bench.display import plural
from simmim_bench.probes.knn import SIMILARITIES
from simmim_bench.training.memory import GIB
from simmim_bench.training.precision import default_precision
from transfer.dense.choice import check_enough_images, count_candidates
from transfer.dense.patches import map_options, patches_per_image, probed_levels
from transfer.dense.recipes import DenseKnnRecipe, DenseRecipe
from transfer.dense.windows import cut_windows, window_starts

USUAL = (480, 640)  # (H, W) of an image of the ratio of most of ADE20K's
ENTRY = 32  # bytes of one entry of a confusion matrix, before compression
CLASSES_SHOWN = 40  # ours: pairs of true and predicted class in an image


def plan_dense(
    recipe: DenseRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    """Build the backbone of a recipe, count its forward passes and the bytes of the sampled patches.

    Raises:
        UsageError: the recipe names a block that the backbone does not have.
        DataError: the weights do not fit the backbone, or too few images to hold some out.
    """
    levels = probed_levels(recipe, checkpoint.spec)
    model = load_backbone(
        checkpoint,
        recipe.img_size,
        window_size=recipe.window_size,
        maps=map_options(recipe, checkpoint.spec),
    )
    model.to(device).eval().requires_grad_(False)
    comparing = count_candidates(recipe, levels) > 1
    if comparing:
        check_enough_images(data.train)
    held_out = min(recipe.choose_on, data.train // 2) if comparing else 0
    passes = len(levels) * len(recipe.norm)
    images = data.train + passes * held_out + data.val
    windows = images * _windows_per_image(recipe)
    steps = math.ceil(windows / recipe.forward_batch_size)
    return Work(
        model=model,
        forward=lambda n: model.forward_maps(
            torch.randn(n, model.spec.in_chans, *recipe.img_size, device=device)
        )[-1],
        precision=default_precision(recipe.precision, device, allow_fp16=True),
        batch_size=recipe.forward_batch_size,
        steps=steps,
        counted=f"{plural(steps, 'forward pass', 'forward passes')} of {windows:,} windows: of {data.images}, of "
        f"{held_out:,} held-out ones {passes} times, and of {data.val:,}, if their sides are as 4 to 3",
        left_out="loading images, comparing patches, label maps at full size",
        disk=data.val * CLASSES_SHOWN * ENTRY,
        written="confusion matrices",
        cut=None,
        load=functools.partial(_load, recipe) if checkpoint.pixel_format.is_rgb else None,
        num_workers=recipe.num_workers,
        held=_held(recipe, [level.channels for level in levels], data),
    )


def _windows_per_image(recipe: DenseRecipe) -> int:
    """Return the windows of an image of the usual ratio."""
    size = covering_size(USUAL, recipe.img_size, 1.0)
    rows, columns = (
        window_starts(side, window, stride)
        for side, window, stride in zip(size, recipe.img_size, recipe.stride, strict=True)
    )
    return len(rows) * len(columns)


def _load(recipe: DenseRecipe, content: bytes, name: str) -> Tensor:
    """Load an RGB image as its windows."""
    return cut_windows(decode_image(content, name, upright=True), recipe)[0]


def _held(recipe: DenseRecipe, channels: list[int], data: DataSize) -> str:
    """Describe the memory of the sampled patches, and of those that are compared at a time."""
    patches = data.train * patches_per_image(recipe, data.train)
    kept = 2 * patches * (sum(channels) + len(channels) * data.classes)
    learnt = 4 * patches * max(channels)
    if isinstance(recipe, DenseKnnRecipe):
        learnt += 4 * SIMILARITIES
    return (
        f"besides: {kept / GIB:.2f} GiB of main memory for up to {patches:,} patches of each of {len(channels)} maps, "
        f"and {learnt / GIB:.2f} GiB on the device for those that are compared"
    )
