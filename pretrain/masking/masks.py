"""Masks by SimMIM's strategies and ours (arXiv 2111.09886, sections 3.2 and 4.1.1), and two to look through.

In: the image's (H, W), the masking unit in pixels, and the share to hide with a generator, or boxes.
Out: masks at the model's patch resolution, 1 where a patch is hidden; at the image's, 1 where a pixel is
hidden, for units that are smaller than a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.masking.content import multimodal, regions
from pretrain.masking.strategies import MaskRequest, Strategy, blocks, random_units, square
from pretrain.recipes import PretrainRecipe
from simmim_bench.errors import UsageError

MASKS = 1  # tells an image's mask from its augmentation, which are drawn from the same seed
STRATEGIES: dict[str, Strategy] = {
    "random": random_units,
    "square": square,
    "block": blocks,
    "pixels": random_units,  # units of one pixel
    "regions": regions,
    "multimodal": multimodal,
}


def check_mask_sizes(img_size: tuple[int, int], mask_patch_size: int, patch_size: int) -> None:
    """Refuse sizes that do not divide each other.

    Args:
        mask_patch_size: side of the masking unit, as `masking_unit` gives it; below patch_size the
            model hides pixels instead of patches.

    Raises:
        UsageError: with the sizes that would do.
    """
    if mask_patch_size < 1 or (mask_patch_size > patch_size and mask_patch_size % patch_size):
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
    masking: str = "random",
    mask_patch_size: int,
    patch_size: int,
    mask_ratio: float,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    images: Tensor | None = None,
) -> Tensor:
    """Hide exactly ceil(mask_ratio * n) of an image's n masking units, chosen by a strategy.

    Args:
        masking: a name of `STRATEGIES`.
        generator: one for all masks, in turn, or one a mask: then a mask depends on its own generator
            (and its image) alone, whatever batch or process it falls into.
        images: (count, C, H, W), in any scale, for the strategies that look at them.

    Returns:
        Float of 0 and 1: (count, H / patch_size, W / patch_size), or (count, H, W) where a unit is not
        made of whole patches.
    """
    unit = masking_unit(masking, mask_patch_size)
    rows, columns = img_size[0] // unit, img_size[1] // unit
    request = MaskRequest(
        rows=rows,
        columns=columns,
        hidden=math.ceil(mask_ratio * rows * columns),
        generators=generator
        if isinstance(generator, Sequence)
        else [generator or torch.default_generator] * count,
        images=images,
    )
    # Products in bfloat16, which a step under autocast takes, would move the borders of regions.
    device = "cpu" if images is None else images.device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        units = STRATEGIES[masking](request)
    return _repeated(units, unit if unit % patch_size else unit // patch_size)


def recipe_masks(
    recipe: PretrainRecipe,
    patch_size: int,
    images: Tensor,
    generator: torch.Generator | Sequence[torch.Generator],
) -> Tensor:
    """Give the masks of a recipe for images (B, C, H, W), as `random_masks` does."""
    return random_masks(
        len(images),
        recipe.img_size,
        masking=recipe.masking,
        mask_patch_size=recipe.mask_patch_size,
        patch_size=patch_size,
        mask_ratio=recipe.mask_ratio,
        generator=generator,
        images=images,
    )


def masking_unit(masking: str, mask_patch_size: int) -> int:
    """Give the side of a strategy's units in pixels: of single pixels it is 1."""
    return 1 if masking == "pixels" else mask_patch_size


def at_pixels(masks: Tensor, img_size: tuple[int, int]) -> Tensor:
    """Give masks (B, h, w) of patches or of pixels at the image's resolution (B, H, W)."""
    return _repeated(masks, img_size[0] // masks.shape[1])


def hidden_patches(masks: Tensor, patch_size: int) -> Tensor:
    """Tell which patches have no visible pixel: (B, H, W) of pixels to (B, H / p, W / p)."""
    return 1 - F.max_pool2d(1 - masks, patch_size)


def _repeated(masks: Tensor, times: int) -> Tensor:
    """Repeat every cell of (..., h, w) so many times in both directions."""
    return masks.repeat_interleave(times, dim=-2).repeat_interleave(times, dim=-1)


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
    return _repeated(units, mask_patch_size // patch_size)


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
    return _repeated(units, mask_patch_size // patch_size)
