"""Floating-point operations: those that a model's call takes, and the rate that a device reaches."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_SIDE, GPU_SIDE = 1024, 8192  # of square matrices large enough to be bound by arithmetic
REPEATS = 5  # the fastest of them counts
SLOW_S = 0.5  # ours: a product of a type that a CPU emulates takes seconds, and is not repeated


def count_flops(forward: Callable[[], object]) -> int:
    """Count the floating-point operations of all matrix products and convolutions in a call."""
    with FlopCounterMode(display=False) as counter:
        forward()
    return int(counter.get_total_flops())


def peak_flops_per_s(device: torch.device, precision: str) -> float:
    """Measure the operations per second of a large matrix product: the most that a device reaches.

    Args:
        precision: "fp32", "bf16" or "fp16".
    """
    side = GPU_SIDE if device.type == "cuda" else CPU_SIDE
    matrix = torch.ones(side, side, dtype=DTYPES[precision], device=device)
    return 2 * side**3 / best_matmul_time(matrix)


def best_matmul_time(matrix: Tensor) -> float:
    """Return the shortest of five times, in seconds, of the product of a square matrix with itself."""
    best = matmul_time(matrix)
    for _ in range(REPEATS - 1):
        if best > SLOW_S:
            break
        best = min(best, matmul_time(matrix))
    return best


def matmul_time(matrix: Tensor) -> float:
    """Return the time, in seconds, of the product of a square matrix with itself."""
    if matrix.is_cuda:
        torch.cuda.synchronize(matrix.device)
    started = time.perf_counter()
    matrix @ matrix
    if matrix.is_cuda:
        torch.cuda.synchronize(matrix.device)
    return time.perf_counter() - started
