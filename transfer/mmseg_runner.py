"""UPerNet on MMSegmentation: model, data, training and prediction, all through mmengine's Runner.

In: a recipe, a checkpoint, the splits of a data set. Out: a confusion matrix an image of the validation
split, and the first few predictions for the eye. Follows UPerNet (arXiv 1807.10221) as MMSegmentation
sets it up for MAE and Swin; every config of that framework is born here and does not leave.

Legend: B batch, (H, W) image, K classes.
"""

from __future__ import annotations

import logging
import math
import random
import signal
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmseg.datasets import ADE20KDataset, BaseSegDataset
from mmseg.datasets.transforms import (
    PackSegInputs,
    PhotoMetricDistortion,
    RandomCrop,
    RandomFlip,
    Resize,
)
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from torch import nn
from torch.utils.data import DataLoader, Dataset

from simmim_bench.checkpoint import Checkpoint, read_training_state, write_checkpoint
from simmim_bench.data import read_image
from simmim_bench.display import Task
from simmim_bench.engine import METRICS_EVERY, StopRequest, autocast, stop_on_signals
from simmim_bench.errors import DivergedError, InterruptedRun
from simmim_bench.optim import parameter_groups
from simmim_bench.rundir import RunDir
from transfer.mmseg_backbone import SimMIMBackbone, pyramid_rescales
from transfer.recipes import Ade20kRecipe
from transfer.segmentation_data import SegmentationSplit, read_labels

IGNORED = 255  # MMSegmentation's label of pixels without a class
SAVE_EVERY = 1000  # iterations between checkpoints
SHOWN = 8  # predictions kept for the pictures

ADE20K_CLASSES: tuple[str, ...] = tuple(n.strip() for n in ADE20KDataset.METAINFO["classes"])


def build_segmentor(
    checkpoint: Checkpoint, recipe: Ade20kRecipe, classes: int, seed: int
) -> EncoderDecoder:
    """Build UPerNet on a checkpoint's backbone; heads are drawn from the seed."""
    # SyncBN, as in the published configs, wants several processes.
    norm = {"type": "BN", "requires_grad": True}
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
            "drop_path_rate": recipe.drop_path_rate,
            "seed": seed,
        },
        "neck": {
            "type": "Feature2Pyramid",
            "embed_dim": spec.embed_dim,
            "rescales": list(pyramid_rescales(spec)),
            "norm_cfg": norm,
        }
        if spec.family == "vit"
        else None,
        "decode_head": {
            "type": "UPerHead",
            "in_channels": [level.channels for level in levels],
            "in_index": [0, 1, 2, 3],
            "pool_scales": (1, 2, 3, 6),
            "channels": recipe.head_channels,
            "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
            **head,
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
        "test_cfg": {"mode": recipe.test_mode, **(sliding if recipe.test_mode == "slide" else {})},
    }
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # The published configs average the loss over ignored pixels too, of which each loss warns.
        warnings.filterwarnings("ignore", message="Default ``avg_non_ignore``")
        torch.manual_seed(seed)
        return EncoderDecoder(**config)


class LoadImage(BaseTransform):
    """Read the image at `img_path` as (H, W, 3), BGR, as MMSegmentation's transforms expect."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `img`, `img_shape` and `ori_shape`."""
        rgb = np.asarray(read_image(results["img_path"]))
        results["img"] = np.ascontiguousarray(rgb[..., ::-1])
        results["img_shape"] = results["ori_shape"] = rgb.shape[:2]
        return results


class LoadLabels(BaseTransform):
    """Read the label map at `seg_map_path`, label 1 becoming class 0 and label 0 ignored."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `gt_seg_map` (H, W)."""
        labels = read_labels(results["seg_map_path"], self.classes, results["ori_shape"])
        results["gt_seg_map"] = labels - np.uint8(1)  # 0 wraps round to 255, which is ignored
        results["seg_fields"].append("gt_seg_map")
        return results


