"""Render what the loader of a classification task feeds: the crop that is scored, and augmented training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.class_splits import class_images
from simmim_bench.data.datasets import ImageDataset, LoadImage, eval_transform
from simmim_bench.data.figures import denormalise, load_uncropped, renderer, write_grid
from simmim_bench.data.loader import SeededDataset
from simmim_bench.data.normalise import normalise
from simmim_bench.data.subsets import limit_images
from simmim_bench.runs.options import RunOptions
from transfer.attentive.recipes import AttentiveRecipe
from transfer.finetune.recipes import FinetuneRecipe
from transfer.finetune.train import training_transform
from transfer.frozen.crops import random_crop_flip
from transfer.frozen.recipes import LinearRecipe
from transfer.launch import TransferRequest, resolve_transfer

CPU = torch.device("cpu")


def preview_classification(
    task: str, ckpt: str, options: RunOptions, out: Path, *, count: int, epochs: int
) -> list[str]:
    """Write a grid of evenly spaced training images as a run of the seed loads them.

    Each has the whole image, its centre crop as validation images are scored, and the augmented image of each of the
    first epochs, if the recipe augments. Mixup and CutMix, which combine the images of a batch, are left out.

    Args:
        ckpt: the checkpoint, which determines recipe, size and normalisation.
        options: data, recipe and overrides.
        out: PNG file.
        count: the most images.
        epochs: number of epochs.

    Returns:
        The class and the name of each image, in the order of the grid.

    Raises:
        UsageError: the recipe is not of the task.
        DataError: images or a checkpoint that cannot be used.
    """
    transfer = resolve_transfer(TransferRequest(task=task, options=options), ckpt)
    recipe: Any = transfer.recipe
    checkpoint = transfer.checkpoint
    images = class_images(options.data, "train", recipe.val_fraction)
    images = limit_images(images, recipe.limit, "train")
    count = min(count, len(images))
    chosen = [number * len(images) // count for number in range(count)]
    some = images.subset(chosen)
    mean, std = checkpoint.mean, checkpoint.std
    whole = load_uncropped(
        some, recipe.img_size, mean=mean, std=std, pixel_format=checkpoint.pixel_format
    )
    whole = denormalise(whole, mean=mean, std=std)
    render = renderer(whole, checkpoint.pixel_format)
    scored = eval_transform(
        getattr(recipe, "eval_img_size", recipe.img_size),
        crop_ratio=recipe.test_crop_ratio,
        mean=mean,
        std=std,
        pixel_format=checkpoint.pixel_format,
        resizing=recipe.resizing,
    )
    dataset = ImageDataset(some, scored)
    crops = torch.stack([dataset[index][0] for index in range(count)])
    columns = [whole, F.interpolate(denormalise(crops, mean=mean, std=std), recipe.img_size)]
    augment = _augmentation(recipe, checkpoint)
    for epoch in range(epochs if augment is not None else 0):
        assert augment is not None
        seeded = SeededDataset(ImageDataset(images, augment), options.seed, epoch)
        pixels = torch.stack([seeded[index][0] for index in chosen])
        columns.append(denormalise(_normalised(pixels, checkpoint), mean=mean, std=std))
    write_grid(torch.stack([render(column) for column in columns], dim=1), out)
    labels = [images.classes[int(images.labels[index])] for index in chosen]
    return [f"{label}: {images.name(i)}" for label, i in zip(labels, chosen, strict=True)]


def _augmentation(recipe: Any, checkpoint: Checkpoint) -> LoadImage | None:
    """Return the augmentation of training images; None where the recipe has none."""
    if isinstance(recipe, FinetuneRecipe):
        return training_transform(recipe, checkpoint, CPU)
    if isinstance(recipe, AttentiveRecipe) or (isinstance(recipe, LinearRecipe) and recipe.crops):
        return random_crop_flip(
            recipe.img_size,
            checkpoint,
            rule=recipe.crop_rule,
            scale=recipe.crop_scale,
            hflip=recipe.hflip,
            resizing=recipe.resizing,
        )
    return None


def _normalised(pixels: Tensor, checkpoint: Checkpoint) -> Tensor:
    """Return images as decoded normalised; others are."""
    if pixels.is_floating_point() and checkpoint.value_range != "float":
        return pixels
    return normalise(pixels, checkpoint.mean, checkpoint.std, CPU)
