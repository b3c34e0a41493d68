"""Reconstruction pictures: original, masked, reconstruction pasted into the visible part.

In: a SimMIM model, normalised images and masks. Out: one PNG, three tiles an image, as in the paper's figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid, save_image

from pretrain.masking import check_mask_sizes, random_masks
from pretrain.simmim import SimMIM, load_simmim, local_statistics
from simmim_bench.checkpoint import read_checkpoint
from simmim_bench.data import eval_transform
from simmim_bench.files import replacing
from simmim_bench.sources import ImageSource, any_images

GREY = 0.5
SHOWN_PIXELS = 160
ROWS_BESIDE = 2  # images in one row of the grid, three tiles each


@torch.no_grad()
def reconstruction_grid(
    model: SimMIM, images: Tensor, mask: Tensor, *, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Draw (B, 3, H, W) images as tiles, three an image, pixels in [0, 1]."""
    model.eval()
    output = model(images, mask)
    patch = model.spec.patch_size
    hidden = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1)
    reconstruction = output.reconstruction
    if (
        model.norm_target
    ):  # it predicts pixels normalised by their surroundings: those are lent to it
        local_mean, local_deviation = local_statistics(images, model.norm_target)
        reconstruction = reconstruction * local_deviation + local_mean
    scale, shift = images.new_tensor(std).view(-1, 1, 1), images.new_tensor(mean).view(-1, 1, 1)
    original = images * scale + shift
    pasted = original * (1 - hidden) + (reconstruction * scale + shift) * hidden
    # Small pictures are enlarged, pixel by pixel, so that they can be looked at.
    factor = max(1, SHOWN_PIXELS // max(images.shape[-2:]))
    rows = torch.stack([original, original * (1 - hidden) + GREY * hidden, pasted], dim=1)
    tiles = F.interpolate(rows.flatten(0, 1).clamp(0, 1).cpu(), scale_factor=factor)
    grid: Tensor = make_grid(tiles, nrow=3 * ROWS_BESIDE, padding=4, pad_value=1.0)
    return grid


def draw(
    model: SimMIM,
    images: ImageSource,
    out: Path | None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    count: int,
    mask_patch_size: int,
    mask_ratio: float,
    seed: int,
) -> None:
    """Draw evenly spaced images of a list, randomly masked, into a PNG, where `out` names one."""
    spec = model.spec
    device = next(model.parameters()).device
    count = min(count, len(images))
    chosen = images.subset([i * len(images) // count for i in range(count)])
    transform = eval_transform(spec.img_size, crop_ratio=1.0, mean=mean, std=std)
    loaded = [transform(chosen.read(i), chosen.name(i)) for i in range(count)]
    pixels = torch.stack(loaded).to(device)
    mask = random_masks(
        count,
        spec.img_size,
        mask_patch_size=mask_patch_size,
        patch_size=spec.patch_size,
        mask_ratio=mask_ratio,
        generator=torch.Generator().manual_seed(seed),
    ).to(device)
    grid = reconstruction_grid(model, pixels, mask, mean=mean, std=std)
    if out is None:
        return
    with replacing(out) as temporary:
        save_image(grid, str(temporary), format="png")


def draw_folder(
    ckpt: str,
    folder: Path,
    out: Path,
    *,
    count: int,
    mask_patch_size: int | None,
    mask_ratio: float,
    seed: int,
) -> None:
    """Draw images of a folder through a pretraining checkpoint.

    Raises:
        UsageError: a mask_patch_size that does not fit.
        DataError: a checkpoint or an image that cannot be used.
    """
    model = load_simmim(ckpt)
    unit = mask_patch_size or model.spec.stride
    check_mask_sizes(model.spec.img_size, unit, model.spec.patch_size)
    checkpoint = read_checkpoint(ckpt)
    draw(
        model,
        any_images(folder),
        out,
        mean=checkpoint.mean,
        std=checkpoint.std,
        count=count,
        mask_patch_size=unit,
        mask_ratio=mask_ratio,
        seed=seed,
    )
