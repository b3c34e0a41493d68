"""The state of a training run: what its loop changes, and what its checkpoint saves and restores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_training_state
from simmim_bench.data.loader import EpochLoader
from simmim_bench.distributed import DistContext, full_state, load_full_state
from simmim_bench.runs.context import RunContext
from simmim_bench.training.accumulation import LossFunction, find_accumulation_steps
from simmim_bench.training.optim import Schedule


@dataclass(kw_only=True)
class TrainState:
    """The model under training with everything that its loop changes.

    Attributes:
        model: the model itself; a checkpoint uses its parameter names.
        wrapped: the model as `DistContext.wrap_model` returned it, which the loss function calls.
        optimizer: over the parameters of `model`.
        schedule: the learning rate of every step.
        loader: the batches of every epoch.
        precision: "fp32", "bf16", or "auto" as `autocast` takes it.
        step: completed optimizer steps.
        accumulation_steps: backward passes that each process splits its batch into; None until
            `choose_accumulation_steps` finds the smallest number that fits.
        ema: moving average of the weights, which then replaces them in the checkpoint; None for no average.
    """

    model: nn.Module
    parallel_model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    loader: EpochLoader
    precision: str
    step: int = 0
    accumulation_steps: int | None = None
    ema: ModelEmaV3 | None = None

    @property
    def epochs_done(self) -> float:
        """Completed passes over the training images, a fraction within an epoch."""
        return self.step / len(self.loader)

    def optimizer_step(self) -> None:
        """Update the weights and their moving average, and count the step."""
        self.optimizer.step()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, self.step)

    def choose_accumulation_steps(self, compute_loss: LossFunction, dist: DistContext) -> int:
        """Set the number of accumulation steps where neither an option nor a checkpoint has set it.

        Returns:
            The smallest number that fits in a GPU's memory; 1 on a CPU, where nothing is tried.
        """
        if self.accumulation_steps is None:
            on_gpu = dist.device.type == "cuda"
            self.accumulation_steps = (
                find_accumulation_steps(
                    self.parallel_model, self.loader, compute_loss, self.precision, dist
                )
                if on_gpu
                else 1
            )
        return self.accumulation_steps

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
        if self.ema is not None:
            training["weights"] = weights
            weights = self.ema.module.state_dict()
        return weights, training

    def load_state_dict(self, weights: dict[str, Tensor], training: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, with any number of processes.

        An option that has set `accumulation_steps` takes precedence over the checkpoint.
        """
        if self.ema is not None:
            self.ema.module.load_state_dict(weights)
            weights = training["weights"]
        load_full_state(self.model, self.optimizer, weights, training["optimizer"])
        self.step = training["steps_done"]
        self.precision = training.get("precision", self.precision)
        self.accumulation_steps = self.accumulation_steps or training.get("accumulate")

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
