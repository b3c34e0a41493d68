"""SimMIM's AvgDist: how far a hidden pixel is from what is visible (arXiv 2111.09886, section 4.1.1).

In: masks, or a recipe and its images. Out: a mean distance in pixels. The paper finds 10 to 20 of 192
pixels best: nearer, a pixel can be copied from its neighbours; farther, it cannot be known.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.masking.masks import at_pixels, mask_generator, recipe_masks
from pretrain.recipes import PretrainRecipe
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.data.decode import normalise
from simmim_bench.data.loader import Seeded

MASKS_MEASURED = 64  # the mean is then known to about one part in a hundred


def average_distance(masks: Tensor, img_size: tuple[int, int]) -> float:
    """Give the mean distance of hidden pixels to the nearest visible one, centre to centre, in pixels.

    Args:
        masks: (B, h, w), 1 = hidden; a pixel is so many of `img_size` (H, W).

    Returns:
        At least 1; infinity where a mask leaves nothing visible, 0 where nothing is hidden.
    """
    hidden = at_pixels(masks, img_size).bool().cpu().numpy()
    if hidden.all(axis=(1, 2)).any():
        return math.inf
    distances = [distance_transform_edt(mask)[mask] for mask in hidden]
    return float(np.concatenate(distances).mean()) if hidden.any() else 0.0


def recipe_distance(
    recipe: PretrainRecipe, patch_size: int, dataset: Dataset[tuple[Tensor, int]], seed: int
) -> float:
    """Give the average distance of a run's own masks: those of at most 64 images in its first epoch.

    Args:
        dataset: gives (image (C, H, W) uint8, label), augmented; its images are evenly chosen.
        seed: of the run.
    """
    count = len(dataset)  # type: ignore[arg-type]
    measured = min(MASKS_MEASURED, count)
    chosen = [i * count // measured for i in range(measured)]
    seeded = Seeded(dataset, seed, epoch=0)
    pixels = torch.stack([seeded[i][0] for i in chosen])
    images = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"))
    generators = [mask_generator(seed, 0, i) for i in chosen]
    return average_distance(recipe_masks(recipe, patch_size, images, generators), recipe.img_size)
