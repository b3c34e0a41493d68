"""What mmengine's Runner calls between iterations: schedule, metrics, checkpoints, stopping."""

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
from simmim_bench.display import Task
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DivergedError
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.precision import autocast
from simmim_bench.training.stopping import (
    METRICS_EVERY,
    StopRequest,
    raise_if_stopped,
)
from transfer.segmentation.model import unwrapped
from transfer.segmentation.recipes import Ade20kRecipe

SAVE_EVERY = 1000  # iterations between checkpoints


def lr_factor(iteration: int, warmup_iters: int, max_iters: int) -> float:
    """Give the learning rate of an iteration, counted from 0, over the base rate.

    It rises from 1e-6 of the base rate, then falls by a polynomial of power 1, as mmengine's LinearLR
    and PolyLR do in the published configs.
    """
    if iteration < warmup_iters:
        return 1e-6 + (1 - 1e-6) * iteration / max(1, warmup_iters - 1)
    return 1 - (iteration - warmup_iters) / max(1, max_iters - warmup_iters - 1)


class AutocastOptimWrapper(OptimWrapper):
    """An optimizer whose forward pass computes in the recipe's precision.

    mmengine's AmpOptimWrapper scales gradients, which bfloat16 has no need of, and refuses a CPU.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Ade20kRecipe) -> None:
        # With no limit the norm is still measured.
        super().__init__(optimizer, clip_grad={"max_norm": recipe.clip_grad or math.inf})
        self.precision = recipe.precision

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Wrap the forward pass."""
        device = next(model.parameters()).device
        with super().optim_context(model), autocast(device, self.precision):
            yield


class RunHook(Hook):
    """Our side of the loops: learning rate, seeds, metrics, progress, checkpoints, stopping."""

    task: Task

    def __init__(
        self,
        *,
        run: RunDir,
        recipe: Ade20kRecipe,
        checkpoint: Checkpoint,
        seed: int,
        saved: dict[str, Any] | None,
        stop: StopRequest,
        dist: DistContext,
    ) -> None:
        self.run, self.recipe, self.checkpoint, self.seed = run, recipe, checkpoint, seed
        self.saved, self.stop, self.dist = saved, stop, dist
        self.first = 0 if saved is None else saved["iterations"]

    def before_train(self, runner: Runner) -> None:
        """Put saved weights in, after the Runner has initialised the heads."""
        if self.saved is not None:
            unwrapped(runner.model).load_state_dict(self.saved["model"])
            runner.optim_wrapper.optimizer.load_state_dict(self.saved["optimizer"])

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the learning rate, and the seed of dropout and stochastic depth."""
        iteration = self.first + batch_idx
        factor = lr_factor(iteration, self.recipe.warmup_iters, self.recipe.max_iters)
        for group in runner.optim_wrapper.optimizer.param_groups:
            group["lr"] = self.recipe.base_lr * factor * group["lr_scale"]
        # From (seed, iteration) alone, so that a resumed run draws what it would have drawn.
        seed_everything(self.seed, iteration, self.dist.rank)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Judge the loss, report, save, and stop where that is asked for."""
        assert outputs is not None
        done = self.first + batch_idx + 1
        loss = outputs["loss"].item()
        # The Runner's own hub is another: the wrapper was made before the Runner.
        hub = runner.optim_wrapper.message_hub
        grad_norm = float(hub.get_scalar("train/grad_norm").current())
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise DivergedError(
                f"ade20k: loss {loss}, gradient norm {grad_norm} at iteration {done}; lower base_lr "
                f"({self.recipe.base_lr:g}) with -o base_lr=..."
            )
        self.task.advance(1, loss=loss)
        last = done == self.recipe.max_iters
        if done % METRICS_EVERY == 0 or last:
            self.run.metrics(
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
            run=self.run,
            dist=self.dist,
            save=None if saved else lambda: self.save(runner, done),
        )

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Report, and stop where that is asked for."""
        self.task.advance(1)
        if (
            self.dist.size == 1
        ):  # several have unequal numbers of images, and ask each other at the end
            self.stop_predicting()

    def stop_predicting(self) -> None:
        """End the run where a signal asked for it; the trained weights are saved."""
        what = f"ade20k, {self.recipe.max_iters} iterations done and saved, predicting"
        raise_if_stopped(self.stop, what, 0, 1, run=self.run, dist=self.dist, save=None)

    def save(self, runner: Runner, done: int) -> None:
        """Write the fine-tuned backbone as a checkpoint, and beside it what resuming needs."""
        if not self.dist.is_main:
            return
        model = unwrapped(runner.model)
        backbone = model.backbone.backbone
        origin = self.checkpoint.provenance
        write_checkpoint(
            self.run.last_checkpoint,
            state=backbone.state_dict(),
            spec=backbone.spec,
            form="transfer",
            mean=self.checkpoint.mean,
            std=self.checkpoint.std,
            provenance={
                "label": f"{self.checkpoint.label}, {self.recipe.name}",
                "method": origin.get("method"),
                "recipe": {"name": self.recipe.name, "sha256": self.recipe.sha256()},
                "seed": self.seed,
                "iterations": done,
                "init_from": {"sha256": self.checkpoint.sha256, "provenance": origin},
            },
            training={
                "model": model.state_dict(),
                "optimizer": runner.optim_wrapper.optimizer.state_dict(),
                "iterations": done,
            },
        )
