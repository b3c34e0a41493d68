"""Render what the loader of a pretraining feeds: random crops of images, each with its mask."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from pretrain.build import check_sizes
from pretrain.evaluation.visualize import GREY
from pretrain.masking.masks import sample_image_mask, upsample_mask
from pretrain.recipes import PretrainRecipe
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.figures import denormalise, load_uncropped, renderer, write_grid
from simmim_bench.data.loader import SeededDataset
from simmim_bench.data.normalise import normalise
from simmim_bench.data.pretraining_images import (
    any_images,
    choose_splits,
    held_out_images,
)
from simmim_bench.data.random_crop import RandomCropFlip
from simmim_bench.data.subsets import limit_images


def preview_pretraining(
    recipe: PretrainRecipe, data: Path, out: Path, *, count: int, epochs: int, seed: int
) -> list[str]:
    """Write a grid of evenly spaced training images as a run of the seed loads them.

    Each has the whole image, and for each of the first epochs the random crop without and with its mask, in grey.

    Args:
        out: PNG file.
        count: the most images.
        epochs: number of epochs.

    Returns:
        The names of the images, in the order of the grid.

    Raises:
        UsageError: image, mask and model do not fit each other.
        DataError: images that cannot be used.
    """
    spec = check_sizes(recipe)
    images, held_out = any_images(data), held_out_images(data)
    images, _ = choose_splits(data, images, held_out, recipe.val_fraction)
    images = limit_images(images, recipe.limit, "train")
    count = min(count, len(images))
    chosen = [number * len(images) // count for number in range(count)]
    mean, std = recipe.statistics
    pixel_format, cpu = recipe.pixel_format, torch.device("cpu")
    crop = RandomCropFlip(recipe.img_size, recipe.crop_scale, pixel_format)
    mask_of = partial(sample_image_mask, recipe, spec.patch_size)
    dataset = ImageDataset(images, crop)
    loaded = [SeededDataset(dataset, seed, epoch, mask_of) for epoch in range(epochs)]
    items = [[of_epoch[index] for of_epoch in loaded] for index in chosen]
    whole = load_uncropped(
        images.subset(chosen), recipe.img_size, mean=mean, std=std, pixel_format=pixel_format
    )
    whole = denormalise(whole, mean=mean, std=std)
    render = renderer(whole, pixel_format)
    columns = [render(whole)]
    for epoch in range(epochs):
        pixels = torch.stack([item[epoch][0] for item in items])
        masks = torch.stack([item[epoch][3] for item in items])
        crops = denormalise(normalise(pixels, mean, std, cpu), mean=mean, std=std)
        shown = render(crops)
        hidden = upsample_mask(masks.float(), recipe.img_size).unsqueeze(1)
        columns += [shown, shown * (1 - hidden) + GREY * hidden]
    write_grid(torch.stack(columns, dim=1), out)
    return [images.name(index) for index in chosen]
