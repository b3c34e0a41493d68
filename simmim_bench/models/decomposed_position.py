"""Attention with ViTDet's relative position: one learned vector per row distance and per column distance.

Follows Detectron2's modeling/backbone/vit.py (`use_rel_pos`): the product of a query with the vectors of its row
and column distance to a key is added to their attention logit. The vectors are zero at the start, so that a
pretrained ViT is unchanged at first.

Legend: B batch, C channels, n heads, (h, w) tokens, L = h * w, d channels of a head.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from timm.models.beit import Attention
from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias
from torch import Tensor, nn

from simmim_bench.models.position_bias import Grid

VECTORS = ("rel_pos_h", "rel_pos_w")  # parameter names, as in Detectron2


class DecomposedPositionAttention(Attention):
    """BEiT's attention of the tokens of one grid or window, without class token.

    Args:
        grid: (h, w) of the vectors (2h - 1, d) and (2w - 1, d); they are resized linearly for another grid.
    """

    def __init__(self, dim: int, num_heads: int, grid: Grid) -> None:
        super().__init__(dim, num_heads=num_heads, qkv_bias=True)
        for name, side in zip(VECTORS, grid, strict=True):
            setattr(self, name, nn.Parameter(torch.zeros(2 * side - 1, dim // num_heads)))

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Map (B, L, C) to (B, L, C) for the (h, w) tokens of a grid."""
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        qkv = F.linear(tokens, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        if self.fused_attn and tokens.is_cuda:
            attended = attend_without_bias(
                query, key, value, self.rel_pos_h, self.rel_pos_w, grid, self.scale
            )
            return self.proj(attended.transpose(1, 2).flatten(2))
        position = get_decomposed_rel_pos_bias(
            query.flatten(0, 1), self.rel_pos_h, self.rel_pos_w, grid, grid
        ).view(*query.shape[:2], query.shape[2], query.shape[2])
        if self.fused_attn:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=position)
        else:
            logits = (query * self.scale) @ key.transpose(-2, -1) + position
            attended = logits.softmax(dim=-1) @ value
        return self.proj(attended.transpose(1, 2).flatten(2))


def attend_without_bias(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    grid: Grid,
    scale: float,
) -> Tensor:
    """Compute the same attention with the position inside the product of queries and keys.

    The position's logit is one number per query and key row, plus one per query and key column. The query is
    extended by these h + w numbers, and the key by the one-hot vectors of its row and column. A bias is another one for
    every image and takes 0.4 GB of each at 4,096 tokens, 12 heads and two bytes; the same again for its gradient.

    Args:
        query, key, value: (B, n, L, d).
        rel_pos_h, rel_pos_w: vectors of the row and column distances, (2h - 1, d) and (2w - 1, d), or of another
            grid's, which are resized.
        scale: of the product of query and key, without position.

    Returns:
        (B, n, L, d).
    """
    rows, columns = (
        resize_vectors(vectors, 2 * side - 1)[_distances(side, vectors.device)]
        for vectors, side in zip((rel_pos_h, rel_pos_w), grid, strict=True)
    )
    placed = query.unflatten(2, grid)
    by_row = torch.einsum("bnhwd,hkd->bnhwk", placed, rows).flatten(2, 3)
    by_column = torch.einsum("bnhwd,wkd->bnhwk", placed, columns).flatten(2, 3)
    width = query.shape[-1] + sum(grid)
    # Fused kernels take multiples of 8 channels.
    padding = query.new_zeros(()).expand(*query.shape[:-1], -width % 8)
    one_hot = _one_hot_positions(grid, query.device).to(query.dtype)
    return F.scaled_dot_product_attention(
        torch.cat([query * scale, by_row, by_column, padding], dim=-1),
        torch.cat([key, one_hot.expand(*key.shape[:2], -1, -1), padding], dim=-1),
        value,
        scale=1.0,
    )


@lru_cache(maxsize=64)
def _make_distances(side: int, device: torch.device) -> Tensor:
    """Return the index of the vector of every query and key, (side, side)."""
    along = torch.arange(side, device=device)
    return along[:, None] - along + side - 1


@torch.compiler.assume_constant_result
def _distances(side: int, device: torch.device) -> Tensor:
    """Return the indices, which torch.compile would otherwise compute in every step, and warn of the cache."""
    return _make_distances(side, device)


@lru_cache(maxsize=64)
def _make_one_hot_positions(grid: Grid, device: torch.device) -> Tensor:
    """Return the one-hot row and the one-hot column of every token, (L, h + w)."""
    rows, columns = (torch.eye(side, device=device) for side in grid)
    return torch.cat([rows.repeat_interleave(grid[1], 0), columns.repeat(grid[0], 1)], dim=1)


@torch.compiler.assume_constant_result
def _one_hot_positions(grid: Grid, device: torch.device) -> Tensor:
    """Return the one-hot positions, for torch.compile as `_distances`."""
    return _make_one_hot_positions(grid, device)


def resize_vectors(vectors: Tensor, length: int) -> Tensor:
    """Resize relative position vectors (2s - 1, d) linearly to (length, d), as Detectron2's get_rel_pos does."""
    if len(vectors) == length:
        return vectors
    return F.interpolate(vectors.T[None], size=length, mode="linear")[0].T
