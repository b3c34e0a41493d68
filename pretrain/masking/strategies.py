"""Masking strategies that do not depend on the image: random units, a square, blocks.

Each strategy maps a `MaskRequest` to masks (B, rows, columns) float, 1 where a unit is hidden, and hides exactly the
requested number of units. They follow SimMIM (arXiv 2111.09886, section 4.1.1: random, a square at a random position,
block-wise) and BEiT (arXiv 2106.08254, section 2.3). Every strategy consumes the same number of random numbers for each
mask, so that a mask sampled from a common generator depends on its index alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor

BEIT_MIN_AREA = 16 / 196  # BEiT: a block has at least 16 of the 14 x 14 patches (section 2.3)
BEIT_ASPECT = (
    0.3  # BEiT: the ratio of a block's height to its width is in (0.3, 1 / 0.3) (section 2.3)
)
BEIT_ATTEMPTS = 10  # BEiT: beit/masking_generator.py


@dataclass(frozen=True, kw_only=True)
class MaskRequest:
    """Input of a masking strategy.

    Attributes:
        rows, columns: size of the grid of masking units, at least 1 each.
        hidden: units to hide in each mask, 1 to rows * columns.
        generators: one per mask; the same generator may occur several times and is then used in order.
        images: (B, C, H, W), in any scale; None for a strategy that does not depend on the image.
    """

    rows: int
    columns: int
    hidden: int
    generators: Sequence[torch.Generator]
    images: Tensor | None = None


Strategy = Callable[[MaskRequest], Tensor]


def random_units(request: MaskRequest) -> Tensor:
    """Hide random units; all combinations are equally likely (SimMIM, section 3.2)."""
    units = request.rows * request.columns
    noise = torch.stack([torch.rand(units, generator=own) for own in request.generators])
    # Unsorted, because the strategy "pixels" has tens of thousands of units.
    smallest = noise.topk(request.hidden, largest=False, sorted=False).indices
    return first_hidden(smallest, request)


def square(request: MaskRequest) -> Tensor:
    """Hide one square; all positions within the image are equally likely (SimMIM, section 4.1.1).

    The side is the root of the number of hidden units, rounded up. Columns beyond that number stay visible, as do the
    lower units of the last hidden column, so that the number is exact. If the square is higher or wider than the image,
    it becomes a rectangle from border to border.
    """
    height = min(math.isqrt(request.hidden - 1) + 1, request.rows)
    width = math.ceil(request.hidden / height)
    index = torch.arange(request.hidden)
    row, column = index % height, index // height
    if width > request.columns:
        width = request.columns
        height = math.ceil(request.hidden / width)
        row, column = index // width, index % width
    positions = torch.tensor([request.rows - height + 1, request.columns - width + 1])
    samples = [torch.rand(2, generator=own, dtype=torch.float64) for own in request.generators]
    top, left = (torch.stack(samples) * positions).long().unbind(1)
    order = (top[:, None] + row) * request.columns + left[:, None] + column
    return first_hidden(order, request)


def blocks(request: MaskRequest) -> Tensor:
    """Hide blocks of random size, shape and position until enough units are hidden (BEiT, section 2.3).

    As in BEiT, a block's area is uniform between the minimum and the number of units left to hide, its aspect ratio is
    log-uniform and its position uniform; a shape that does not fit is resampled, at most ten times (the official
    beit/masking_generator.py). Ours: the minimum area is the fraction of the grid that BEiT's 16 patches are; a shape
    that still does not fit is clipped to the grid, so that narrow grids have masks; the last block is truncated, row by
    row from below, where BEiT's code hides fewer units than requested.
    """
    # Python's random is many times faster than torch for single numbers.
    seeds = [int(torch.randint(2**62, (), generator=own)) for own in request.generators]
    return torch.from_numpy(np.stack([_block_mask(request, Random(seed)) for seed in seeds]))


def _block_mask(request: MaskRequest, rng: Random) -> np.ndarray:
    """Return one mask (rows, columns) of blocks."""
    mask = np.zeros((request.rows, request.columns), np.float32)
    smallest = max(1, round(mask.size * BEIT_MIN_AREA))
    left = request.hidden
    while left:
        height, width = _block_shape(mask.shape, smallest, max(smallest, left), rng)
        top = int(rng.random() * (request.rows - height + 1))
        start = int(rng.random() * (request.columns - width + 1))
        block = mask[top : top + height, start : start + width]
        rows, columns = np.nonzero(block == 0)
        block[rows[:left], columns[:left]] = 1
        left -= min(left, len(rows))
    return mask


def _block_shape(
    grid: tuple[int, ...], smallest: int, largest: int, rng: Random
) -> tuple[int, int]:
    """Sample the (height, width) of a block that fits into a grid.

    Args:
        grid: (rows, columns).
        smallest, largest: range of the block's area in units.
    """
    for _ in range(BEIT_ATTEMPTS):
        area = rng.uniform(smallest, largest)
        aspect = math.exp(rng.uniform(math.log(BEIT_ASPECT), -math.log(BEIT_ASPECT)))
        height = max(1, round(math.sqrt(area * aspect)))
        width = max(1, round(math.sqrt(area / aspect)))
        if height <= grid[0] and width <= grid[1]:
            break
    return min(height, grid[0]), min(width, grid[1])


def first_hidden(order: Tensor, request: MaskRequest) -> Tensor:
    """Return masks that hide the first `request.hidden` units of an order.

    Args:
        order: (B, at least `hidden`) indices of units, row by row of the grid.
    """
    masks = torch.zeros(len(order), request.rows * request.columns)
    masks.scatter_(1, order[:, : request.hidden], 1.0)
    return masks.view(-1, request.rows, request.columns)
