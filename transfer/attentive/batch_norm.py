"""BatchNorm without weights over some of a batch's images, and over those of all processes.

torch's BatchNorm has neither: a candidate that learns from a part of the images must not see the statistics of the
others, and torch synchronises statistics on GPUs alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from simmim_bench.distributed import DistContext

EPSILON = 1e-6  # efficient-probing: probe_heads.py:110
MOMENTUM = 0.1  # torch's default

# Sums a tensor over all processes; gradients pass through.
Total = Callable[[Tensor], Tensor]


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        torch_dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        torch_dist.all_reduce(total)
        return total


def total_over(dist: DistContext) -> Total:
    """Return the function that sums a tensor over the processes of a run."""
    return _sum if dist.size > 1 else _same


def _sum(own: Tensor) -> Tensor:
    function: Any = _SumOverProcesses
    total: Tensor = function.apply(own)
    return total


def _same(own: Tensor) -> Tensor:
    return own


class BatchNorm(nn.Module):
    """Running mean and variance of every channel, and the norm by them or by those of a batch."""

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def update(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Update the running statistics as torch does, whose running variance is the unbiased one."""
        unbiased = var * (count / (count - 1).clamp(min=1))
        self.mean.lerp_(mean.detach(), MOMENTUM)
        self.var.lerp_(unbiased.detach(), MOMENTUM)

    def forward(self, x: Tensor, counted: Tensor, total: Total) -> Tensor:
        """Normalise vectors (B, C): in training by the statistics of the counted ones.

        Args:
            counted: (B,), 1 for a vector that enters the statistics, else 0.
        """
        if not self.training:
            return normalise(x, self.mean, self.var)
        mean, var, count = moments(x.unsqueeze(1), counted, total)
        self.update(mean, var, count)
        return normalise(x, mean, var)


def normalise(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Subtract the mean and divide by the standard deviation."""
    return (x - mean) / (var + EPSILON).sqrt()


def moments(x: Tensor, counted: Tensor, total: Total) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,) and biased variance (C,) of the counted images' tokens, and their number, a scalar.

    Args:
        x: (B, L, C).
        counted: (B,), 1 for an image that is counted, else 0.
    """
    length = x.shape[1]
    count = total(counted.sum() * length).clamp(min=1)
    mean = total(counted @ x.sum(1)) / count
    var = total(counted @ (x - mean).square().sum(1)) / count
    return mean, var, count
