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

    def resume(self, context: RunContext, saved: Checkpoint) -> None:
        """Continue from a run's last checkpoint, and drop the metrics of later steps.

        Args:
            saved: what `context.last_checkpoint()` returned.

        Raises:
            DataError: the checkpoint has no `training.pt`, or it is damaged.
        """
        assert saved.state is not None
        training = read_training_state(context.run.last_checkpoint)
        self.load_state_dict(saved.state, training)
        context.run.rewind(self.step)


def choose_accumulation_steps(
    requested: int | None, context: RunContext, saved: Checkpoint | None, find: Callable[[], int]
) -> int:
    """Return the number of accumulation steps of each process.

    Args:
        requested: by an option; it takes precedence.
        saved: the checkpoint that the run continues from, which keeps its number.
        find: finds the smallest number that fits in a GPU's memory. On a CPU, where nothing is tried, it is 1.
    """
    if requested is not None:
        return requested
    if saved is not None:
        # Every forward pass samples its dropped paths anew, so another number would be another training.
        before: int | None = read_training_state(context.run.last_checkpoint).get("accumulate")
        if before is not None:
            return before
    return find() if context.dist.device.type == "cuda" else 1
