"""What a model computes with: bfloat16 or float32, and which attention kernel.

In: a device, a recipe's precision, a model. Out: an autocast context, a precision that is decided, a
model whose attention takes the faster of timm's two ways.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from timm.layers import use_fused_attn
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3); -1 as a value means never

Precision = Literal["fp32", "bf16"]

TRIAL_SIDE = 1024  # of the trial's square matrices: large enough to be bound by arithmetic
# A product that the processor has no instructions for takes seconds: a trial begins with a small one. The
# gain that says so is ours; without AVX-512 it is 0.02, and 0.6 where bfloat16 is there but slow.
FIRST_SIDE, HOPELESS = 256, 0.25
WORTH_IT = 1.5  # ours: below it, what bfloat16 wins in products it loses in conversions
NARROWEST = 384  # ours: narrower models (ViT-S has 384) spend too little of their time in products


def best_device() -> torch.device:
    """Give the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Compute in bfloat16 where the recipe asks for it; "auto" is bfloat16 on a GPU that has it."""
    usual = usual_precision(precision, device)
    return torch.autocast(device.type, torch.bfloat16, enabled=usual == "bf16")


def exactly(device: torch.device) -> AbstractContextManager[Any]:
    """Compute in float32 within autocast, what rounding would change: which of two is nearer.

    Convolutions of float32 on a GPU are left as torch is set: by default their factors are rounded to TF32.
    """
    # Shapes alone have no autocast, nor a precision.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def usual_precision(precision: str, device: torch.device) -> str:
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


def choose_attention(model: nn.Module, *, training: bool) -> None:
    """Set timm's attention modules to torch's fused kernel, or to plain products and a softmax.

    On a CPU, torch has no fused kernel that gives the position bias a gradient; what it falls back to
    takes about twice the time of the plain way (benchmarks/README.md).
    """
    on_gpu = next(model.parameters()).is_cuda
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            fused = bool(use_fused_attn()) and (on_gpu or not training)
            module.fused_attn = fused  # type: ignore[assignment]


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Leave a model's buffers as they were before the block: a forward pass moves BatchNorm's statistics."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)


def count_flops(forward: Callable[[], object]) -> int:
    """Count the floating-point operations of all matrix products and convolutions of a call."""
    with FlopCounterMode(display=False) as counter:
        forward()
    return int(counter.get_total_flops())


def product_flops_per_s(device: torch.device, precision: str) -> float:
    """Measure the operations a second of a large square matrix product: what a device can at most."""
    side = 8192 if device.type == "cuda" else TRIAL_SIDE
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(side, side, dtype=dtype, device=device)
    return 2 * side**3 / min(_product_time(a) for _ in range(5))


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees for the next one, for the rest of this process.

    By default glibc gives large tensors back to the system at once, and every step on a CPU pays for
    hundreds of thousands of page faults. Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_MAX, 0)
        set_option(M_TRIM_THRESHOLD, -1)
