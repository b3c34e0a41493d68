"""Plan a transfer on frozen features before it starts: forward passes and disk space."""

from __future__ import annotations

import math

import torch

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.datasets import eval_transform
from simmim_bench.diagnostics.estimate import OVERHEAD, DataSize, Work
from transfer.frozen.features import feature_sets, token_norm
from transfer.frozen.recipes import FrozenRecipe, KnnRecipe, LinearRecipe


def plan_frozen(
    recipe: FrozenRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    """Build the backbone of a recipe, count its forward passes and the bytes of its features.

    Raises:
        UsageError: the recipe names features or a norm that the backbone does not have.
        DataError: the weights do not fit the backbone.
    """
    model = load_backbone(checkpoint, recipe.img_size, window_size=recipe.window_size)
    model.to(device).eval().requires_grad_(False)
    token_norm(recipe, checkpoint)
    crops = min(recipe.crops, recipe.epochs) if isinstance(recipe, LinearRecipe) else 0
    val = 0 if isinstance(recipe, KnnRecipe) and recipe.leave_one_out else data.val
    steps = (1 + crops) * math.ceil(data.train / recipe.forward_batch_size)
    steps += math.ceil(val / recipe.forward_batch_size)
    images = data.train * (1 + crops) + val
    return Work(
        model=model,
        forward=lambda n: model.forward_pooled(
            torch.randn(n, model.spec.in_chans, *recipe.img_size, device=device)
        ),
        precision=recipe.precision,
        batch_size=recipe.forward_batch_size,
        steps=steps,
        counted=f"{steps:,} forward passes of {data.images}"
        + (f", {crops} random crops of each" if crops else "")
        + f", and of {val:,}",
        left_out="loading images, training on the features; fewshot forwards only its own training images",
        # One array for the centre crops, one for val/, and one for each random crop, with a description each.
        disk=images * _bytes_per_image(recipe, checkpoint) + 2 * OVERHEAD * (crops + 2),
        written="features, which linear, knn and fewshot share",
        cut=None,
        load=eval_transform(
            recipe.img_size,
            crop_ratio=recipe.test_crop_ratio,
            mean=checkpoint.mean,
            std=checkpoint.std,
        ),
        num_workers=recipe.num_workers,
    )


def _bytes_per_image(recipe: FrozenRecipe, checkpoint: Checkpoint) -> int:
    """Return the bytes of an image's float16 features of all blocks and poolings."""
    sets = feature_sets(recipe, checkpoint.spec)
    blocks = set().union(*(feature_set.blocks for feature_set in sets))
    poolings = {name for feature_set in sets for name in feature_set.poolings}
    return 2 * len(blocks) * len(poolings) * checkpoint.spec.num_features