class CoverResize(BaseTransform):
    """Resize by a factor of `scale_range` of what makes the image cover `img_size` (H, W)."""

    def __init__(self, img_size: tuple[int, int], scale_range: tuple[float, float]) -> None:
        self.img_size, self.scale_range = img_size, scale_range
        self.resize = Resize(scale=(1, 1))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change `img` and `gt_seg_map`."""
        height, width = results["img_shape"]
        factor = max(self.img_size[0] / height, self.img_size[1] / width)
        factor *= np.random.uniform(*self.scale_range)
        self.resize.scale = (max(1, round(width * factor)), max(1, round(height * factor)))
        resized: dict[str, Any] = self.resize(results)
        return resized


class PairDataset(BaseSegDataset):
    """A split as MMSegmentation's data set."""

    def __init__(
        self, split: SegmentationSplit, names: Sequence[str], pipeline: list[BaseTransform]
    ) -> None:
        self.split = split
        metainfo: dict[str, Any] = {"classes": tuple(names)}
        if tuple(names) == ADE20K_CLASSES:
            metainfo["palette"] = ADE20KDataset.METAINFO["palette"]
        super().__init__(
            metainfo=metainfo, data_prefix={}, pipeline=pipeline, reduce_zero_label=True
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Give what the transforms start from, a dict an image."""
        pairs = zip(self.split.images, self.split.masks, strict=True)
        return [
            {"img_path": image, "seg_map_path": mask, "reduce_zero_label": True, "seg_fields": []}
            for image, mask in pairs
        ]


class Draws(Dataset[dict[str, Any]]):
    """The endless shuffled training set: draw number n depends on (seed, n) alone.

    So neither the number of worker processes nor a resumption changes what is drawn. mmengine's own
    loop would fetch all earlier batches again to go on from the same place.
    """

    def __init__(self, dataset: PairDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.metainfo = dataset.metainfo  # the loop asks for it
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        epoch, place = divmod(draw, len(self.dataset))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(
                len(self.dataset)
            )
        # The transforms draw from the global generators of numpy and of Python.
        state = int(np.random.SeedSequence([self.seed, 1, draw]).generate_state(1)[0])
        np.random.seed(state)
        random.seed(state)
        item: dict[str, Any] = self.dataset[int(self._order[place])]
        return item


def build_loaders(
    recipe: Ade20kRecipe,
    training: SegmentationSplit,
    validation: SegmentationSplit,
    names: Sequence[str],
    *,
    seed: int,
    first_iteration: int,
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Give the loaders of the training batches still to come and of the validation images, one by one."""
    augment: list[BaseTransform] = [
        LoadImage(),
        LoadLabels(len(names)),
        CoverResize(recipe.img_size, recipe.scale_range),
        RandomCrop(recipe.img_size, cat_max_ratio=0.75),
        RandomFlip(prob=0.5),
    ]
    if recipe.photometric:
        augment.append(PhotoMetricDistortion())
    # The truth is loaded after resizing: scores are of the original size.
    plain = [LoadImage(), CoverResize(recipe.img_size, (1.0, 1.0)), LoadLabels(len(names))]
    draws = range(first_iteration * recipe.batch_size, recipe.max_iters * recipe.batch_size)
    common: dict[str, Any] = {"num_workers": recipe.num_workers, "collate_fn": pseudo_collate}
    train_loader: DataLoader[Any] = DataLoader(
        Draws(PairDataset(training, names, [*augment, PackSegInputs()]), seed),
        batch_size=recipe.batch_size,
        sampler=draws,
        **common,
    )
    val_loader: DataLoader[Any] = DataLoader(
        PairDataset(validation, names, [*plain, PackSegInputs()]), batch_size=1, **common
    )
    return train_loader, val_loader


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
    ) -> None:
        self.run, self.recipe, self.checkpoint, self.seed = run, recipe, checkpoint, seed
        self.saved, self.stop = saved, stop
        self.first = 0 if saved is None else saved["iterations"]

    def before_train(self, runner: Runner) -> None:
        """Put saved weights in, after the Runner has initialised the heads."""
        if self.saved is not None:
            runner.model.load_state_dict(self.saved["model"])
            runner.optim_wrapper.optimizer.load_state_dict(self.saved["optimizer"])

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the learning rate, and the seed of dropout and stochastic depth."""
        iteration = self.first + batch_idx
        factor = lr_factor(iteration, self.recipe.warmup_iters, self.recipe.max_iters)
        for group in runner.optim_wrapper.optimizer.param_groups:
            group["lr"] = self.recipe.base_lr * factor * group["lr_scale"]
        # From (seed, iteration) alone, so that a resumed run draws what it would have drawn.
        state = np.random.SeedSequence([self.seed, 2, iteration]).generate_state(1)[0]
        torch.manual_seed(int(state))

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
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise DivergedError(
                f"ade20k: loss {loss} at iteration {done}; lower base_lr "
                f"({self.recipe.base_lr:g}) with -o base_lr=..."
            )
        self.task.advance(1, loss=loss)
        last = done == self.recipe.max_iters
        if done % METRICS_EVERY == 0 or last:
            self.run.metrics(
                done,
                loss=loss,
                lr=max(group["lr"] for group in runner.optim_wrapper.optimizer.param_groups),
                grad_norm=float(runner.message_hub.get_scalar("train/grad_norm").current()),
                pixel_accuracy=float(outputs["decode.acc_seg"]),
            )
        if done % SAVE_EVERY == 0 or last or self.stop.number is not None:
            self.save(runner, done)
        if self.stop.number is not None and not last:
            self.interrupt(done)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Report, and stop where that is asked for."""
        self.task.advance(1)
        if self.stop.number is not None:
            self.interrupt(self.recipe.max_iters)

    def interrupt(self, done: int) -> None:
        """Leave the loop after the state was saved."""
        assert self.stop.number is not None
        raise InterruptedRun(
            f"ade20k: stopped by {signal.Signals(self.stop.number).name}; {done} of "
            f"{self.recipe.max_iters} iterations are saved, go on with --resume.",
            self.stop.number,
        )

    def save(self, runner: Runner, done: int) -> None:
        """Write the fine-tuned backbone as a checkpoint, and beside it what resuming needs."""
        backbone = runner.model.backbone.backbone
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
                "model": runner.model.state_dict(),
                "optimizer": runner.optim_wrapper.optimizer.state_dict(),
                "iterations": done,
            },
        )


