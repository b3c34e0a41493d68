"""Extend mmengine's Runner: learning rate, precision, seeds, metrics, checkpoints, stopping."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from simmim_bench.checkpoints.checkpoint import Checkpoint, write_checkpoint
from simmim_bench.data.loader import seed_everything
from simmim_bench.display import ProgressTask
from simmim_bench.errors import DivergedError
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import METRICS_EVERY
from simmim_bench.training.precision import autocast
from simmim_bench.training.stopping import StopRequest, raise_if_stopped
from transfer.segmentation.model import unwrap
from transfer.segmentation.recipes import Ade20kRecipe, LrRule

SAVE_EVERY = 1000  # iterations between checkpoints
# Of the warm-up. MMSegmentation: configs/mae, configs/swin (LinearLR); unilm: beit/semantic_segmentation (warmup_ratio)
FIRST_LR_FACTOR = 1e-6


def lr_factor(
    iteration: int, warmup_iters: int, max_iters: int, rule: LrRule = "mmengine"
) -> float:
    """Return the learning rate of an iteration, counted from 0, divided by the base rate.

    The rate rises linearly from 1e-6 of the base rate, then falls by a polynomial of power 1, as with
    mmengine's LinearLR and PolyLR in the published configs. With the rule "mmcv" it falls from iteration 0, and
    the warm-up is a factor on it (MMCV 1.x: mmcv/runner/hooks/lr_updater.py).
    """
    if rule == "mmcv":
        rest = 1 - min(1.0, iteration / max(1, warmup_iters))
        return (1 - iteration / max_iters) * (1 - rest * (1 - FIRST_LR_FACTOR))
    if iteration < warmup_iters:
        return FIRST_LR_FACTOR + (1 - FIRST_LR_FACTOR) * iteration / max(1, warmup_iters - 1)
    return 1 - (iteration - warmup_iters) / max(1, max_iters - warmup_iters - 1)


class AutocastOptimWrapper(OptimWrapper):
    """An optimizer wrapper whose forward pass runs in the recipe's precision.

    mmengine's AmpOptimWrapper scales gradients, which bfloat16 does not need, and refuses a CPU.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Ade20kRecipe) -> None:
        # Without a limit the norm is still measured.
        super().__init__(optimizer, clip_grad={"max_norm": recipe.clip_grad or math.inf})
        self.precision = recipe.precision

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass within the block in the recipe's precision."""
        device = next(model.parameters()).device
        with super().optim_context(model), autocast(device, self.precision):
            yield


class SegmentorHook(Hook):
    """Everything of the run around the Runner's iterations: learning rate, seeds, metrics, saving, stopping.

    Args:
        checkpoint: the checkpoint that is fine-tuned.
        saved: the training state to restore; None for a new run.
    """

    task: ProgressTask  # the progress to advance; set for training and again for prediction

    def __init__(
        self,
        *,
        context: RunContext,
        recipe: Ade20kRecipe,
        checkpoint: Checkpoint,
        saved: dict[str, Any] | None,
        stop: StopRequest,
    ) -> None:
        self.context, self.recipe, self.checkpoint = context, recipe, checkpoint
        self.saved, self.stop = saved, stop
        self.first_iter = 0 if saved is None else saved["iterations"]

    def before_train(self, runner: Runner) -> None:
        """Load the saved weights, after the Runner has initialised the heads."""
        if self.saved is not None:
            unwrap(runner.model).load_state_dict(self.saved["model"])
            runner.optim_wrapper.optimizer.load_state_dict(self.saved["optimizer"])

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the learning rate, and the seed of dropout and stochastic depth."""
        iteration = self.first_iter + batch_idx
        recipe = self.recipe
        factor = lr_factor(iteration, recipe.warmup_iters, recipe.max_iters, recipe.lr_rule)
        for group in runner.optim_wrapper.optimizer.param_groups:
            group["lr"] = recipe.base_lr * factor * group["lr_scale"]
        # From (seed, iteration) alone, so that a resumed run samples the same.
        seed_everything(self.context.seed, iteration, self.context.dist.rank)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Check the loss, write metrics, save, and stop if a signal asked for it."""
        assert outputs is not None
        done = self.first_iter + batch_idx + 1
        loss = outputs["loss"].item()
        # Not the Runner's own message hub: the wrapper was built before the Runner.
        hub = runner.optim_wrapper.message_hub
        grad_norm = float(hub.get_scalar("train/grad_norm").current())
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise DivergedError(
                f"ade20k: loss {loss}, gradient norm {grad_norm} at iteration {done}; lower base_lr "
                f"{self.recipe.base_lr:g} with -o base_lr=..."
            )
        self.task.advance(1, loss=loss)
        last = done == self.recipe.max_iters
        if done % METRICS_EVERY == 0 or last:
            self.context.run.metrics(
                done,
                loss=loss,
                lr=max(group["lr"] for group in runner.optim_wrapper.optimizer.param_groups),
                grad_norm=grad_norm,
                pixel_accuracy=float(outputs["decode.acc_seg"]),
            )
        saved = done % SAVE_EVERY == 0 or last
        if saved:
            self.save(runner, done)
        raise_if_stopped(
            self.stop,
            "ade20k",
            done,
            self.recipe.max_iters,
            run=self.context.run,
            dist=self.context.dist,
            save=None if saved else lambda: self.save(runner, done),
        )

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Advance the progress, and stop if a signal asked for it.

        Several processes have unequal numbers of images; they agree on stopping after the last image.
        """
        self.task.advance(1)
        if self.context.dist.size == 1:
            self.stop_predicting()

    def stop_predicting(self) -> None:
        """End the run if a signal asked for it; the trained weights are saved already."""
        description = f"ade20k, {self.recipe.max_iters} iterations done and saved, predicting"
        raise_if_stopped(
            self.stop, description, 0, 1, run=self.context.run, dist=self.context.dist, save=None
        )

    def save(self, runner: Runner, done: int) -> None:
        """Write the run's checkpoint on rank 0; the others wait until it is written."""
        if self.context.dist.is_main:
            self._write(runner, done)
        self.context.dist.barrier()  # rank 0 may write for longer than the next collective waits

    def _write(self, runner: Runner, done: int) -> None:
        """Write the fine-tuned backbone as a checkpoint, with the training state that resuming needs."""
        model = unwrap(runner.model)
        backbone = model.backbone.backbone
        origin = self.checkpoint.provenance
        write_checkpoint(
            self.context.run.last_checkpoint,
            state=backbone.state_dict(),
            spec=backbone.spec,
            form="transfer",
            mean=self.checkpoint.mean,
            std=self.checkpoint.std,
            provenance={
                "label": f"{self.checkpoint.label}, {self.recipe.name}",
                "method": origin.get("method"),
                "recipe": {"name": self.recipe.name, "sha256": self.recipe.sha256()},
                "seed": self.context.seed,
                "iterations": done,
                "init_from": {"sha256": self.checkpoint.sha256, "provenance": origin},
            },
            training={
                "model": model.state_dict(),
                "optimizer": runner.optim_wrapper.optimizer.state_dict(),
                "iterations": done,
            },
        )
