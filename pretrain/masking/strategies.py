"""Masks that do not look at the image: units at random, a square, blocks.

In: a `MaskRequest`: a grid of masking units, how many of them to hide, a generator a mask.
Out: masks (B, rows, columns) float, 1 where a unit is hidden, each hiding exactly as many as asked.
From SimMIM (arXiv 2111.09886, section 4.1.1: random, a square that moves, block-wise) and BEiT
(arXiv 2106.08254, section 2.3). Every strategy draws the same number of numbers from a generator for
each mask, so that masks drawn in turn from one generator depend on their place alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor

BEIT_SHARE = 16 / 196  # BEiT: at least 16 of 14 x 14 patches a block (section 2.3)
BEIT_ASPECT = 0.3  # BEiT: a block's height over its width is in (0.3, 1 / 0.3) (section 2.3)
BEIT_ATTEMPTS = 10  # BEiT: beit/masking_generator.py


@dataclass(frozen=True, kw_only=True)
class MaskRequest:
    """What a strategy makes masks from.

    Attributes:
        rows, columns: the grid of masking units, at least one each.
        hidden: units to hide in each mask, 1 to rows * columns.
        generators: one a mask; a generator may stand for several masks, which it then serves in turn.
        images: (B, C, H, W), in any scale; None where the strategy is known not to look at them.
    """

    rows: int
    columns: int
    hidden: int
    generators: Sequence[torch.Generator]
    images: Tensor | None = None


Strategy = Callable[[MaskRequest], Tensor]


def random_units(request: MaskRequest) -> Tensor:
    """Hide units at random, each choice equally likely (SimMIM, section 3.2)."""
    units = request.rows * request.columns
    noise = torch.stack([torch.rand(units, generator=own) for own in request.generators])
    # Not sorted, as there may be tens of thousands of single pixels.
    smallest = noise.topk(request.hidden, largest=False, sorted=False).indices
    return first_hidden(smallest, request)


def square(request: MaskRequest) -> Tensor:
    """Hide one square, each place within the image equally likely (SimMIM, section 4.1.1).

    The side is the root of the number of hidden units, rounded up, and the last columns stay visible
    where fewer do; of the last one that is hidden the lower units stay visible, so that the number is
    exact. Where the image is too low or too narrow, the square is a rectangle from border to border.
    """
    height = min(math.isqrt(request.hidden - 1) + 1, request.rows)
    width = math.ceil(request.hidden / height)
    index = torch.arange(request.hidden)
    row, column = index % height, index // height
    if width > request.columns:
        width = request.columns
        height = math.ceil(request.hidden / width)
        row, column = index // width, index % width
    places = torch.tensor([request.rows - height + 1, request.columns - width + 1])
    drawn = [torch.rand(2, generator=own, dtype=torch.float64) for own in request.generators]
    top, left = (torch.stack(drawn) * places).long().unbind(1)
    order = (top[:, None] + row) * request.columns + left[:, None] + column
    return first_hidden(order, request)


def blocks(request: MaskRequest) -> Tensor:
    """Hide blocks of random size, shape and place until enough is hidden (BEiT, section 2.3).

    From BEiT: a block's area is uniform between the smallest and what is left to hide, its aspect
    log-uniform, its place uniform; a shape that does not fit is drawn anew, at most ten times (the
    official beit/masking_generator.py). Ours: the smallest block is the share of the grid that BEiT's 16
    patches have; a shape that still does not fit is cut to the grid, so that narrow grids have masks; the
    last block is cut, row by row from below, where BEiT's code hides fewer units than asked.
    """
    # Python's numbers are many times as fast as torch's when they are drawn one at a time.
    seeds = [int(torch.randint(2**62, (), generator=own)) for own in request.generators]
    return torch.from_numpy(np.stack([_blocks(request, Random(seed)) for seed in seeds]))


def _blocks(request: MaskRequest, draw: Random) -> np.ndarray:
    """Give one mask (rows, columns) of blocks."""
    mask = np.zeros((request.rows, request.columns), np.float32)
    smallest = max(1, round(mask.size * BEIT_SHARE))
    left = request.hidden
    while left:
        height, width = _block_shape(mask.shape, smallest, max(smallest, left), draw)
        top = int(draw.random() * (request.rows - height + 1))
        start = int(draw.random() * (request.columns - width + 1))
        block = mask[top : top + height, start : start + width]
        rows, columns = np.nonzero(block == 0)
        block[rows[:left], columns[:left]] = 1
        left -= min(left, len(rows))
    return mask


def _block_shape(
    grid: tuple[int, ...], smallest: int, largest: int, draw: Random
) -> tuple[int, int]:
    """Draw the (height, width) of a block that fits into a grid.

    Args:
        smallest, largest: the block's area in units.
    """
    for _ in range(BEIT_ATTEMPTS):
        area = draw.uniform(smallest, largest)
        aspect = math.exp(draw.uniform(math.log(BEIT_ASPECT), -math.log(BEIT_ASPECT)))
        height = max(1, round(math.sqrt(area * aspect)))
        width = max(1, round(math.sqrt(area / aspect)))
        if height <= grid[0] and width <= grid[1]:
            break
    return min(height, grid[0]), min(width, grid[1])


def first_hidden(order: Tensor, request: MaskRequest) -> Tensor:
    """Hide the units that come first in an order.

    Args:
        order: (B, at least `hidden`) numbers of units, row by row of the grid.
    """
    masks = torch.zeros(len(order), request.rows * request.columns)
    masks.scatter_(1, order[:, : request.hidden], 1.0)
    return masks.view(-1, request.rows, request.columns)
