"""What a model computes with: bfloat16 or float32, and which attention kernel.

In: a device, a recipe's precision, a model. Out: an autocast context, a precision that is decided, a
model whose attention takes the faster of timm's two ways.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16"]

TRIAL_SIDE = 1024  # of the trial's square matrices: large enough to be bound by arithmetic
# A product that the processor has no instructions for takes seconds: a trial begins with a small one. The
# gain that says so is ours; without AVX-512 it is 0.02, and 0.6 where bfloat16 is there but slow.
FIRST_SIDE, HOPELESS = 256, 0.25
WORTH_IT = 1.5  # ours: below it, what bfloat16 wins in products it loses in conversions
NARROWEST = 384  # ours: narrower models (ViT-S has 384) spend too little of their time in products


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Compute in bfloat16 where the recipe asks for it; "auto" is bfloat16 on a GPU that has it."""
    usual = default_precision(precision, device)
    return torch.autocast(device.type, torch.bfloat16, enabled=usual == "bf16")


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Compute in float32 within autocast, what rounding would change: which of two is nearer.

    Convolutions of float32 on a GPU are left as torch is set: by default their factors are rounded to TF32.
    """
    # Shapes alone have no autocast, nor a precision.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def default_precision(precision: str, device: torch.device) -> str:
    """Say what "auto" is where nothing is tried: bfloat16 on a GPU that has it, else float32."""
    if precision != "auto":
        return precision
    return "bf16" if _gpu_has_bf16(device) else "fp32"


def decide_precision(
    precision: Literal["auto"] | Precision, device: torch.device, width: int
) -> Precision:
    """Decide what "auto" means for a training on this machine.

    A GPU's answer is known. A processor is tried, for less than a second: some name AVX512-BF16 among
    their flags and are slower with it.

    Args:
        precision: "auto", "fp32" or "bf16".
        width: channels of the model's widest tokens.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if _gpu_has_bf16(device) else "fp32"
    return "bf16" if width >= NARROWEST and _bf16_gain() >= WORTH_IT else "fp32"


def _gpu_has_bf16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def _bf16_gain() -> float:
    """Say how many times faster a matrix product is in bfloat16 than in float32."""
    first = _gain_at(FIRST_SIDE)
    return first if first < HOPELESS else _gain_at(TRIAL_SIDE)


def _gain_at(side: int) -> float:
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(side, side, dtype=dtype)
        seconds[dtype] = min(_product_time(a) for _ in range(5))
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _product_time(a: Tensor) -> float:
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    started = time.perf_counter()
    a @ a
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - started
