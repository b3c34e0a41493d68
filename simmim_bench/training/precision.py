"""The precision of a computation: bfloat16, float16 or float32, and which of them suits a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, cast

import torch

from simmim_bench.distributed import DistContext
from simmim_bench.training.flops import CPU_SIDE, DTYPES, best_matmul_time

Precision = Literal["fp32", "bf16", "fp16"]
RANKED: tuple[Precision, ...] = ("fp32", "bf16", "fp16")  # the last one of all processes is used

# A matrix product that the CPU has no instructions for takes seconds, so a small one is timed first. The
# speed-up at which the large one is skipped is ours: without AVX-512 the measured speed-up is 0.02, and 0.6
# where bfloat16 is supported but slow.
SMALL_SIDE, HOPELESS = 256, 0.25
WORTHWHILE = 1.5  # ours: below it, conversions cost what bfloat16 saves in matrix products
MIN_WIDTH = 384  # ours: narrower models (ViT-S has 384) spend too little of their time in products


def autocast(
    device: torch.device, precision: str, *, allow_fp16: bool = False
) -> AbstractContextManager[Any]:
    """Return an autocast context of a precision, which `default_precision` resolves."""
    chosen = default_precision(precision, device, allow_fp16=allow_fp16)
    if chosen == "fp32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, DTYPES[chosen])


def describe_slow_precision(precision: str, device: torch.device) -> list[str]:
    """Return a warning if a recipe's precision is only emulated on a device."""
    if precision != "fp16" or device.type != "cpu":
        return []
    return ["precision=fp16 is slower than fp32 on a CPU; use --precision fp32 or auto"]


def gradient_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return the scaler of a training's gradients, which changes nothing except in float16.

    Gradients below 6e-8 are zero in float16, so the loss is scaled up before the backward pass.
    """
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32 within autocast, for results that rounding would change.

    An example is which of two cluster centres is nearer. Float32 convolutions on a GPU keep torch's setting:
    by default their factors are rounded to TF32.
    """
    if device.type == "meta":  # computes shapes alone; autocast does not support it
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    if device.type == "cuda":
        matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if device.type == "cuda":
            matmul.allow_tf32 = before


def default_precision(
    precision: str, device: torch.device, *, allow_fp16: bool = False
) -> Precision:
    """Resolve "auto" without timing anything: bfloat16 on a GPU that has it, float32 on a CPU.

    Args:
        precision: "auto", "fp32", "bf16" or "fp16".
        allow_fp16: whether "auto" may be float16 on a GPU without bfloat16: no gradients are computed, or
            `gradient_scaler` scales them.
    """
    if precision != "auto":
        return cast(Precision, precision)
    if device.type != "cuda":
        return "fp32"
    # Older GPUs emulate bfloat16: a V100 or T4 is slower with it than with float32.
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if allow_fp16 else "fp32"


def decide_precision(
    precision: Literal["auto"] | Precision,
    device: torch.device,
    width: int,
    measure_speedup: Callable[[], float] | None = None,
) -> Precision:
    """Resolve "auto" for training on this machine.

    On a GPU the hardware decides. On a CPU matrix products are timed for less than a second: some CPUs
    list AVX512-BF16 among their flags and are slower with it. The gradients of float16 must be scaled.

    Args:
        precision: "auto", "fp32", "bf16" or "fp16".
        width: channels of the model's widest tokens.
        measure_speedup: returns how many times faster bfloat16 is than float32; `bf16_speedup` by default.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return default_precision(precision, device, allow_fp16=True)
    speedup = measure_speedup or bf16_speedup
    return "bf16" if width >= MIN_WIDTH and speedup() >= WORTHWHILE else "fp32"


def agree_on_precision(decided: Precision, dist: DistContext) -> Precision:
    """Return one precision for the training of all processes, whose machines may have decided differently.

    A GPU without bfloat16 has float16, whose scaled gradients cannot be averaged with others that are not.
    """
    return RANKED[dist.all_max(RANKED.index(decided))]


def bf16_speedup(time_of: Callable[[torch.Tensor], float] = best_matmul_time) -> float:
    """Measure how many times faster a CPU's matrix product is in bfloat16 than in float32.

    Args:
        time_of: returns the seconds of a square matrix's product with itself.
    """
    first = _speedup_at(SMALL_SIDE, time_of)
    return first if first < HOPELESS else _speedup_at(CPU_SIDE, time_of)


def _speedup_at(side: int, time_of: Callable[[torch.Tensor], float]) -> float:
    single, half = (
        time_of(torch.ones(side, side, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)
    )
    return single / half
