"""The state of a training run: what its loop changes, and what its checkpoint saves and restores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_training_state
from simmim_bench.data.loader import EpochLoader
from simmim_bench.distributed import DistContext, full_state, load_full_state
from simmim_bench.runs.context import RunContext
from simmim_bench.training.optim import Schedule, step_unless
from simmim_bench.training.precision import default_precision, gradient_scaler


@dataclass(kw_only=True)
class TrainState:
    """The model under training with everything that its loop changes.

    Attributes:
        model: the model itself; a checkpoint uses its parameter names.
        parallel_model: the model as `DistContext.wrap_model` returned it, which the loss function calls.
        optimizer: a fused AdamW, or timm's Lamb, over the parameters of `model`.
        schedule: the learning rate of every step.
        loader: the batches of every epoch.
        precision: "fp32", "bf16" or "fp16"; the checkpoint's precision in a resumed run.
        step: completed optimizer steps.
        accumulation_steps: backward passes that each process splits its batch into.
        ema: moving average of the weights, which then replaces them in the checkpoint; None for no average.
        saved: the contents of `training.pt` that the run resumes from, until `resume` has restored them.
        scaler: scales the gradients in float16; disabled otherwise.
    """

    model: nn.Module
    parallel_model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    loader: EpochLoader
    precision: str
    step: int = 0
    accumulation_steps: int = 1
    ema: ModelEmaV3 | None = None
    saved: dict[str, Any] | None = None
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self._set_precision(self.precision)

    def _set_precision(self, precision: str) -> None:
        device = next(self.model.parameters()).device
        # Fine-tuning stored "auto" until version 0.2.
        self.precision = default_precision(precision, device, allow_fp16=True)
        self.scaler = gradient_scaler(self.precision, device)

    @property
    def epochs_done(self) -> float:
        """Completed passes over the training images, a fraction within an epoch."""
        return self.step / len(self.loader)

    def optimizer_step(self, skip: Tensor) -> None:
        """Update the weights and their moving average, and count the step.

        Args:
            skip: a boolean scalar on the device: whether the optimizer leaves weights and moments unchanged.
        """
        step_unless(skip, self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, self.step)

    def state_dict(self, dist: DistContext) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Gather the contents of a checkpoint on the CPU; every process must call.

        Returns:
            The weights to evaluate, and what resuming needs in addition (`training.pt`); complete on rank 0.
        """
        weights, optimizer = full_state(self.model, self.optimizer, dist)
        training = {
            "optimizer": optimizer,
            "steps_done": self.step,
            "precision": self.precision,
            "accumulate": self.accumulation_steps,
            "processes": dist.size,
        }
        if self.scaler.is_enabled():
            training["scaler"] = self.scaler.state_dict()
        if self.ema is not None:
            training["weights"] = weights
            weights = self.ema.module.state_dict()
        return weights, training

    def load_state_dict(self, weights: dict[str, Tensor], training: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, with any number of processes.

        The number of accumulation steps is chosen before the model is wrapped, by
        `choose_accumulation_steps`.
        """
        if self.ema is not None:
            self.ema.module.load_state_dict(weights)
            weights = training["weights"]
        load_full_state(self.model, self.optimizer, weights, training["optimizer"])
        self.step = training["steps_done"]
        self._set_precision(training.get("precision", self.precision))
        if self.scaler.is_enabled() and "scaler" in training:
            self.scaler.load_state_dict(training["scaler"])

    def resume(self, context: RunContext, checkpoint: Checkpoint) -> None:
        """Continue from a run's last checkpoint, and drop the metrics of later steps.

        Args:
            checkpoint: what `context.last_checkpoint()` returned.
        """
        assert checkpoint.state is not None
        assert self.saved is not None
        self.load_state_dict(checkpoint.state, self.saved)
        self.saved = None  # free the moments, which the optimizer has copied
        context.run.rewind(self.step)


def read_saved(context: RunContext, checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    """Read the `training.pt` of the checkpoint that a run resumes from; None for a new run.

    Raises:
        DataError: the checkpoint has no `training.pt`, or it is damaged.
    """
    return None if checkpoint is None else read_training_state(context.run.last_checkpoint)


def choose_accumulation_steps(
    requested: int | None,
    context: RunContext,
    saved: dict[str, Any] | None,
    find: Callable[[], int],
) -> int:
    """Return the number of accumulation steps of each process.

    A resumed run keeps its number: every forward pass samples its dropped paths anew, so that another number would
    be another training. On fewer GPUs each has a larger batch, and the number is found anew.

    Args:
        requested: by an option; it takes precedence.
        saved: what `read_saved` returned.
        find: finds the smallest number that fits in a GPU's memory. On a CPU, where nothing is tried, it is 1.
    """
    dist = context.dist
    on_gpu = dist.device.type == "cuda"
    if requested is not None:
        return requested
    before: int | None = None if saved is None else saved.get("accumulate")
    if saved is None or before is None:
        return find() if on_gpu else 1
    processes: int = saved.get("processes", dist.size)  # version 0.2 did not store it
    if not on_gpu or processes <= dist.size:
        return before
    steps = find()
    context.run.log(
        f"resumed with processes={dist.size} instead of {processes}: accumulation_steps={steps} instead of {before}, "
        "found anew for the larger batch of each"
    )
    return steps
