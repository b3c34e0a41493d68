"""Find the first step whose loss or gradient is not finite: on the device, so that the host does not wait."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from simmim_bench.distributed import DistContext

SMALLEST_SCALE = 1.0  # ours: an overflow that remains at this scale is not caused by scaling


@dataclass(frozen=True)
class Step:
    """A step whose figures the host has not read.

    Attributes:
        bad: a boolean scalar on the device: whether the loss or gradient is not finite, on any process.
    """

    number: int
    batch: list[Tensor]
    loss: Tensor
    grad_norm: Tensor
    bad: Tensor


@dataclass
class FiniteCheck:
    """The steps since the host last waited for the device, with their batches.

    After the first bad step the optimizer is told to skip all steps, so that the weights are those before it.
    """

    dist: DistContext
    _steps: list[Step] = field(default_factory=list)

    def skip(
        self, number: int, batch: list[Tensor], loss: Tensor, grad_norm: Tensor, scale: Tensor
    ) -> Tensor:
        """Check a step without waiting for the device.

        Args:
            scale: of the gradients, a scalar on the device. Above `SMALLEST_SCALE` a gradient that is not finite
                is an overflow of float16: the step is skipped, the scale is lowered, and training continues.

        Returns:
            Whether the optimizer must skip the step, a boolean scalar on the device.
        """
        overflow = ~grad_norm.isfinite()
        bad = ~loss.isfinite() | (overflow & (scale <= SMALLEST_SCALE))
        bad = self.dist.any_process(bad)
        if self._steps:
            bad = bad | self._steps[-1].bad
        self._steps.append(Step(number, batch, loss, grad_norm, bad))
        return bad | overflow

    def first_bad(self) -> Step | None:
        """Wait for the device and return the first bad step, the same on every process; forget the others."""
        steps, self._steps = self._steps, []
        if not steps or not steps[-1].bad:
            return None
        return next(step for step in steps if step.bad)
