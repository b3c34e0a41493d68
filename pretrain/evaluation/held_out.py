"""Evaluation of a SimMIM model on held-out images: loss, reconstruction metrics and `reconstructions.png`.

The masks are the same at every evaluation, so that epochs and runs are comparable.
"""

from __future__ import annotations

from pathlib import Path

import torch

from pretrain.evaluation.metrics import ReconstructionMetrics, effective_rank
from pretrain.evaluation.visualize import save_reconstruction_grid
from pretrain.masking.masks import sample_recipe_masks, upsample_mask
from pretrain.recipes import PretrainRecipe
from pretrain.simmim import SimMIM
from simmim_bench.data.datasets import ImageDataset, eval_transform
from simmim_bench.data.figures import evenly_spaced, load_uncropped
from simmim_bench.data.loader import eval_loader
from simmim_bench.data.sources import ImageSource
from simmim_bench.training.precision import autocast

HELD_OUT_IMAGES = 512  # determine the third digit of the loss
BATCH = 64
VISUALIZED_IMAGES = 8
METRIC_RANGE = 6.0  # ours: standard deviations that count as the range [0, 1] of values as stored, around the mean


@torch.no_grad()
def held_out_metrics(
    model: SimMIM,
    recipe: PretrainRecipe,
    images: ImageSource,
    *,
    device: torch.device,
    precision: str,
    skip_unreadable: int = 0,
) -> dict[str, float]:
    """Evaluate at most 512 evenly spaced images, uncropped, each with a different mask.

    Args:
        precision: "fp32", "bf16" or "fp16", of the forward pass.
        skip_unreadable: the most unreadable images that the next image replaces.

    Returns:
        `held_out_loss`; `masked_l1`, `psnr` and `ssim` of hidden pixels (`ReconstructionMetrics`), if the
        target can be visualised; `effective_rank` of the pooled features of the unmasked images; and
        `held_out_unreadable`, the number of replaced images, if there are any.
    """
    images = evenly_spaced(images, HELD_OUT_IMAGES)
    mean, std = recipe.statistics
    transform = eval_transform(
        recipe.img_size, crop_ratio=1.0, mean=mean, std=std, pixel_format=recipe.pixel_format
    )
    dataset = ImageDataset(images, transform, skip_unreadable=skip_unreadable)
    loader = eval_loader(dataset, batch_size=BATCH, num_workers=recipe.num_workers)
    model.eval()
    generator = torch.Generator().manual_seed(0)
    if recipe.value_range == "float":  # values as stored have no range
        std, mean = ((1 / METRIC_RANGE,) * len(mean), (0.5,) * len(mean))
    scale, shift = (torch.tensor(x, device=device).view(-1, 1, 1) for x in (std, mean))
    total, pooled, metrics = 0.0, [], ReconstructionMetrics()
    for pixels, _ in loader:
        inputs = pixels.to(device)
        mask = sample_recipe_masks(recipe, model.spec.patch_size, inputs, generator).to(device)
        with autocast(device, precision):
            output = model(inputs, mask)
            unmasked = model(inputs, torch.zeros_like(mask)).features
        total += float(output.loss) * len(pixels)
        pooled.append(unmasked.float().mean((2, 3)))
        if model.reconstruction_target.can_visualize:
            predicted = model.reconstruction_target.denormalise(output.reconstruction, inputs)
            hidden = upsample_mask(mask, recipe.img_size).unsqueeze(1)
            metrics.update(predicted * scale + shift, inputs * scale + shift, hidden)
    return {
        "held_out_loss": total / len(images),
        **metrics.compute(),
        "effective_rank": effective_rank(torch.cat(pooled)),
        **({"held_out_unreadable": dataset.skipped} if dataset.skipped else {}),
    }


def visualize_held_out(
    model: SimMIM,
    recipe: PretrainRecipe,
    images: ImageSource,
    out: Path | None,
    *,
    skip_unreadable: int = 0,
) -> None:
    """Write eight images, masked and reconstructed, as a grid.

    Args:
        out: PNG file; None for the other processes of a sharded model, which only take part in the forward pass.
        skip_unreadable: as of `held_out_metrics`.
    """
    chosen = evenly_spaced(images, VISUALIZED_IMAGES)
    generator = torch.Generator().manual_seed(0)
    mean, std = recipe.statistics
    pixels = load_uncropped(
        chosen,
        recipe.img_size,
        mean=mean,
        std=std,
        pixel_format=recipe.pixel_format,
        skip_unreadable=skip_unreadable,
    )
    mask = sample_recipe_masks(recipe, model.spec.patch_size, pixels, generator)
    save_reconstruction_grid(
        model, pixels, mask, out, mean=mean, std=std, pixel_format=recipe.pixel_format
    )
