"""Reconstruction of images that training does not see: its loss and other measures, and a picture of some.

In: a SimMIM model, a recipe, images. Out: means under masks that are the same each time, and
`reconstructions.png`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from pretrain.masking.masks import at_pixels, recipe_masks
from pretrain.metrics import Reconstruction, effective_rank
from pretrain.recipes import PretrainRecipe
from pretrain.simmim import SimMIM
from pretrain.visualize import draw, evenly, load_whole
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.data.datasets import ImageDataset, eval_transform
from simmim_bench.data.loader import eval_loader
from simmim_bench.data.sources import ImageSource
from simmim_bench.training.precision import autocast

HELD_OUT_IMAGES = 512  # enough for the third digit of the loss
BATCH = 64
PICTURES = 8


@torch.no_grad()
def held_out_measures(
    model: SimMIM,
    recipe: PretrainRecipe,
    images: ImageSource,
    *,
    device: torch.device,
    precision: str,
) -> dict[str, float]:
    """Measure at most 512 evenly spaced images, whole, each under a mask of its own.

    Returns:
        `held_out_loss`; `masked_l1`, `psnr` and `ssim` of hidden pixels, as `Reconstruction` says, where the
        model's prediction can be drawn; and `effective_rank` of the pooled features of the images without
        masks.
    """
    images = evenly(images, HELD_OUT_IMAGES)
    transform = eval_transform(
        recipe.img_size, crop_ratio=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    loader = eval_loader(
        ImageDataset(images, transform), batch_size=BATCH, num_workers=recipe.num_workers
    )
    model.eval()
    generator = torch.Generator().manual_seed(0)
    scale, shift = (
        torch.tensor(x, device=device).view(-1, 1, 1) for x in (IMAGENET_STD, IMAGENET_MEAN)
    )
    total, pooled, seen = 0.0, [], Reconstruction()
    for pixels, _ in loader:
        images_there = pixels.to(device)
        mask = recipe_masks(recipe, model.spec.patch_size, images_there, generator).to(device)
        with autocast(device, precision):
            output = model(images_there, mask)
            whole = model(images_there, torch.zeros_like(mask)).features
        total += float(output.loss) * len(pixels)
        pooled.append(whole.float().mean((2, 3)))
        if model.drawn.draws:
            predicted = model.drawn.denormalise(output.reconstruction, images_there)
            hidden = at_pixels(mask, recipe.img_size).unsqueeze(1)
            seen.add(predicted * scale + shift, images_there * scale + shift, hidden)
    return {
        "held_out_loss": total / len(images),
        **seen.figures(),
        "effective_rank": effective_rank(torch.cat(pooled)),
    }


def draw_held_out(
    model: SimMIM, recipe: PretrainRecipe, images: ImageSource, out: Path | None
) -> None:
    """Draw eight of the images, masked and reconstructed; `out` is None for a process that only helps."""
    chosen = evenly(images, PICTURES)
    generator = torch.Generator().manual_seed(0)
    pixels = load_whole(chosen, recipe.img_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    mask = recipe_masks(recipe, model.spec.patch_size, pixels, generator)
    draw(model, pixels, mask, out, mean=IMAGENET_MEAN, std=IMAGENET_STD)
