"""Train a detector with Detectron2's training loop, accumulating gradients, with one hook for the run.

Imports Detectron2 at the top: import this module after `framework.require_detectron2` has passed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine.train_loop import HookBase, SimpleTrainer
from torch import Tensor, nn

from simmim_bench.data.loader import seed_everything
from simmim_bench.display import ProgressTask
from simmim_bench.distributed import no_sync
from simmim_bench.errors import UsageError
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import METRICS_EVERY
from simmim_bench.training.optim import Schedule, step_unless
from simmim_bench.training.stopping import StopRequest, raise_if_stopped, stop_on_signals
from transfer.detection.data import ErrorUnwrappingLoader
from transfer.detection.recipes import CocoRecipe
from transfer.divergence import Images, StepChecks

SAVE_EVERY = 1000  # iterations; some minutes on a GPU
Batch = list[dict[str, Any]]
Save = Callable[[int, dict[str, float]], None]  # of iterations done and the last losses


def train_detector(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    schedule: Schedule,
    loader: ErrorUnwrappingLoader,
    *,
    recipe: CocoRecipe,
    context: RunContext,
    first_iter: int,
    save: Save,
    accumulation_steps: int = 1,
) -> None:
    """Train with Detectron2's loop from an iteration to the recipe's last.

    Args:
        model: as returned by `DistContext.wrap_model`.
        scaler: scales the gradients in float16; disabled otherwise.
        first_iter: iterations that are already done.
        save: called with the number of iterations done and the last losses.
        accumulation_steps: gradient-accumulation steps of each process per iteration.

    Raises:
        DivergedError: a loss, a gradient or a predicted box is not finite; the weights are those before the step,
            and the images of the first such step are written.
        InterruptedRun: SIGINT, SIGTERM or SIGUSR1 arrived; all iterations done are saved.
        UsageError: the GPU's memory is too small.
    """
    trainer = AccumulatingTrainer(
        model,
        loader,
        optimizer,
        scaler,
        accumulation_steps,
        max_norm=recipe.clip_grad or math.inf,
        context=context,
    )
    with (
        stop_on_signals(context.dist) as stop,
        context.display.task("coco", recipe.max_iters) as task,
    ):
        task.advance(first_iter)
        hook = DetectorHook(
            recipe=recipe, schedule=schedule, context=context, task=task, stop=stop, save=save
        )
        trainer.register_hooks([hook])
        try:
            trainer.train(first_iter, recipe.max_iters)
        except FloatingPointError:  # of Detectron2, on this process alone
            trainer.checks.raise_diverged(trainer.iter, "a proposed box is not finite")
        except torch.OutOfMemoryError as error:
            doubled = 2 * accumulation_steps
            more = f"--accumulate {doubled} or " if doubled <= recipe.batch_size else ""
            raise UsageError(
                f"coco: out of GPU memory at iteration {trainer.iter + 1}; continue with --resume "
                f"{more}--grad-checkpointing."
            ) from error


class AccumulatingTrainer(SimpleTrainer):
    """Detectron2's trainer with accumulated, scaled and clipped gradients; a step that is not finite changes nothing.

    Args:
        scaler: scales the gradients in float16; disabled otherwise.
        accumulation_steps: of each process per iteration.
        max_norm: largest norm of the gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: ErrorUnwrappingLoader,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        accumulation_steps: int,
        *,
        max_norm: float,
        context: RunContext,
    ) -> None:
        super().__init__(model, loader, optimizer)
        self.scaler, self.accumulation_steps, self.max_norm = scaler, accumulation_steps, max_norm
        self.on_gpu, self.checks = context.dist.device.type == "cuda", StepChecks("coco", context)
        self.grad_norm = torch.zeros(())

    def reads_metrics(self) -> bool:
        """Return whether this iteration's losses are read: on a GPU that waits for the queued kernels."""
        done = self.iter + 1
        return not self.on_gpu or done % METRICS_EVERY == 0 or done == self.max_iter

    def run_step(self) -> None:
        """Accumulate the gradients of a batch, and step the optimizer if they are finite."""
        start = time.perf_counter()
        batch: Batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.checks.keep(self.iter, images_of(batch))
        self.optimizer.zero_grad()
        losses = self._accumulate(batch)
        self._step(torch.stack(list(losses.values())).sum())
        if self.reads_metrics():
            self.checks.raise_if_diverged()
            self.write_metrics(losses, data_time, self.iter)

    def _accumulate(self, batch: Batch) -> dict[str, Tensor]:
        """Run the forward and backward passes of a batch; return its mean losses."""
        size = -(-len(batch) // self.accumulation_steps)
        micro_batches = [batch[i : i + size] for i in range(0, len(batch), size)]
        losses: dict[str, Tensor] = {}
        for index, images in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else no_sync(self.model):
                found = self.model(images)
                weight = len(images) / len(batch)
                self.scaler.scale(sum(found.values()) * weight).backward()
            for name, value in found.items():
                losses[name] = losses.get(name, 0) + value.detach() * weight
        return losses

    def _step(self, loss: Tensor) -> None:
        """Unscale and clip the gradients, and step the optimizer; the host does not wait for the device."""
        scale = self.scaler.scale(torch.ones((), device=loss.device))
        self.scaler.unscale_(self.optimizer)
        self.grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        skip = self.checks.finite.skip(self.iter, [], loss, self.grad_norm, scale)
        step_unless(skip, self.optimizer)
        self.scaler.update()


def images_of(batch: Batch) -> Images:
    """Return the images and file names of a batch."""
    return [{"file_name": x.get("file_name"), "image": x["image"]} for x in batch]


class DetectorHook(HookBase):
    """Everything around the trainer's step: seed, learning rate, metrics, saving, stopping."""

    def __init__(
        self,
        *,
        recipe: CocoRecipe,
        schedule: Schedule,
        context: RunContext,
        task: ProgressTask,
        stop: StopRequest,
        save: Save,
    ) -> None:
        self.recipe, self.schedule, self.context = recipe, schedule, context
        self.task, self.stop, self.save = task, stop, save
        self.lr = 0.0
        self.losses: dict[str, float] = {}
        self.started = time.monotonic()

    def before_step(self) -> None:
        """Seed the sampling of anchors and regions by the iteration, so that a resumed run repeats it."""
        seed_everything(self.context.seed, self.trainer.iter, self.context.dist.rank)
        self.lr = self.schedule.apply(self.trainer.optimizer, self.trainer.iter)

    def after_step(self) -> None:
        """Write metrics, save, and end the loop if a signal asked for it."""
        done, last = self.trainer.iter + 1, self.recipe.max_iters
        self._read_losses()
        self.task.advance(1, **{k: v for k, v in self.losses.items() if k == "loss"})
        if done % METRICS_EVERY == 0 or done == last:
            self._write_metrics(done)
        saved = done % SAVE_EVERY == 0 or done == last
        if saved:
            self._save(done)
        raise_if_stopped(
            self.stop,
            "coco",
            done,
            last,
            run=self.context.run,
            dist=self.context.dist,
            save=None if saved else lambda: self._save(done),
        )

    def _read_losses(self) -> None:
        self.losses = {
            name.replace("total_loss", "loss"): float(value)
            for name, (value, _) in self.trainer.storage.latest().items()
            if name.startswith("loss_") or name == "total_loss"
        } or self.losses

    def _write_metrics(self, done: int) -> None:
        images = (done - self.trainer.start_iter) * self.recipe.batch_size
        self.context.run.metrics(
            done,
            lr=self.lr,
            grad_norm=float(self.trainer.grad_norm),
            images_per_s=round(images / (time.monotonic() - self.started), 1),
            **self.losses,
        )

    def _save(self, done: int) -> None:
        """Save, unless a step since the last check was not finite."""
        self.trainer.checks.raise_if_diverged()
        self.save(done, self.losses)
