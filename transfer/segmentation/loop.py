"""UPerNet, or a linear head, on MMSegmentation: the model, its training and prediction through mmengine's Runner.

In: a recipe, a checkpoint, the splits of a data set. Out: a confusion matrix an image of the validation
split, and the first few predictions for the eye. Follows UPerNet (arXiv 1807.10221) as MMSegmentation
sets it up for MAE and Swin; the configs of that framework are born here and do not leave.

Legend: B batch, (H, W) image, K classes.
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

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmseg import __version__ as MMSEG_VERSION
from mmseg.models import EncoderDecoder, SegDataPreProcessor, SegTTAModel
from PIL import Image
from torch import nn

from simmim_bench.checkpoints.checkpoint import Checkpoint, read_training_state, write_checkpoint
from simmim_bench.data.datasets import seed_everything
from simmim_bench.display import Task
from simmim_bench.errors import DivergedError
from simmim_bench.files import replacing
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.distributed import Team
from simmim_bench.training.loop import METRICS_EVERY, StopRequest, raise_if_stopped, stop_on_signals
from simmim_bench.training.optim import parameter_groups
from simmim_bench.training.precision import autocast
from transfer.detection.recipes import Ade20kRecipe
from transfer.mmseg_backbone import SimMIMBackbone, pyramid_rescales
from transfer.segmentation.ade20k_layout import SegmentationSplit
from transfer.segmentation.data import ADE20K_CLASSES, IGNORED, build_loaders

__all__ = ["ADE20K_CLASSES", "MMSEG_VERSION", "train_and_predict"]

SAVE_EVERY = 1000  # iterations between checkpoints
SHOWN = 8  # predictions kept for the pictures


def build_segmentor(
    checkpoint: Checkpoint, recipe: Ade20kRecipe, classes: int, seed: int, *, synced: bool = False
) -> EncoderDecoder:
    """Build the recipe's model on a checkpoint's backbone; heads are drawn from the seed.

    Args:
        synced: normalise over the batches of all processes, as the published configs do; on GPUs only.
    """
    norm = {"type": "SyncBN" if synced else "BN", "requires_grad": True}
    spec = checkpoint.spec
    levels = spec.feature_levels
    head = {
        "num_classes": classes,
        "dropout_ratio": 0.1,
        "norm_cfg": norm,
        "align_corners": False,
    }
    height, width = recipe.img_size
    sliding = {"crop_size": (height, width), "stride": (height * 2 // 3, width * 2 // 3)}
    config = {
        "data_preprocessor": {
            "type": SegDataPreProcessor,
            "mean": [255 * value for value in checkpoint.mean],
            "std": [255 * value for value in checkpoint.std],
            "bgr_to_rgb": True,
            "pad_val": 0,
            "seg_pad_val": IGNORED,
            "size": recipe.img_size,
        },
        "backbone": {
            "type": SimMIMBackbone,
            "ckpt": checkpoint,
            "img_size": recipe.img_size,
            "window_size": recipe.window_size,
            "drop_path_rate": recipe.drop_path_rate,
            "seed": seed,
        },
        "neck": {
            "type": "Feature2Pyramid",
            "embed_dim": spec.embed_dim,
            "rescales": list(pyramid_rescales(spec)),
            "norm_cfg": norm,
        }
        if spec.family == "vit" and recipe.head == "upernet"
        else None,
        "decode_head": {
            **head,
            "in_channels": [level.channels for level in levels],
            "in_index": list(range(len(levels))),
            "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
            **(
                {
                    "type": "UPerHead",
                    "pool_scales": (1, 2, 3, 6),
                    "channels": recipe.head_channels,
                }
                if recipe.head == "upernet"
                else {
                    "type": "FCNHead",
                    "input_transform": "resize_concat",
                    "num_convs": 0,
                    "concat_input": False,
                    "channels": sum(level.channels for level in levels),
                    "dropout_ratio": 0.0,
                }
            ),
        },
        "auxiliary_head": {
            "type": "FCNHead",
            "in_channels": levels[2].channels,
            "in_index": 2,
            "channels": recipe.head_channels // 2,
            "num_convs": 1,
            "concat_input": False,
            "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": recipe.auxiliary_weight},
            **head,
        }
        if recipe.auxiliary_weight
        else None,
        "train_cfg": {},
        # Attributes of this one are asked for, which a dict does not have.
        "test_cfg": ConfigDict(
            mode=recipe.test_mode, **(sliding if recipe.test_mode == "slide" else {})
        ),
    }
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # The published configs average the loss over ignored pixels too, of which each loss warns.
        warnings.filterwarnings("ignore", message="Default ``avg_non_ignore``")
        torch.manual_seed(seed)
        model = EncoderDecoder(**config)
    if recipe.head == "linear":
        model.backbone.requires_grad_(False)
    if synced:
        nn.SyncBatchNorm.convert_sync_batchnorm(model.backbone)
    return model


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


class OurHook(Hook):
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
        team: Team,
    ) -> None:
        self.run, self.recipe, self.checkpoint, self.seed = run, recipe, checkpoint, seed
        self.saved, self.stop, self.team = saved, stop, team
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
        seed_everything(self.seed, iteration, self.team.rank)

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
            team=self.team,
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
            self.team.size == 1
        ):  # several have unequal numbers of images, and ask each other at the end
            self.stop_predicting()

    def stop_predicting(self) -> None:
        """End the run where a signal asked for it; the trained weights are saved."""
        what = f"ade20k, {self.recipe.max_iters} iterations done and saved, predicting"
        raise_if_stopped(self.stop, what, 0, 1, run=self.run, team=self.team, save=None)

    def save(self, runner: Runner, done: int) -> None:
        """Write the fine-tuned backbone as a checkpoint, and beside it what resuming needs."""
        if not self.team.is_main:
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


class ConfusionMetric(BaseMetric):
    """Keep a confusion matrix (K, K) an image, rows the truth, and the first predictions (H, W)."""

    default_prefix = "ade20k"

    def __init__(self, images: Path, label_maps: Path | None = None) -> None:
        super().__init__()
        self.images, self.label_maps = images, label_maps
        self.confusions: list[np.ndarray] = []
        self.shown: list[np.ndarray] = []

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count a batch; the Runner calls it in the order of the images."""
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            truth = sample["gt_sem_seg"]["data"].squeeze(0).cpu().numpy()
            predicted = sample["pred_sem_seg"]["data"].squeeze(0).cpu().numpy()
            self.confusions.append(confusion_matrix(truth, predicted, classes))
            if len(self.shown) < SHOWN:
                self.shown.append(predicted)
            if self.label_maps is not None:
                # Below the split's folder, where two may have the same name.
                image = Path(sample["img_path"]).relative_to(self.images)
                write_label_map(self.label_maps / image.with_suffix(".png"), predicted)
            self.results.append(len(self.confusions))  # mmengine warns of a metric without results

    def evaluate(self, size: int) -> dict[str, float]:
        """Give nothing: the score is computed from the stored matrices."""
        self.results.clear()
        return {}

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Give nothing, as `evaluate` does."""
        return {}

    def gather(self, team: Team, images: int) -> None:
        """Put all processes' matrices and pictures together on the main one, in the images' order."""
        shares = team.gather((self.confusions, self.shown))
        if team.is_main:
            confusions, shown = zip(*shares, strict=True)
            self.confusions = in_order(confusions, images)
            self.shown = in_order(shown, min(images, SHOWN))


def in_order(shares: Sequence[Sequence[np.ndarray]], count: int) -> list[np.ndarray]:
    """Give the first of all processes' results, of which process r of n has number r, r + n, ..."""
    return [shares[i % len(shares)][i // len(shares)] for i in range(count)]


def write_label_map(path: Path, predicted: np.ndarray) -> None:
    """Write a map (H, W) of classes in the data's own labels, the first class being 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray((predicted + 1).astype(np.uint8)).save(temporary, format="PNG")


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by (true, predicted) class of two maps (H, W); ignored pixels are left out."""
    kept = truth != IGNORED
    pairs = truth[kept].astype(np.int64) * classes + predicted[kept]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def shared(model: EncoderDecoder, team: Team) -> nn.Module:
    """Let all processes train one model, by mmengine's wrapper, whose training step is its own."""
    model = model.to(team.device)
    if team.size == 1:
        return model
    devices = [team.device.index] if team.device.type == "cuda" else None
    return MMDistributedDataParallel(module=model, device_ids=devices, broadcast_buffers=False)


def unwrapped(model: nn.Module) -> Any:
    """Give the model itself."""
    return model.module if is_model_wrapper(model) else model


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
    team: Team,
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
    synced = team.size > 1 and team.device.type == "cuda"
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
        recipe, training, validation, names, seed=seed, first_iteration=first, team=team
    )
    if checkpoint.state is not None:
        run.log(str(backbone.load_report))
    run.log(
        f"{recipe.head} on {checkpoint.spec.arch}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M "
        f"parameters, {len(training)} images of {len(names)} classes, {recipe.max_iters} iterations, "
        f"batch {recipe.batch_size}, learning rate {recipe.base_lr:.3g}"
    )
    if team.is_main:
        for killed in run.path.glob(".mmengine-*"):  # what a killed run could not clean up
            shutil.rmtree(killed, ignore_errors=True)
    team.wait()
    with (
        tempfile.TemporaryDirectory(dir=run.path, prefix=".mmengine-") as work_dir,
        stop_on_signals() as stop,
    ):
        metric = ConfusionMetric(validation.folder, label_maps)
        hook = OurHook(
            run=run,
            recipe=recipe,
            checkpoint=checkpoint,
            seed=seed,
            saved=saved,
            stop=stop,
            team=team,
        )
        runner = QuietRunner(
            model=shared(model, team),
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
            team.same_buffers(runner.model)
            if recipe.views > 1:
                warnings.filterwarnings("ignore", message="The shape of value will convert")
                runner.model = SegTTAModel(module=unwrapped(runner.model))
            with run.display.task("ade20k: predict", len(val_loader)) as hook.task:
                runner.test()
            if team.size > 1:
                hook.stop_predicting()
            metric.gather(team, len(validation))
        finally:
            # mmengine writes to whatever file its last logger has, also for models of others later on.
            for handler in list(runner.logger.handlers):
                if isinstance(handler, logging.FileHandler):
                    runner.logger.removeHandler(handler)
                    handler.close()
    return metric
