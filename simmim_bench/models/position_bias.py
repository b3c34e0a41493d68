"""Compute a ViT's relative position bias, and resize bias tables to another grid or window.

A table has one row for every relative position of two tokens of an (h, w) grid. A ViT's table has three
more rows, for class token to patch, patch to class token and class token to itself, in that order.

The resizing follows the official SimMIM code (utils.py, remap_pretrained_keys_*), which follows BEiT: the
old positions are spaced geometrically, dense near zero, and a bicubic spline through them is evaluated at
the new integer positions. A spline through fixed positions is linear in its values, so the resizing is one
matrix per axis, and gradients pass through it.

Legend: n heads, h w grid of tokens, L = h * w.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from timm.models.beit import gen_relative_position_index
from torch import Tensor, nn

Grid = tuple[int, int]
BIAS_TABLE = "relative_position_bias_table"  # parameter name of a bias table, in timm and here
CLASS_TOKEN_ROWS = 3


def geometric_positions(length: int, new_length: int) -> np.ndarray:
    """Compute `length` (odd) positions, spaced geometrically around zero over the span of the new ones.

    The ratio is found by bisection between 1.01 and 1.5, the bounds of the official code.
    """
    half, new_half = length // 2, new_length // 2
    low, high = 1.01, 1.5
    ratio = low
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**half) / (1 - ratio) > new_half:
            high = ratio
        else:
            low = ratio
    positive = np.cumsum(ratio ** np.arange(half))
    return np.concatenate([-positive[::-1], [0.0], positive])


@lru_cache(maxsize=256)
def resize_matrix(size: int, new_size: int) -> Tensor:
    """Return the matrix (2 * new_size - 1, 2 * size - 1) that resizes one axis of a bias table."""
    length, new_length = 2 * size - 1, 2 * new_size - 1
    if length == new_length:
        return torch.eye(length)
    if length == 1:
        return torch.ones(new_length, 1)
    positions = geometric_positions(length, new_length)
    wanted = np.arange(new_length) - new_length // 2
    # Clip, so that the spline does not extrapolate where the maximum ratio 1.5 is too small.
    wanted = wanted.clip(positions[0], positions[-1])
    return torch.from_numpy(CubicSpline(positions, np.eye(length))(wanted)).float()


def resize_table(table: Tensor, grid: Grid, new_grid: Grid) -> Tensor:
    """Resize a bias table from one grid or window to another.

    Args:
        table: ((2h-1) * (2w-1) [+ 3], n) float; the three optional rows of a class token are kept.
        grid: (h, w) of the table.
        new_grid: (h, w) of the result.

    Returns:
        The resized table; `table` itself if the grids are equal.
    """
    if grid == new_grid:
        return table
    rows, columns = 2 * grid[0] - 1, 2 * grid[1] - 1
    patches, extra = table[: rows * columns], table[rows * columns :]
    by_row = resize_matrix(grid[0], new_grid[0]).to(table)
    by_column = resize_matrix(grid[1], new_grid[1]).to(table)
    resized = torch.einsum(
        "yr,xc,rcn->yxn", by_row, by_column, patches.unflatten(0, (rows, columns))
    )
    return torch.cat([resized.flatten(0, 1), extra])


@lru_cache(maxsize=64)
def _relative_position_index(grid: Grid, device: torch.device) -> Tensor:
    return gen_relative_position_index(grid, device=device).flatten()


@torch.compiler.assume_constant_result
def _constant_index(grid: Grid, device: torch.device) -> Tensor:
    """Return the index; torch.compile would otherwise compute it again in every step, and warn of the cache."""
    return _relative_position_index(grid, device)


class RelativePositionBias(nn.Module):
    """Relative position bias with a table for one grid, resized on demand to any other grid."""

    def __init__(self, grid: Grid, num_heads: int) -> None:
        super().__init__()
        self.grid = grid
        rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + CLASS_TOKEN_ROWS
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads))

    def forward(self, grid: Grid, *, class_token: bool = True) -> Tensor:
        """Compute the additive attention bias of an (h, w) grid.

        Returns:
            (1, n, 1 + L, 1 + L) with the class token first, or (1, n, L, L) without class token.
        """
        table = resize_table(self.relative_position_bias_table, self.grid, grid)
        tokens = 1 + grid[0] * grid[1]
        index = _constant_index(grid, table.device)
        bias = table[index].view(1, tokens, tokens, -1)
        if not class_token:
            bias = bias[:, 1:, 1:]
        return bias.permute(0, 3, 1, 2).contiguous()
