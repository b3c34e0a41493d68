"""Count the floating-point operations of a model, and measure the rate that a device reaches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from simmim_bench.training.precision import TRIAL_SIDE, _product_time


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
