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
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.beit import gen_relative_position_index
from torch import Tensor, nn

Grid = tuple[int, int]
BIAS_TABLE = "relative_position_bias_table"  # parameter name of a bias table, in timm and here
CLASS_TOKEN_ROWS = 3
# torch's memory-efficient attention copies a bias, in every call, unless its rows begin at multiples of 8 values
# (preprocess_mask in aten/src/ATen/native/transformers/attention.cpp).
ALIGNMENT = 8


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
    from scipy.interpolate import CubicSpline  # takes a third of a second to import

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
def _relative_position_index(grid: Grid, class_token: bool, device: torch.device) -> Tensor:
    """Return the table's row of every pair of tokens, (L, M), the rows padded to `ALIGNMENT` with row 0."""
    index = gen_relative_position_index(grid, device=device)
    if not class_token:
        index = index[1:, 1:]
    return F.pad(index, (0, -index.shape[1] % ALIGNMENT))


@torch.compiler.assume_constant_result
def _constant_index(grid: Grid, class_token: bool, device: torch.device) -> Tensor:
    """Return the index; torch.compile would otherwise compute it again in every step, and warn of the cache."""
    return _relative_position_index(grid, class_token, device)


class RelativePositionBias(nn.Module):
    """Relative position bias with a table for one grid, resized on demand to any other grid."""

    def __init__(self, grid: Grid, num_heads: int) -> None:
        super().__init__()
        self.grid = grid
        rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + CLASS_TOKEN_ROWS
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads))

    def forward(
        self, grid: Grid, *, class_token: bool = True, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Compute the additive attention bias of an (h, w) grid.

        Args:
            dtype: of the bias; the table's by default.

        Returns:
            (1, n, 1 + L, 1 + L) with the class token first, or (1, n, L, L) without class token, with aligned rows
            (see `aligned_bias`).
        """
        table = resize_table(self.relative_position_bias_table, self.grid, grid)
        index = _constant_index(grid, class_token, table.device)
        bias: Tensor = _Lookup.apply(table, index, dtype or table.dtype)
        return bias.unsqueeze(0)


class _Lookup(torch.autograd.Function):
    """Index a table (rows, n) for a bias (n, L, L) in another dtype; sum its gradient in the table's dtype.

    The bias of 4,096 tokens and 12 heads takes 0.8 GB in float32. Autograd would hold it twice, before and after
    a permutation, until it is converted to bfloat16, and would sum the gradient of a converted table in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows, ctx.dtype = len(table), table.dtype
        values = table.T.to(dtype, memory_format=torch.contiguous_format)
        bias = values.index_select(1, index.flatten()).view(-1, *index.shape)
        return bias[..., : len(index)]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (index,) = gradients, ctx.saved_tensors
        values = gradient.flatten(1).T.to(ctx.dtype)
        total = values.new_zeros(ctx.rows, values.shape[1])
        # On a GPU, index_put_ sorts and adds in a fixed order; index_add_ does not.
        rows = index[:, : len(index)].flatten()
        return total.index_put_((rows,), values, accumulate=True), None, None


def aligned_bias(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert an attention bias (..., L, M) to a dtype, with rows that begin at multiples of `ALIGNMENT` values.

    Returns:
        `bias` itself if nothing has to change.
    """
    if bias.dtype == dtype and all(stride % ALIGNMENT == 0 for stride in bias.stride()[:-1]):
        return bias
    aligned: Tensor = _Convert.apply(bias, dtype)
    return aligned


class _Convert(torch.autograd.Function):
    """Copy a bias to a dtype and to aligned rows in one pass."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = bias.dtype
        *outer, columns = bias.shape
        padded = bias.new_empty(*outer, columns + -columns % ALIGNMENT, dtype=dtype)
        padded[..., columns:] = 0  # as torch pads
        return padded[..., :columns].copy_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0].to(ctx.dtype), None
