"""Cut a Swin's map into shifted windows and attend within them, on a CPU, with one copy of the map each way.

timm's block rolls the map in two copies, cuts it in a third, and does the same backward and in reverse.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock, window_partition
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor

from simmim_bench.models.cpu_attention import attend_by_products, hidden_logit

Pair = tuple[int, int]
# Swin V2: the largest factor of a cosine, and the largest bias (arXiv 2111.09883, sections 3.2 and 3.3).
LARGEST_SCALE, LARGEST_BIAS = 100.0, 16.0


def attend_in_windows(block: SwinTransformerBlock, tokens: Tensor) -> Tensor:
    """Apply a Swin block's attention to normalised tokens (B, h, w, C); its windows divide h and w."""
    attention = block.attn

    def attend(windows: Tensor, hidden: Tensor | None) -> Tensor:
        bias = attention._get_rel_pos_bias().squeeze(0)
        attended = attend_by_products(
            attention.qkv(windows), bias, attention.num_heads, attention.scale, hidden
        )
        return attention.proj_drop(attention.proj(attended))

    return _in_windows(tokens, block.window_size, block.shift_size, attend)


def attend_in_windows_v2(block: SwinTransformerV2Block, tokens: Tensor) -> Tensor:
    """Apply a Swin V2 block's attention to tokens (B, h, w, C); its windows divide h and w."""

    def attend(windows: Tensor, hidden: Tensor | None) -> Tensor:
        if hidden is None:
            return block.attn(windows)
        scale = float(block.attn.logit_scale.detach().max().exp().clamp(max=LARGEST_SCALE))
        fill = hidden_logit(2 * scale + LARGEST_BIAS)
        return block.attn(windows, windows.new_zeros(hidden.shape).masked_fill_(hidden, fill))

    return _in_windows(tokens, block.window_size, block.shift_size, attend)


def _in_windows(
    tokens: Tensor, window: Pair, shift: Pair, attend: Callable[[Tensor, Tensor | None], Tensor]
) -> Tensor:
    """Apply attention, given windows (W, N, C) and the pairs that a shift separates, to tokens (B, h, w, C)."""
    images, height, width, channels = tokens.shape
    to_windows, to_tokens = _window_order(images, (height, width), window, shift)
    rows = _reorder(tokens.reshape(-1, channels), to_windows, to_tokens)
    hidden = _separated_by_shift((height, width), window, shift) if any(shift) else None
    attended = attend(rows.view(-1, window[0] * window[1], channels), hidden)
    return _reorder(attended.flatten(0, 1), to_tokens, to_windows).view_as(tokens)


@lru_cache(maxsize=32)
def _window_order(images: int, size: Pair, window: Pair, shift: Pair) -> tuple[Tensor, Tensor]:
    """Return the rows (B * h * w) of a batch's tokens in the order of its shifted windows, and the inverse."""
    count = images * size[0] * size[1]
    with torch.inference_mode(False):  # a later backward pass may need the cached tensors
        tokens = torch.arange(count, device="cpu").view(images, *size, 1)
        shifted = tokens.roll((-shift[0], -shift[1]), (1, 2))
        order = window_partition(shifted, window).flatten()
        return order.int(), order.argsort().int()


@lru_cache(maxsize=64)
def _separated_by_shift(size: Pair, window: Pair, shift: Pair) -> Tensor:
    """Return which tokens of a shifted window come from opposite borders of the map: (n, N, N) bool."""
    by_row, by_column = (
        (torch.arange(length, device="cpu") >= length - side).long()
        + (torch.arange(length, device="cpu") >= length - moved)
        for length, side, moved in zip(size, window, shift, strict=True)
    )
    regions = (3 * by_row[:, None] + by_column).view(1, *size, 1)
    inside = window_partition(regions, window).flatten(1)
    return inside[:, :, None] != inside[:, None, :]


def _reorder(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    reordered: Tensor = _Reorder.apply(rows, order, inverse)
    return reordered


class _Reorder(torch.autograd.Function):
    """Permute rows; the gradient is the inverse permutation, where autograd would add row by row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        order, inverse = ctx.saved_tensors
        return _reorder(gradients[0], inverse, order), None, None
