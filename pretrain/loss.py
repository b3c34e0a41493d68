"""The loss of SimMIM (arXiv 2111.09886, section 3.4): the mean distance to the target over the hidden pixels.

`Target.loss` in `targets/base.py` computes the distances and calls `masked_mean`; `DISTANCES` has L1, smooth L1 and L2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def _median(values: Tensor) -> Tensor:
    return values.median(dim=1, keepdim=True).values


def _mean(values: Tensor) -> Tensor:
    return values.mean(dim=1, keepdim=True)


def _huber_centre(values: Tensor) -> Tensor:
    """Return each row's c with sum(clamp(x - c, -1, 1)) = 0, which minimises the smooth L1 distance."""
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    for _ in range(40):
        middle = (low + high) / 2
        above = (values - middle).clamp(-1, 1).sum(1, keepdim=True) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


class Distance(NamedTuple):
    """An elementwise distance to the target.

    Attributes:
        elementwise: maps a prediction and a target of the same shape to the distance of each element.
        nearest_constant: maps targets (G, N) to the constants (G, 1) with the least mean distance to them.
    """

    elementwise: Callable[[Tensor, Tensor], Tensor]
    nearest_constant: Callable[[Tensor], Tensor]


DISTANCES: dict[str, Distance] = {
    "l1": Distance(lambda prediction, target: (target - prediction).abs(), _median),
    "l2": Distance(lambda prediction, target: (target - prediction) ** 2, _mean),
    "smooth_l1": Distance(
        lambda prediction, target: F.smooth_l1_loss(prediction, target, reduction="none"),
        _huber_centre,
    ),
}


def masked_mean(distance: Tensor, weights: Tensor) -> Tensor:
    """Return the mean distance over the hidden points and over the numbers of each point.

    Args:
        distance: (B, G, H/t, W/t), G distances per point.
        weights: (B, 1, H/t, W/t), the fraction of each point's pixels that counts.
    """
    # 1e-5: the official guard against a mask that hides nothing (SimMIM: models/simmim.py).
    return (distance * weights).sum() / (weights.sum() + 1e-5) / distance.shape[1]
