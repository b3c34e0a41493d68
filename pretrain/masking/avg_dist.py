"""SimMIM's AvgDist, the mean distance of hidden pixels to the nearest visible pixel (arXiv 2111.09886, section 4.1.1).

The paper finds 10 to 20 pixels at 192 x 192 best: a hidden pixel that is nearer can be copied from its neighbours, and
one that is farther cannot be predicted.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.masking.masks import mask_generator, sample_recipe_masks, upsample_mask
from pretrain.recipes import PretrainRecipe
from simmim_bench.data.loader import SeededDataset
from simmim_bench.data.normalise import normalise

MASKS_MEASURED = 64  # determine the mean to about 1 %


def average_distance(masks: Tensor, img_size: tuple[int, int]) -> float:
    """Return the mean distance of hidden pixels to the nearest visible one, centre to centre, in pixels.

    Args:
        masks: (B, h, w), 1 = hidden, of patches or pixels.
        img_size: (H, W) of the images, whose pixels are the unit of the distance.

    Returns:
        At least 1; infinity if a mask leaves nothing visible, 0 if nothing is hidden.
    """
    from scipy.ndimage import distance_transform_edt

    hidden = upsample_mask(masks, img_size).bool().cpu().numpy()
    if hidden.all(axis=(1, 2)).any():
        return math.inf
    distances = [distance_transform_edt(mask)[mask] for mask in hidden]
    return float(np.concatenate(distances).mean()) if hidden.any() else 0.0


def recipe_average_distance(
    recipe: PretrainRecipe, patch_size: int, dataset: Dataset[tuple[Tensor, int]], seed: int
) -> float:
    """Return the average distance of the masks that a run uses for 64 images in its first epoch.

    Args:
        dataset: items are (image (C, H, W) as decoded, label), augmented; 64 evenly spaced ones are used, or all of
            fewer.
        seed: seed of the run.
    """
    count = len(dataset)  # type: ignore[arg-type]
    measured = min(MASKS_MEASURED, count)
    chosen = [i * count // measured for i in range(measured)]
    seeded = SeededDataset(dataset, seed, epoch=0)
    pixels = torch.stack([seeded[i][0] for i in chosen])
    images = normalise(pixels, *recipe.statistics, torch.device("cpu"))
    generators = [mask_generator(seed, 0, i) for i in chosen]
    return average_distance(
        sample_recipe_masks(recipe, patch_size, images, generators), recipe.img_size
    )
