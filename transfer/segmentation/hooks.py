"""Extend mmengine's Runner: learning rate, precision, seeds, metrics, checkpoints, stopping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import Checkpoint, write_checkpoint
from simmim_bench.data.loader import seed_everything
from simmim_bench.display import ProgressTask
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import METRICS_EVERY
from simmim_bench.training.optim import step_unless
from simmim_bench.training.precision import Precision, autocast, gradient_scaler
from simmim_bench.training.stopping import StopRequest, raise_if_stopped
from transfer.divergence import Images, StepChecks
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
    """An optimizer wrapper with autocast, scaled and clipped gradients; a step that is not finite changes nothing.

    As in mmengine's AmpOptimWrapper, which refuses a CPU, the whole forward pass is under autocast: a segmentor has
    no coordinates to round, and autocast computes the cross-entropy in float32.

    Args:
        max_norm: largest norm of the gradient.
        precision: "fp32", "bf16" or "fp16".

    Attributes:
        checks: the steps since the host last waited for the device.
        number: the iteration, counted from 0; set by the hook.
        grad_norm: of the last step, before clipping.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        max_norm: float,
        precision: Precision,
        context: RunContext,
    ) -> None:
        super().__init__(optimizer)
        self.max_norm, self.precision, self.device = max_norm, precision, context.dist.device
        self.scaler, self.checks = (
            gradient_scaler(precision, self.device),
            StepChecks("ade20k", context),
        )
        self.number = 0
        self.loss = self.grad_norm = torch.zeros(())

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass within the block under autocast."""
        with super().optim_context(model), autocast(self.device, self.precision):
            yield

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Compute the gradients of the scaled loss."""
        self.loss = loss.detach()
        super().backward(self.scaler.scale(loss), **options)

    def step(self, **options: Any) -> None:
        """Unscale and clip the gradients, and step the optimizer; the host does not wait for the device."""
        scale = self.scaler.scale(torch.ones((), device=self.loss.device))
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.grad_norm = nn.utils.clip_grad_norm_(trained, self.max_norm)
        skip = self.checks.finite.skip(self.number, [], self.loss, self.grad_norm, scale)
        step_unless(skip, self.optimizer)
        self.scaler.update()


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
            wrapper = runner.optim_wrapper
            wrapper.optimizer.load_state_dict(self.saved["optimizer"])
            if wrapper.scaler.is_enabled() and "scaler" in self.saved:
                wrapper.scaler.load_state_dict(self.saved["scaler"])

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the learning rate, and the seed of dropout and stochastic depth."""
        iteration = self.first_iter + batch_idx
        recipe = self.recipe
        factor = lr_factor(iteration, recipe.warmup_iters, recipe.max_iters, recipe.lr_rule)
        for group in runner.optim_wrapper.optimizer.param_groups:
            group["lr"] = recipe.base_lr * factor * group["lr_scale"]
        runner.optim_wrapper.number = iteration
        runner.optim_wrapper.checks.keep(iteration, images_of(data_batch))
        # From (seed, iteration) alone, so that a resumed run samples the same.
        seed_everything(self.context.seed, iteration, self.context.dist.rank)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Write metrics, save, and stop if a signal asked for it."""
        assert outputs is not None
        done = self.first_iter + batch_idx + 1
        last = done == self.recipe.max_iters
        logged = done % METRICS_EVERY == 0 or last
        if logged or self.context.dist.device.type != "cuda":  # reading a value waits for a GPU
            runner.optim_wrapper.checks.raise_if_diverged()
            self.task.advance(1, loss=outputs["loss"].item())
        else:
            self.task.advance(1)
        if logged:
            wrapper = runner.optim_wrapper
            self.context.run.metrics(
                done,
                loss=outputs["loss"].item(),
                lr=max(group["lr"] for group in wrapper.optimizer.param_groups),
                grad_norm=float(wrapper.grad_norm),
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
        runner.optim_wrapper.checks.raise_if_diverged()
        if self.context.dist.is_main:
            self._write(runner, done)
        self.context.dist.barrier()  # rank 0 may write for longer than the next collective waits

    def _write(self, runner: Runner, done: int) -> None:
        """Write the fine-tuned backbone as a checkpoint, with the training state that resuming needs."""
        model, wrapper = unwrap(runner.model), runner.optim_wrapper
        backbone = model.backbone.backbone
        origin = self.checkpoint.provenance
        write_checkpoint(
            self.context.run.last_checkpoint,
            state=backbone.state_dict(),
            spec=backbone.spec,
            form="transfer",
            mean=self.checkpoint.mean,
            std=self.checkpoint.std,
            value_range=self.checkpoint.value_range,
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
                "optimizer": wrapper.optimizer.state_dict(),
                **({"scaler": wrapper.scaler.state_dict()} if wrapper.scaler.is_enabled() else {}),
                "precision": wrapper.precision,
                "iterations": done,
            },
        )


def images_of(data_batch: Any) -> Images:
    """Return the images and file names of a batch."""
    pairs = zip(data_batch["inputs"], data_batch["data_samples"], strict=True)
    return [
        {"file_name": str(sample.metainfo.get("img_path")), "image": image}
        for image, sample in pairs
    ]
