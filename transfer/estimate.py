"""A transfer as far as it is known before it is begun.

In: a recipe, a checkpoint, the size of the data. Out: a `Work` whose step can be taken on made-up images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.diagnostics.estimate import (
    KEPT,
    OVERHEAD,
    DataSize,
    Work,
    checkpoint_bytes,
    epoch_steps,
)
from transfer.detection.estimate import plan_coco
from transfer.detection.recipes import CocoRecipe
from transfer.finetune.recipes import FinetuneRecipe
from transfer.finetune.run import loss_and_mixing
from transfer.frozen.recipes import FrozenRecipe, KnnRecipe, LinearRecipe
from transfer.recipes import TransferRecipe
from transfer.segmentation.estimate import plan_ade20k
from transfer.segmentation.recipes import Ade20kRecipe

CHECKPOINTS = f"{KEPT} checkpoints at a time; predictions come on top"


def data_of(recipe: TransferRecipe) -> str:
    """Give the kind of data set that a recipe is for."""
    if isinstance(recipe, CocoRecipe):
        return "coco"
    return "ade20k" if isinstance(recipe, Ade20kRecipe) else "imagenet"


def plan_transfer(
    recipe: TransferRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    """Build the model of a recipe and count its steps.

    Raises:
        MissingEngineError: the framework of the recipe is not installed.
        UsageError: sizes that the model cannot have.
        DataError: a checkpoint that does not fit.
    """
    if isinstance(recipe, CocoRecipe):
        return plan_coco(recipe, checkpoint, data, device)
    if isinstance(recipe, Ade20kRecipe):
        return plan_ade20k(recipe, checkpoint, data, device)
    if isinstance(recipe, FinetuneRecipe):
        return _finetune(recipe, checkpoint, data, device)
    return _frozen(recipe, checkpoint, data, device)


def _finetune(
    recipe: FinetuneRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    model = load_backbone(
        checkpoint,
        recipe.img_size,
        data.classes,
        window_size=recipe.window_size,
        drop_path_rate=recipe.drop_path_rate,
    )
    model.to(device).train()
    loss_of, mixup = loss_and_mixing(recipe, data.classes)

    def forward(images: int) -> Tensor:
        pixels = torch.randn(images, model.spec.in_chans, *recipe.img_size, device=device)
        labels = torch.arange(images, device=device) % data.classes
        if mixup is not None:
            labels = torch.nn.functional.one_hot(labels, data.classes).float()
        loss: Tensor = loss_of(model(pixels).float(), labels)
        return loss

    of_epoch = epoch_steps(data.train, recipe.batch_size)
    saved = [model, model] if recipe.ema_decay else [model]
    return Work(
        model=model,
        forward=forward,
        precision=recipe.precision,
        batch_size=min(recipe.batch_size, data.train),
        steps=recipe.epochs * of_epoch,
        counted=f"{recipe.epochs} epochs of {of_epoch:,} steps, of {data.images}",
        disk=KEPT * checkpoint_bytes(saved, model.parameters()),
        written=CHECKPOINTS,
        cut="by itself" if device.type == "cuda" else None,
    )


def _frozen(
    recipe: FrozenRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    from transfer.frozen.features import feature_sets

    model = load_backbone(checkpoint, recipe.img_size, window_size=recipe.window_size)
    model.to(device).eval().requires_grad_(False)
    sets = feature_sets(recipe, checkpoint.spec)
    crops = min(recipe.crops, recipe.epochs) if isinstance(recipe, LinearRecipe) else 0
    val = 0 if isinstance(recipe, KnnRecipe) and recipe.leave_one_out else data.val
    rows = data.train * (1 + crops) + val
    poolings = {part for one in sets for part in one.parts}
    row = len({one.block for one in sets}) * len(poolings) * checkpoint.spec.num_features
    steps = (1 + crops) * math.ceil(data.train / recipe.forward_batch_size)
    steps += math.ceil(val / recipe.forward_batch_size)
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
        left_out="loading images, learning from the features; fewshot passes its share of the images alone",
        disk=2 * row * rows + 2 * OVERHEAD * (crops + 2),  # float16, and descriptions
        written="features, which linear, knn and fewshot share",
        cut=None,
    )
