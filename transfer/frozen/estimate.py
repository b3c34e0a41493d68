"""Plan a transfer on frozen features before it starts: forward passes, memory and disk space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.diagnostics.estimate import OVERHEAD, DataSize, Work
from simmim_bench.display import plural
from simmim_bench.probes.knn import SIMILARITIES
from simmim_bench.training.memory import GIB
from simmim_bench.training.precision import default_precision
from transfer.frozen.candidates import check_enough
from transfer.frozen.crop_features import crops_forwarded, crops_kept, fit_in_memory, memory_needed
from transfer.frozen.crops import centre_crop
from transfer.frozen.features import FeatureSet, block_width, feature_sets, token_norm
from transfer.frozen.linear_probe import list_candidates
from transfer.frozen.recipes import FrozenRecipe, KnnRecipe, LinearRecipe


def plan_frozen(
    recipe: FrozenRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    """Build the backbone of a recipe, count its forward passes and the bytes of its features.

    Raises:
        UsageError: the recipe names features or a norm that the backbone does not have.
        DataError: the weights do not fit the backbone, or too few images to compare candidates on.
    """
    model = load_backbone(checkpoint, recipe.img_size, window_size=recipe.window_size)
    model.to(device).eval().requires_grad_(False)
    token_norm(recipe, checkpoint)
    sets = feature_sets(recipe, checkpoint.spec)
    if isinstance(recipe, LinearRecipe) and len(list_candidates(sets, recipe)) > 1:
        check_enough(data.train, data.classes)
    crops = crops_forwarded(recipe) if isinstance(recipe, LinearRecipe) else 0
    val = 0 if isinstance(recipe, KnnRecipe) and recipe.leave_one_out else data.val
    steps = (1 + crops) * math.ceil(data.train / recipe.forward_batch_size)
    steps += math.ceil(val / recipe.forward_batch_size)
    images = data.train + val + _crops_on_disk(recipe, sets, checkpoint, data.train)
    decoded = data.train * (1 + crops) + val
    return Work(
        model=model,
        forward=lambda n: model.forward_pooled(
            torch.randn(n, model.spec.in_chans, *recipe.img_size, device=device)
        ),
        precision=default_precision(recipe.precision, device, allow_fp16=True),
        batch_size=recipe.forward_batch_size,
        steps=steps,
        counted=f"{plural(steps, 'forward pass', 'forward passes')} of {data.images}"
        + (f", {plural(crops, 'random crop')} of each" if crops else "")
        + f", and of {val:,}: {decoded:,} images to decode",
        left_out="loading images, training on the features; fewshot forwards only its own training images",
        # One array for the centre crops, one for val/, and one for each random crop, with a description each.
        disk=images * memory_needed(sets, checkpoint, 1) + 2 * OVERHEAD * (crops + 2),
        written="features, which linear, knn and fewshot share",
        cut=None,
        load=centre_crop(recipe, checkpoint) if checkpoint.pixel_format.is_rgb else None,
        num_workers=recipe.num_workers,
        held=_held(recipe, sets, checkpoint, data),
    )


def _crops_on_disk(
    recipe: FrozenRecipe, sets: Sequence[FeatureSet], checkpoint: Checkpoint, train: int
) -> int:
    """Return the random crops whose features are on disk at a time: none if they fit in memory."""
    if not isinstance(recipe, LinearRecipe):
        return 0
    kept = crops_kept(recipe) * train
    return 0 if fit_in_memory(memory_needed(sets, checkpoint, kept)) else kept


def _held(
    recipe: FrozenRecipe, sets: Sequence[FeatureSet], checkpoint: Checkpoint, data: DataSize
) -> str:
    """Describe the memory of the classifier's features, which are read one feature set at a time."""
    spec = checkpoint.spec
    widest = max(
        sum(block_width(spec, *part) for part in feature_set.parts) for feature_set in sets
    )
    numbers = data.train * widest
    if isinstance(recipe, KnnRecipe):
        return (
            f"besides: {(4 * numbers + 4 * SIMILARITIES) / GIB:.2f} GiB on the device for k-NN: {data.train:,} float32 "
            f"vectors of {widest:,} channels, and {SIMILARITIES:,} similarities at a time"
        )
    if not isinstance(recipe, LinearRecipe):
        return ""
    held = (
        f"besides: {2 * numbers / GIB:.2f} GiB on the device for float16 features of {widest:,} channels, without the "
        f"classifiers"
    )
    if not recipe.crops:
        return held
    kept = crops_kept(recipe)
    needed = memory_needed(sets, checkpoint, kept * data.train)
    where = "" if fit_in_memory(needed) else ", which is not free, so that they are kept on disk"
    return f"{held}; {needed / GIB:.2f} GiB of main memory for {plural(kept, 'crop')} of every image{where}"
