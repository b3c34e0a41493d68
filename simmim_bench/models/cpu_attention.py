"""Compute attention with a position bias on a CPU by batched products, with few copies in both passes.

torch has no fused kernel on a CPU that computes the gradient of the bias. Autograd's own passes copy queries, keys and
values one by one, hold the logits three times, and join three gradients before they copy them once more.

The windows of a shifted map hide pairs of tokens by adding -100 to their logits, as the official code does. Their
attention is then about 1e-44, a denormal number, with which many processors compute far more slowly.
It is set to zero wherever float32 cannot tell both apart.

Legend: W sequences or windows, n windows of one image, N tokens of each, H heads, d channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HIDDEN_LOGIT = -100.0  # SimMIM: models/swin_transformer.py, SwinTransformerBlock.__init__
# A term below exp(-40) = 4e-18 of the largest one changes no sum of float32 numbers.
NEGLIGIBLE_LOGIT = -40.0


def suits_products(fused: bool, dropout: nn.Dropout, tokens: Tensor) -> bool:
    """Return whether a module's attention is computed here or in `cpu_windows.py`: eager float32 on a CPU.

    Args:
        fused: whether the module keeps its own computation, such as torch's fused kernel (`attention.py`).
        dropout: of the attention weights.
    """
    return (
        not fused
        and tokens.is_cpu
        and tokens.dtype == torch.float32
        and dropout.p == 0
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch.is_autocast_enabled("cpu")
    )


def attend_by_products(
    qkv: Tensor, bias: Tensor | None, heads: int, scale: float, hidden: Tensor | None = None
) -> Tensor:
    """Return softmax(scale * q kT + bias) v as (W, N, H * d).

    Args:
        qkv: (W, N, 3 * H * d) float32, queries, keys and values.
        bias: (H, N, N), any other shape that broadcasts to (W, H, N, N), such as a bias of each image's visible
            tokens, or None.
        hidden: (n, N, N) bool, pairs of tokens that do not attend to each other, or None; needs a bias of (H, N, N).
    """
    attended: Tensor = _Products.apply(qkv, bias, hidden, heads, scale)
    return attended


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, bias: Tensor | None, hidden: Tensor | None, heads: int, scale: float
    ) -> Tensor:
        sequences, tokens, _ = qkv.shape
        parts = qkv.view(sequences, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        queries, keys, values = parts.flatten(1, 2)
        logits = _scaled_product(queries, keys.transpose(1, 2), scale)
        if bias is not None:
            if hidden is None:
                logits.view(sequences, heads, tokens, tokens).add_(bias)
            else:
                added = _add_hidden(bias, hidden, logits)
                logits.view(-1, *added.shape).add_(added)
        weights = logits.softmax(-1)
        ctx.save_for_backward(parts, weights)
        ctx.scale, ctx.bias_shape = scale, None if bias is None else bias.shape
        attended = weights.bmm(values).view(sequences, heads, tokens, -1)
        return attended.transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        parts, weights = ctx.saved_tensors
        _, sequences, heads, tokens, width = parts.shape
        queries, keys, values = parts.flatten(1, 2)
        of_attended = gradient.view(sequences, tokens, heads, width).transpose(1, 2)
        of_attended = of_attended.reshape_as(values)
        of_weights = of_attended.bmm(values.transpose(1, 2))
        of_logits = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_qkv = gradient.new_empty(sequences, tokens, 3, heads, width)
        of_queries, of_keys, of_values = of_qkv.permute(2, 0, 3, 1, 4)
        of_queries.copy_(_scaled_product(of_logits, keys, ctx.scale).view_as(of_queries))
        product = _scaled_product(of_logits.transpose(1, 2), queries, ctx.scale)
        of_keys.copy_(product.view_as(of_keys))
        of_values.copy_(weights.transpose(1, 2).bmm(of_attended).view_as(of_values))
        of_bias = None
        if ctx.bias_shape is not None and ctx.needs_input_grad[1]:
            of_bias = of_logits.view(sequences, heads, tokens, tokens).sum_to_size(ctx.bias_shape)
        return of_qkv.flatten(2), of_bias, None, None, None


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return `scale` times the batched product; the library scales while it writes."""
    return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=scale)


def _add_hidden(bias: Tensor, hidden: Tensor, logits: Tensor) -> Tensor:
    """Return (n, H, N, N): the bias, and what hides the attention of hidden pairs, given the logits without both."""
    spread = sum(float(high - low) for low, high in (logits.aminmax(), bias.aminmax()))
    mask = bias.new_zeros(hidden.shape).masked_fill_(hidden, hidden_logit(spread))
    return bias + mask[:, None]


def hidden_logit(spread: float) -> float:
    """Return what hides a pair when added to its logit: -inf if float32 cannot tell it from -100, else -100.

    Args:
        spread: the largest possible difference of two logits.
    """
    return -math.inf if HIDDEN_LOGIT + spread < NEGLIGIBLE_LOGIT else HIDDEN_LOGIT
