"""End a run of a framework's training loop whose loss or gradient is not finite, and keep the images of that step."""

from __future__ import annotations

from typing import Any, NoReturn

from simmim_bench.errors import DivergedError
from simmim_bench.runs.context import RunContext
from simmim_bench.training.finite import FiniteCheck

# `image` (C, H, W), as decoded and transformed, and `file_name`, which torch.load reads without a framework.
Images = list[dict[str, Any]]


class StepChecks:
    """The steps since the host last waited for the device, with the images of each.

    Args:
        task: as messages name it.

    Attributes:
        finite: finds the first bad step on the device. It is given no batch: the images of a framework differ in size
            and are not on the device.
        images: of every step, by its number.
    """

    def __init__(self, task: str, context: RunContext) -> None:
        self.task, self.context = task, context
        self.finite = FiniteCheck(context.dist)
        self.images: dict[int, Images] = {}

    def keep(self, number: int, images: Images) -> None:
        """Keep copies of a step's images: a tensor of a worker process has an open file and shared memory."""
        self.images[number] = [{**entry, "image": entry["image"].clone()} for entry in images]

    def raise_if_diverged(self) -> None:
        """Wait for the device; end the run on every process if a step was not finite.

        Raises:
            DivergedError: each process has written its images of the first such step.
        """
        step = self.finite.first_bad()
        if step is None:
            self.images.clear()
            return
        try:
            found = f"loss {step.loss.item()}, gradient norm {step.grad_norm.item()}"
            self.raise_diverged(int(step.number), found)
        finally:
            # A launcher would kill the processes that are still writing as soon as one ends.
            self.context.dist.barrier()

    def raise_diverged(self, number: int, found: str) -> NoReturn:
        """Write this process's images of a step, and end the run.

        Args:
            found: what is not finite.

        Raises:
            DivergedError: always.
        """
        path = self.context.run.save_bad_batch(number, self.images[number], self.context.dist.rank)
        raise DivergedError(
            f"{self.task}: {found} at step {number}; the last checkpoint is kept, the images and their file names are "
            f"written to {path}. Use a lower -o base_lr=..., or fix the data."
        )
