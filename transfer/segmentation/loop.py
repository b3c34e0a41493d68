"""UPerNet, or a linear head, on MMSegmentation: the model, its training and prediction through mmengine's Runner.

In: a recipe, a checkpoint, the splits of a data set. Out: a confusion matrix an image of the validation
split, and the first few predictions for the eye. Follows UPerNet (arXiv 1807.10221) as MMSegmentation
sets it up for MAE and Swin; the configs of that framework are born here and do not leave.

Legend: B batch, (H, W) image, K classes.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import Evaluator
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner
from mmseg import __version__ as MMSEG_VERSION
from mmseg.models import EncoderDecoder, SegTTAModel
from torch import nn

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_training_state
from simmim_bench.distributed import DistContext
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.optim import parameter_groups
from simmim_bench.training.stopping import (
    stop_on_signals,
)
from transfer.segmentation.ade20k_layout import SegmentationSplit
from transfer.segmentation.data import ADE20K_CLASSES, build_loaders
from transfer.segmentation.hooks import AutocastOptimWrapper, RunHook
from transfer.segmentation.metric import ConfusionMetric
from transfer.segmentation.model import build_segmentor, unwrapped
from transfer.segmentation.recipes import Ade20kRecipe

__all__ = ["ADE20K_CLASSES", "MMSEG_VERSION", "train_and_predict"]


def shared(model: EncoderDecoder, dist: DistContext) -> nn.Module:
    """Let all processes train one model, by mmengine's wrapper, whose training step is its own."""
    model = model.to(dist.device)
    if dist.size == 1:
        return model
    devices = [dist.device.index] if dist.device.type == "cuda" else None
    return MMDistributedDataParallel(module=model, device_ids=devices, broadcast_buffers=False)


class QuietRunner(Runner):
    """A Runner that does not look at the machine: that calls a compiler and needs distutils."""

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        pass


def train_and_predict(
    *,
    checkpoint: Checkpoint,
    recipe: Ade20kRecipe,
    training: SegmentationSplit,
    validation: SegmentationSplit,
    names: Sequence[str],
    run: RunDir,
    seed: int,
    resume: bool,
    dist: DistContext,
    label_maps: Path | None = None,
) -> ConfusionMetric:
    """Train, or go on training, then predict the validation split.

    Args:
        label_maps: folder to write every predicted map into, a PNG an image in the data's own labels.

    Returns:
        The metric with its matrices and first predictions, all images' on the main process; its
        `dataset_meta` has the palette.

    Raises:
        DivergedError: the loss is not finite.
        InterruptedRun: SIGINT or SIGTERM came; the iteration was saved.
        DataError: a file that cannot be used, or a checkpoint that cannot be resumed.
    """
    saved = None
    if resume and run.last_checkpoint.is_dir():
        saved = read_training_state(run.last_checkpoint)
        run.log(f"resumed after iteration {saved['iterations']}")
        run.rewind(saved["iterations"] + 1)
    first = 0 if saved is None else saved["iterations"]
    synced = dist.size > 1 and dist.device.type == "cuda"
    model = build_segmentor(checkpoint, recipe, len(names), seed, synced=synced)
    backbone = model.backbone.backbone
    optimizer = torch.optim.AdamW(
        parameter_groups(
            model,
            backbone,
            lr=recipe.base_lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
        ),
        fused=True,
    )
    train_loader, val_loader = build_loaders(
        recipe, training, validation, names, seed=seed, first_iteration=first, dist=dist
    )
    if checkpoint.state is not None:
        run.log(str(backbone.load_report))
    run.log(
        f"{recipe.head} on {checkpoint.spec.arch}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M "
        f"parameters, {len(training)} images of {len(names)} classes, {recipe.max_iters} iterations, "
        f"batch {recipe.batch_size}, learning rate {recipe.base_lr:.3g}"
    )
    if dist.is_main:
        for killed in run.path.glob(".mmengine-*"):  # what a killed run could not clean up
            shutil.rmtree(killed, ignore_errors=True)
    dist.barrier()
    with (
        tempfile.TemporaryDirectory(dir=run.path, prefix=".mmengine-") as work_dir,
        stop_on_signals() as stop,
    ):
        metric = ConfusionMetric(validation.folder, label_maps)
        hook = RunHook(
            run=run,
            recipe=recipe,
            checkpoint=checkpoint,
            seed=seed,
            saved=saved,
            stop=stop,
            dist=dist,
        )
        runner = QuietRunner(
            model=shared(model, dist),
            work_dir=work_dir,
            train_dataloader=train_loader,
            train_cfg={"type": "IterBasedTrainLoop", "max_iters": recipe.max_iters - first},
            optim_wrapper=AutocastOptimWrapper(optimizer, recipe),
            test_dataloader=val_loader,
            test_cfg={},
            test_evaluator=Evaluator(metric),
            default_hooks=dict.fromkeys(
                ("timer", "logger", "param_scheduler", "checkpoint", "sampler_seed")
            ),
            custom_hooks=[hook],
            randomness={"seed": seed},
            log_level="ERROR",
            default_scope="mmseg",
            # By default the time in seconds, so that quick runs would share their loggers.
            experiment_name=Path(work_dir).name,
        )
        try:
            if first < recipe.max_iters:
                with run.display.task("ade20k", recipe.max_iters - first) as hook.task:
                    runner.train()
            else:
                hook.before_train(runner)
            dist.broadcast_buffers(runner.model)
            if recipe.views > 1:
                warnings.filterwarnings("ignore", message="The shape of value will convert")
                runner.model = SegTTAModel(module=unwrapped(runner.model))
            with run.display.task("ade20k: predict", len(val_loader)) as hook.task:
                runner.test()
            if dist.size > 1:
                hook.stop_predicting()
            metric.gather(dist, len(validation))
        finally:
            # mmengine writes to whatever file its last logger has, also for models of others later on.
            for handler in list(runner.logger.handlers):
                if isinstance(handler, logging.FileHandler):
                    runner.logger.removeHandler(handler)
                    handler.close()
    return metric
