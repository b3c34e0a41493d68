"""Masks for pretraining (arXiv 2111.09886, sections 3.2 and 4.1.1) and for visualisation, 1 = hidden.

`sample_masks` samples masks by a strategy of `STRATEGIES`, `sample_recipe_masks` with the settings of a recipe.
`centre_mask` and `box_mask` are for visualisation. Masks have the resolution of the model's patches, or that of pixels
if a masking unit is smaller than a patch.
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
from simmim_bench.data.normalise import normalise
from simmim_bench.errors import UsageError

MASK_STREAM = 1  # separates the generator of an image's mask from that of its augmentation
STRATEGIES: dict[str, Strategy] = {
    "random": random_units,
    "square": square,
    "block": blocks,
    "pixels": random_units,  # units of one pixel
    "regions": regions,
    "multimodal": multimodal,
}
READS_PIXELS = {"regions", "multimodal"}  # strategies that depend on the image


def check_mask_sizes(img_size: tuple[int, int], mask_patch_size: int, patch_size: int) -> None:
    """Check that the masking unit divides the image and consists of whole patches or is smaller than one.

    Args:
        img_size: (H, W) in pixels.
        mask_patch_size: side of the masking unit in pixels, from `masking_unit`; below patch_size, pixels are hidden
            instead of patches.
        patch_size: side of the model's patches in pixels.

    Raises:
        UsageError: the sizes do not fit; the message suggests valid sizes.
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


def mask_generator(seed: int, epoch: int, image_index: int) -> torch.Generator:
    """Return the generator of an image's mask in an epoch, which does not depend on batches or processes."""
    key = np.random.SeedSequence([seed, epoch, image_index, MASK_STREAM]).generate_state(
        2, np.uint32
    )
    return torch.Generator().manual_seed(int(key[0]) << 32 | int(key[1]))


def sample_masks(
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
    """Sample masks that each hide exactly ceil(mask_ratio * n) of an image's n masking units.

    Args:
        count: number of masks.
        img_size: (H, W) in pixels.
        masking: name of the strategy, a key of `STRATEGIES`.
        mask_patch_size: side of the masking unit in pixels.
        patch_size: side of the model's patches in pixels.
        mask_ratio: fraction of the units to hide, in (0, 1).
        generator: one generator, used for all masks in order, or one per mask: then a mask depends on its generator
            (and image) alone, regardless of batch and process.
        images: (count, C, H, W), in any scale, for strategies that depend on the image.

    Returns:
        Float masks of 0 and 1: (count, H / patch_size, W / patch_size), or (count, H, W) if a unit does not consist of
        whole patches.
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
    # Autocast would compute products in bfloat16 and shift the borders of regions.
    device = "cpu" if images is None else images.device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        units = STRATEGIES[masking](request)
    return _repeat_cells(units, unit if unit % patch_size else unit // patch_size)


def sample_recipe_masks(
    recipe: PretrainRecipe,
    patch_size: int,
    images: Tensor,
    generator: torch.Generator | Sequence[torch.Generator],
) -> Tensor:
    """Sample masks for images (B, C, H, W) with the settings of a recipe; see `sample_masks`."""
    return sample_masks(
        len(images),
        recipe.img_size,
        masking=recipe.masking,
        mask_patch_size=recipe.mask_patch_size,
        patch_size=patch_size,
        mask_ratio=recipe.mask_ratio,
        generator=generator,
        images=images,
    )


def sample_image_mask(
    recipe: PretrainRecipe, patch_size: int, pixels: Tensor, seed: int, epoch: int, index: int
) -> Tensor:
    """Sample the mask of a training image, which a run's seed, the epoch and the image's index determine.

    Args:
        pixels: (C, H, W), as decoded, augmented.
        index: of the image in its data set, or of a further crop of it (`SeededDataset`).

    Returns:
        (h, w) boolean, True = hidden, with the resolution of `sample_masks`.
    """
    images = pixels.unsqueeze(0)
    if recipe.masking in READS_PIXELS:
        images = normalise(images, *recipe.statistics, torch.device("cpu"))
    generator = mask_generator(seed, epoch, index)
    return sample_recipe_masks(recipe, patch_size, images, generator)[0].bool()


def visible_patch_count(recipe: PretrainRecipe, patch_size: int) -> int:
    """Return the number of visible patches of every image, for masking units of whole patches."""
    unit = masking_unit(recipe.masking, recipe.mask_patch_size)
    units = (recipe.img_size[0] // unit) * (recipe.img_size[1] // unit)
    return (units - math.ceil(recipe.mask_ratio * units)) * (unit // patch_size) ** 2


def masking_unit(masking: str, mask_patch_size: int) -> int:
    """Return the side of a strategy's masking unit in pixels: 1 for the strategy "pixels"."""
    return 1 if masking == "pixels" else mask_patch_size


def upsample_mask(masks: Tensor, img_size: tuple[int, int]) -> Tensor:
    """Upsample masks (B, h, w) of patches to the image's resolution (B, H, W); masks of pixels stay as they are."""
    return _repeat_cells(masks, img_size[0] // masks.shape[1])


def hidden_patches(masks: Tensor, patch_size: int) -> Tensor:
    """Convert masks of pixels (B, H, W) to patches (B, H / p, W / p): 1 where all pixels are hidden."""
    return 1 - F.max_pool2d(1 - masks, patch_size)


def _repeat_cells(masks: Tensor, times: int) -> Tensor:
    """Repeat every cell of (..., h, w) `times` times in both directions."""
    return masks.repeat_interleave(times, dim=-2).repeat_interleave(times, dim=-1)


def centre_mask(
    img_size: tuple[int, int], *, mask_patch_size: int, patch_size: int, mask_ratio: float
) -> Tensor:
    """Return a mask that hides a centred rectangle of about `mask_ratio` of the image, in whole masking units.

    Returns:
        (H / patch_size, W / patch_size) float of 0 and 1.
    """
    units = torch.zeros(img_size[0] // mask_patch_size, img_size[1] // mask_patch_size)
    margin = 1 - mask_ratio**0.5
    top, left = (min(round(side * margin / 2), (side - 1) // 2) for side in units.shape)
    units[top : units.shape[0] - top, left : units.shape[1] - left] = 1
    return _repeat_cells(units, mask_patch_size // patch_size)


def box_mask(
    box: Sequence[float], img_size: tuple[int, int], *, mask_patch_size: int, patch_size: int
) -> Tensor:
    """Return a mask that hides every masking unit that a box touches.

    Args:
        box: (left, top, right, bottom) in pixels; it may extend beyond the image.

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
    return _repeat_cells(units, mask_patch_size // patch_size)
