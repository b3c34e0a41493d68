"""Train a segmentor and predict the validation split through mmengine's Runner.

Imports MMSegmentation at the top: import this module after `run.require_mmseg` has passed.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import Evaluator
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner
from mmseg.models import EncoderDecoder, SegTTAModel
from torch import nn
from torch.utils.data import DataLoader

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_training_state
from simmim_bench.distributed import DistContext
from simmim_bench.errors import UsageError
from simmim_bench.runs.context import RunContext
from simmim_bench.training.precision import Precision, agree_on_precision, default_precision
from simmim_bench.training.stopping import stop_on_signals
from transfer.segmentation.ade20k_layout import SegmentationData, SegmentationSplit
from transfer.segmentation.data import build_loaders, build_val_loader
from transfer.segmentation.hooks import AutocastOptimWrapper, SegmentorHook
from transfer.segmentation.metric import ConfusionMetric
from transfer.segmentation.model import build_segmentor, unwrap
from transfer.segmentation.optim import segmentor_groups
from transfer.segmentation.recipes import Ade20kRecipe

WORK_DIR_PREFIX = ".mmengine-"  # of mmengine's files within the run directory
DEFAULT_HOOKS = ("timer", "logger", "param_scheduler", "checkpoint", "sampler_seed")


def train_and_predict(
    context: RunContext,
    checkpoint: Checkpoint,
    recipe: Ade20kRecipe,
    data: SegmentationData,
    label_maps: Path | None = None,
) -> ConfusionMetric:
    """Train, or continue training, then predict the validation split.

    Args:
        label_maps: folder to write every predicted map into, as PNGs with the data's labels; None to write
            none.

    Returns:
        The metric with its matrices and first predictions, of all images on rank 0; its `dataset_meta` has
        the palette.

    Raises:
        DivergedError: the loss or gradient is not finite; the weights are those before the step, and its images are
            written.
        InterruptedRun: SIGINT, SIGTERM or SIGUSR1 arrived; the iteration is saved.
        UsageError: the GPU's memory is too small.
        DataError: a file cannot be used, or a checkpoint cannot be resumed.
    """
    dist, names = context.dist, data.class_names
    saved = _read_saved(context)
    synced = dist.size > 1 and dist.device.type == "cuda"
    model = build_segmentor(checkpoint, recipe, len(names), context.seed, synced=synced)
    wrapper = AutocastOptimWrapper(
        _build_optimizer(model, recipe),
        max_norm=recipe.clip_grad or math.inf,
        precision=_decide_precision(recipe, saved, dist),
        context=context,
    )
    loaders = build_loaders(
        recipe,
        data.training,
        data.validation,
        names,
        seed=context.seed,
        first_iteration=0 if saved is None else saved["iterations"],
        dist=dist,
        pixel_format=checkpoint.pixel_format,
    )
    _log_start(context, checkpoint, recipe, data, model)
    with _work_dir(context) as work_dir, stop_on_signals(dist) as stop:
        metric = ConfusionMetric(data.validation.folder, label_maps)
        hook = SegmentorHook(
            context=context, recipe=recipe, checkpoint=checkpoint, saved=saved, stop=stop
        )
        train_loader, val_loader = loaders
        runner = _build_runner(
            wrap_model(model, dist),
            val_loader,
            metric,
            hook,
            work_dir=work_dir,
            train_dataloader=train_loader,
            train_cfg={
                "type": "IterBasedTrainLoop",
                "max_iters": recipe.max_iters - hook.first_iter,
            },
            optim_wrapper=wrapper,
        )
        try:
            _train(runner, hook)
            dist.broadcast_buffers(runner.model)
            _predict(runner, hook)
            metric.gather(dist, len(data.validation))
        finally:
            _close_log_files(runner)
    return metric


def predict_validation(
    context: RunContext,
    model: EncoderDecoder,
    checkpoint: Checkpoint,
    recipe: Ade20kRecipe,
    validation: SegmentationSplit,
    names: Sequence[str],
) -> ConfusionMetric:
    """Predict a validation split with a trained model.

    Args:
        checkpoint: of the model's backbone.
        names: class names; class i is label i + 1 of the label maps.

    Returns:
        The metric with its matrices and first predictions, of all images on rank 0.

    Raises:
        InterruptedRun: SIGINT, SIGTERM or SIGUSR1 arrived.
        DataError: a file cannot be used.
    """
    dist = context.dist
    loader = build_val_loader(recipe, validation, names, dist, checkpoint.pixel_format)
    with _work_dir(context) as work_dir, stop_on_signals(dist) as stop:
        metric = ConfusionMetric(validation.folder)
        hook = SegmentorHook(
            context=context, recipe=recipe, checkpoint=checkpoint, saved=None, stop=stop
        )
        runner = _build_runner(model.to(dist.device), loader, metric, hook, work_dir=work_dir)
        try:
            _predict(runner, hook)
            metric.gather(dist, len(validation))
        finally:
            _close_log_files(runner)
    return metric


def _read_saved(context: RunContext) -> dict[str, Any] | None:
    """Read the training state of an earlier start of this run; None for a new run."""
    run = context.run
    if not context.has_checkpoint():
        return None
    saved = read_training_state(run.last_checkpoint)
    run.log(f"ade20k: resumed iteration={saved['iterations']:,}")
    run.rewind(saved["iterations"] + 1)
    return saved


def _decide_precision(
    recipe: Ade20kRecipe, saved: dict[str, Any] | None, dist: DistContext
) -> Precision:
    """Return the precision of all processes, which a resumed run keeps."""
    decided = default_precision(recipe.precision, dist.device, allow_fp16=True)
    agreed = agree_on_precision(decided, dist)
    return agreed if saved is None else saved.get("precision", agreed)


def _build_optimizer(model: EncoderDecoder, recipe: Ade20kRecipe) -> torch.optim.AdamW:
    groups = segmentor_groups(model, model.backbone.backbone, recipe)
    return torch.optim.AdamW(groups, fused=True)


def _log_start(
    context: RunContext,
    checkpoint: Checkpoint,
    recipe: Ade20kRecipe,
    data: SegmentationData,
    model: EncoderDecoder,
) -> None:
    log = context.run.log
    if checkpoint.state is not None:
        log(f"ade20k: {model.backbone.backbone.load_report}")
    log(
        f"ade20k: training head={recipe.head} arch={checkpoint.spec.arch} "
        f"parameters={sum(p.numel() for p in model.parameters()) / 1e6:.1f}M images={len(data.training):,} "
        f"classes={len(data.class_names)} iterations={recipe.max_iters:,} batch_size={recipe.batch_size} "
        f"base_lr={recipe.base_lr:.3g}"
    )


@contextmanager
def _work_dir(context: RunContext) -> Iterator[Path]:
    """Create a temporary folder for mmengine's files; remove those of killed processes."""
    run, dist = context.run, context.dist
    if dist.is_main:
        for leftover in run.path.glob(f"{WORK_DIR_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
    dist.barrier()
    with tempfile.TemporaryDirectory(
        dir=run.path, prefix=WORK_DIR_PREFIX, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)  # once more, if removing a file failed


class QuietRunner(Runner):
    """A Runner that does not log the environment: doing so calls a compiler and needs distutils."""

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        pass


def wrap_model(model: EncoderDecoder, dist: DistContext) -> nn.Module:
    """Wrap a model for the training by all processes, with mmengine's wrapper, which has its own train step."""
    model = model.to(dist.device)
    if dist.size == 1:
        return model
    devices = [dist.device.index] if dist.device.type == "cuda" else None
    return MMDistributedDataParallel(
        module=model,
        device_ids=devices,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,  # as `DistContext.wrap_model`
    )


def _build_runner(
    model: nn.Module,
    val_loader: DataLoader[Any],
    metric: ConfusionMetric,
    hook: SegmentorHook,
    *,
    work_dir: Path,
    **training: Any,
) -> QuietRunner:
    """Build a Runner without default hooks.

    Args:
        work_dir: folder for mmengine's files.
        training: the Runner's arguments for training; none to predict only.
    """
    return QuietRunner(
        model=model,
        work_dir=str(work_dir),
        **training,
        test_dataloader=val_loader,
        test_cfg={},
        test_evaluator=Evaluator(metric),
        default_hooks=dict.fromkeys(DEFAULT_HOOKS),  # None switches a hook off
        custom_hooks=[hook],
        randomness={"seed": hook.context.seed},
        log_level="ERROR",
        default_scope="mmseg",
        # By default the time in seconds; runs of the same second would share their loggers.
        experiment_name=work_dir.name,
    )


def _train(runner: Runner, hook: SegmentorHook) -> None:
    remaining = hook.recipe.max_iters - hook.first_iter
    if remaining <= 0:
        hook.before_train(runner)  # loads the saved weights
        return
    with hook.context.display.task("ade20k", remaining) as hook.task:
        try:
            runner.train()
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"ade20k: out of GPU memory at iteration {hook.first_iter + runner.iter + 1}; continue with --resume "
                "on more GPUs, or start a new run with a smaller -o batch_size=... or -o img_size=..."
            ) from error


def _predict(runner: Runner, hook: SegmentorHook) -> None:
    if hook.recipe.views > 1:
        warnings.filterwarnings("ignore", message="The shape of value will convert")
        runner.model = SegTTAModel(module=unwrap(runner.model))
    images = len(runner.test_dataloader)
    with hook.context.display.task("ade20k: predict", images) as hook.task:
        runner.test()
    if hook.context.dist.size > 1:
        hook.stop_predicting()


def _close_log_files(runner: Runner) -> None:
    """Close the log files of a Runner: mmengine writes to those of the last logger, also for later models."""
    for handler in list(runner.logger.handlers):
        if isinstance(handler, logging.FileHandler):
            runner.logger.removeHandler(handler)
            handler.close()
