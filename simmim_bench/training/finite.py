"""Find the first step whose loss or gradient is not finite: on the device, so that the host does not wait."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simmim_bench.distributed import DistContext

SMALLEST_SCALE = 1.0  # ours: an overflow that remains at this scale is not caused by scaling


@dataclass(frozen=True)
class Step:
    """A step with its batch, on the device.

    Attributes:
        bad: a boolean scalar: whether the loss or gradient is not finite, on any process.
    """

    number: Tensor
    batch: list[Tensor]
    loss: Tensor
    grad_norm: Tensor
    bad: Tensor


@dataclass
class FiniteCheck:
    """The first bad step since the host last waited for the device, or the latest step where none was bad.

    After the first bad step the optimizer is told to skip all steps, so that the weights are those before it.
    """

    dist: DistContext
    _step: Step | None = None

    def skip(
        self, number: int, batch: list[Tensor], loss: Tensor, grad_norm: Tensor, scale: Tensor
    ) -> Tensor:
        """Check a step without waiting for the device.

        Args:
            batch: tensors of the same shapes in every step, on the device.
            scale: of the gradients, a scalar on the device. Above `SMALLEST_SCALE` a gradient that is not finite
                is an overflow of float16: the step is skipped, the scale is lowered, and training continues.

        Returns:
            Whether the optimizer must skip the step, a boolean scalar on the device.
        """
        overflow = ~grad_norm.isfinite()
        bad = ~loss.isfinite() | (overflow & (scale <= SMALLEST_SCALE))
        bad = self.dist.any_process(bad)
        step = Step(torch.full_like(bad, number, dtype=torch.int64), batch, loss, grad_norm, bad)
        self._step = step if self._step is None else _first(self._step, step)
        return self._step.bad | overflow

    def first_bad(self) -> Step | None:
        """Wait for the device and return the first bad step, the same on every process; forget the others."""
        step, self._step = self._step, None
        return step if step is not None and step.bad else None


def _first(earlier: Step, later: Step) -> Step:
    """Return the earlier of two steps if it is bad, else the later one, chosen by the device."""

    def choose(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(earlier.bad, one, other)

    return Step(
        number=choose(earlier.number, later.number),
        batch=[choose(a, b) for a, b in zip(earlier.batch, later.batch, strict=True)],
        loss=choose(earlier.loss, later.loss),
        grad_norm=choose(earlier.grad_norm, later.grad_norm),
        bad=earlier.bad | later.bad,
    )
