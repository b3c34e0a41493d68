"""Choose between torch's fused attention kernel and explicit matrix products in timm's attention modules."""

from __future__ import annotations

from timm.layers import use_fused_attn
from torch import nn


def select_attention(model: nn.Module, *, training: bool) -> None:
    """Set timm's attention modules to torch's fused kernel, or to explicit products and a softmax.

    On a CPU, torch has no fused kernel that computes the gradient of the position bias; its fallback
    takes about twice the time of explicit products (benchmarks/README.md). ViTs and Swins then compute
    the products in `cpu_attention.py`.

    Args:
        training: whether the model is about to be trained.
    """
    on_gpu = next(model.parameters()).is_cuda
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            fused = bool(use_fused_attn()) and (on_gpu or not training)
            module.fused_attn = fused  # type: ignore[assignment]