class ConfusionMetric(BaseMetric):
    """Keep a confusion matrix (K, K) an image, rows the truth, and the first predictions (H, W)."""

    default_prefix = "ade20k"

    def __init__(self) -> None:
        super().__init__()
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
            self.results.append(len(self.confusions))  # mmengine warns of a metric without results

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Give nothing: the score is computed from the stored matrices."""
        return {}


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by (true, predicted) class of two maps (H, W); ignored pixels are left out."""
    kept = truth != IGNORED
    pairs = truth[kept].astype(np.int64) * classes + predicted[kept]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


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
) -> tuple[ConfusionMetric, list[list[int]]]:
    """Train, or go on training, then predict the validation split.

    Returns:
        The metric with its matrices and first predictions, and the palette, an RGB a class.

    Raises:
        DivergedError: the loss is not finite.
        InterruptedRun: SIGINT or SIGTERM came; the iteration was saved.
        DataError: a file that cannot be used, or a checkpoint that cannot be resumed.
    """
    saved = None
    if resume and run.last_checkpoint.is_dir():
        saved = read_training_state(run.last_checkpoint)
        run.log(f"resumed after iteration {saved['iterations']}")
    first = 0 if saved is None else saved["iterations"]
    model = build_segmentor(checkpoint, recipe, len(names), seed)
    backbone = model.backbone.backbone
    optimizer = torch.optim.AdamW(
        parameter_groups(
            model,
            backbone,
            lr=recipe.base_lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
        )
    )
    train_loader, val_loader = build_loaders(
        recipe, training, validation, names, seed=seed, first_iteration=first
    )
    if checkpoint.state is not None:
        run.log(str(backbone.load_report))
    run.log(
        f"UPerNet on {checkpoint.spec.arch}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M "
        f"parameters, {len(training)} images of {len(names)} classes, {recipe.max_iters} iterations, "
        f"batch {recipe.batch_size}, learning rate {recipe.base_lr:.3g}"
    )
    with (
        tempfile.TemporaryDirectory(dir=run.path, prefix=".mmengine-") as work_dir,
        stop_on_signals() as stop,
    ):
        metric = ConfusionMetric()
        hook = OurHook(
            run=run, recipe=recipe, checkpoint=checkpoint, seed=seed, saved=saved, stop=stop
        )
        runner = QuietRunner(
            model=model,
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
            experiment_name=Path(
                work_dir
            ).name,  # runs of the same second would share their loggers
        )
        try:
            if first < recipe.max_iters:
                with run.display.task("ade20k", recipe.max_iters - first) as hook.task:
                    runner.train()
            else:
                hook.before_train(runner)
            with run.display.task("ade20k: predict", len(validation)) as hook.task:
                runner.test()
        finally:
            for handler in runner.logger.handlers:
                if isinstance(handler, logging.FileHandler):
                    handler.close()
    return metric, val_loader.dataset.metainfo["palette"]
