"""SimMIM's random masking (arXiv 2111.09886, section 3.2), and two masks to look through.

In: the image's (H, W), the masking unit in pixels, and the share to hide with a generator, or boxes.
Out: masks at the model's patch resolution, 1 where a patch is hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pretrain.recipes import PretrainRecipe
from simmim_bench.errors import UsageError

MASKS = 1  # tells an image's mask from its augmentation, which are drawn from the same seed


def check_mask_sizes(img_size: tuple[int, int], mask_patch_size: int, patch_size: int) -> None:
    """Refuse sizes that do not divide each other.

    Raises:
        UsageError: with the sizes that would do.
    """
    if mask_patch_size < 1 or mask_patch_size % patch_size:
        raise UsageError(
            f"mask_patch_size {mask_patch_size} is not a multiple of patch_size {patch_size}; "
            f"use {max(1, mask_patch_size // patch_size) * patch_size}."
        )
    for size in img_size:
        if size % mask_patch_size:
            below = size // mask_patch_size * mask_patch_size
            options = " or ".join(str(s) for s in (below, below + mask_patch_size) if s)
            raise UsageError(
                f"img_size {size} is not a multiple of mask_patch_size {mask_patch_size}; use {options}."
            )


def mask_generator(seed: int, epoch: int, image: int) -> torch.Generator:
    """Give the generator of an image's mask in an epoch, the same in any batch and process."""
    key = np.random.SeedSequence([seed, epoch, image, MASKS]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(key[0]) << 32 | int(key[1]))


def random_masks(
    count: int,
    img_size: tuple[int, int],
    *,
    mask_patch_size: int,
    patch_size: int,
    mask_ratio: float,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Hide exactly ceil(mask_ratio * n) of an image's n masking units, each choice equally likely.

    Args:
        generator: one for all masks, or one a mask: then a mask depends on its own generator alone,
            whatever batch or process it falls into.

    Returns:
        (count, H / patch_size, W / patch_size) float of 0 and 1.
    """
    rows, columns = img_size[0] // mask_patch_size, img_size[1] // mask_patch_size
    units = rows * columns
    hidden = math.ceil(mask_ratio * units)
    if isinstance(generator, Sequence):
        noise = torch.stack([torch.rand(units, generator=own) for own in generator])
    else:
        noise = torch.rand(count, units, generator=generator)
    order = noise.argsort(dim=1)
    masks = torch.zeros(count, units).scatter_(1, order[:, :hidden], 1.0).view(count, rows, columns)
    scale = mask_patch_size // patch_size
    return masks.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)


def recipe_masks(
    recipe: PretrainRecipe,
    patch_size: int,
    count: int,
    generator: torch.Generator | Sequence[torch.Generator],
) -> Tensor:
    """Give the random masks of a recipe: (count, H / patch_size, W / patch_size)."""
    return random_masks(
        count,
        recipe.img_size,
        mask_patch_size=recipe.mask_patch_size,
        patch_size=patch_size,
        mask_ratio=recipe.mask_ratio,
        generator=generator,
    )


def centre_mask(
    img_size: tuple[int, int], *, mask_patch_size: int, patch_size: int, mask_ratio: float
) -> Tensor:
    """Hide a rectangle in the middle that covers about `mask_ratio`, in whole masking units.

    Returns:
        (H / patch_size, W / patch_size) float of 0 and 1.
    """
    units = torch.zeros(img_size[0] // mask_patch_size, img_size[1] // mask_patch_size)
    shown = 1 - mask_ratio**0.5
    top, left = (min(round(side * shown / 2), (side - 1) // 2) for side in units.shape)
    units[top : units.shape[0] - top, left : units.shape[1] - left] = 1
    scale = mask_patch_size // patch_size
    return units.repeat_interleave(scale, dim=0).repeat_interleave(scale, dim=1)


def box_mask(
    box: Sequence[float], img_size: tuple[int, int], *, mask_patch_size: int, patch_size: int
) -> Tensor:
    """Hide every masking unit that a box touches.

    Args:
        box: (left, top, right, bottom) in pixels; what lies outside of the image does not count.

    Returns:
        (H / patch_size, W / patch_size) float of 0 and 1.
    """
    rows, columns = (
        torch.arange(0, side, mask_patch_size, dtype=torch.float64) for side in img_size
    )
    left, top, right, bottom = box
    hidden_rows = (rows < bottom) & (rows + mask_patch_size > top)
    hidden_columns = (columns < right) & (columns + mask_patch_size > left)
    units = (hidden_rows[:, None] & hidden_columns[None]).float()
    scale = mask_patch_size // patch_size
    return units.repeat_interleave(scale, dim=0).repeat_interleave(scale, dim=1)
