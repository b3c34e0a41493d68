"""Attention with ViTDet's relative position: one learned vector per row distance and per column distance.

Follows Detectron2's modeling/backbone/vit.py (`use_rel_pos`): the product of a query with the vectors of its row
and column distance to a key is added to their attention logit. The vectors are zero at the start, so that a
pretrained ViT is unchanged at first.

Legend: B batch, C channels, n heads, (h, w) tokens, L = h * w, d channels of a head.
"""

from __future__ import annotations

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
        position = get_decomposed_rel_pos_bias(
            query.flatten(0, 1), self.rel_pos_h, self.rel_pos_w, grid, grid
        ).view(*query.shape[:2], query.shape[2], query.shape[2])
        if self.fused_attn:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=position)
        else:
            logits = (query * self.scale) @ key.transpose(-2, -1) + position
            attended = logits.softmax(dim=-1) @ value
        return self.proj(attended.transpose(1, 2).flatten(2))


def resize_vectors(vectors: Tensor, length: int) -> Tensor:
    """Resize relative position vectors (2s - 1, d) linearly to (length, d), as Detectron2's get_rel_pos does."""
    return F.interpolate(vectors.T[None], size=length, mode="linear")[0].T
