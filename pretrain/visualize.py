"""Reconstruction pictures: original, masked, reconstruction pasted into the visible part.

In: a SimMIM model, normalised images and masks. Out: one PNG, a row an image, as in the paper's figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from pretrain.masking import check_mask_sizes, random_masks
from pretrain.simmim import SimMIM, load_simmim
from simmim_bench.checkpoint import read_checkpoint
from simmim_bench.data import any_images, eval_transform, read_image
from simmim_bench.files import replacing

GREY = 0.5


@torch.no_grad()
def reconstruction_grid(
    model: SimMIM, images: Tensor, mask: Tensor, *, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Draw (B, 3, H, W) images as a grid of three columns, pixels in [0, 1]."""
    model.eval()
    output = model(images, mask)
    patch = model.spec.patch_size
    hidden = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1)
    to_pixels = lambda x: x * x.new_tensor(std).view(-1, 1, 1) + x.new_tensor(mean).view(-1, 1, 1)  # noqa: E731
    original = to_pixels(images)
    pasted = original * (1 - hidden) + to_pixels(output.reconstruction) * hidden
    rows = torch.stack([original, original * (1 - hidden) + GREY * hidden, pasted], dim=1)
    grid: Tensor = make_grid(rows.flatten(0, 1).clamp(0, 1).cpu(), nrow=3, padding=2, pad_value=1.0)
    return grid


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
    """Draw evenly spaced images of a folder through a pretraining checkpoint, randomly masked.

    Raises:
        UsageError: a mask_patch_size that does not fit.
        DataError: a checkpoint or an image that cannot be used.
    """
    model = load_simmim(ckpt)
    spec = model.spec
    unit = mask_patch_size or spec.stride
    check_mask_sizes(spec.img_size, unit, spec.patch_size)
    checkpoint = read_checkpoint(ckpt)
    images = any_images(folder)
    count = min(count, len(images))
    chosen = images.subset([i * len(images) // count for i in range(count)])
    transform = eval_transform(
        spec.img_size, crop_ratio=1.0, mean=checkpoint.mean, std=checkpoint.std
    )
    pixels = torch.stack([transform(read_image(path)) for path in chosen.paths])
    mask = random_masks(
        count,
        spec.img_size,
        mask_patch_size=unit,
        patch_size=spec.patch_size,
        mask_ratio=mask_ratio,
        generator=torch.Generator().manual_seed(seed),
    )
    grid = reconstruction_grid(model, pixels, mask, mean=checkpoint.mean, std=checkpoint.std)
    save_grid(grid, out)


def save_grid(grid: Tensor, path: Path) -> None:
    """Write a grid as PNG, whole or not at all."""
    with replacing(path) as temporary:
        save_image(grid, str(temporary), format="png")
