"""Reconstruction of images that training does not see: its loss every epoch, and a picture of some.

In: a SimMIM model, a recipe, images. Out: the mean loss under masks that are the same each time, and
`reconstructions.png`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from pretrain.masking import recipe_masks
from pretrain.recipes import PretrainRecipe
from pretrain.simmim import SimMIM
from pretrain.visualize import draw, evenly, load_whole
from simmim_bench.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.data import ImageDataset, eval_loader, eval_transform
from simmim_bench.kernels import autocast
from simmim_bench.sources import ImageSource

HELD_OUT_IMAGES = 512  # enough for the third digit of the loss
BATCH = 64
PICTURES = 8


@torch.no_grad()
def held_out_loss(
    model: SimMIM,
    recipe: PretrainRecipe,
    images: ImageSource,
    *,
    device: torch.device,
    precision: str,
) -> float:
    """Give the mean loss of at most 512 evenly spaced images, whole, each under a mask of its own."""
    images = evenly(images, HELD_OUT_IMAGES)
    transform = eval_transform(
        recipe.img_size, crop_ratio=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    loader = eval_loader(
        ImageDataset(images, transform), batch_size=BATCH, num_workers=recipe.num_workers
    )
    model.eval()
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for pixels, _ in loader:
        images_there = pixels.to(device)
        mask = recipe_masks(recipe, model.spec.patch_size, images_there, generator)
        with autocast(device, precision):
            loss = model(images_there, mask.to(device)).loss
        total += float(loss) * len(pixels)
    return total / len(images)


def draw_held_out(
    model: SimMIM, recipe: PretrainRecipe, images: ImageSource, out: Path | None
) -> None:
    """Draw eight of the images, masked and reconstructed; `out` is None for a process that only helps."""
    chosen = evenly(images, PICTURES)
    generator = torch.Generator().manual_seed(0)
    pixels = load_whole(chosen, recipe.img_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    mask = recipe_masks(recipe, model.spec.patch_size, pixels, generator)
    draw(model, pixels, mask, out, mean=IMAGENET_MEAN, std=IMAGENET_STD)
