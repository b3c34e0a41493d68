"""ADE20K transfer: fine-tune UPerNet, or a linear head, on a checkpoint through MMSegmentation, and score it.

Writes the confusion matrix of every validation image at its original size, a record whose mIoU is computed from them,
IoU by class, and `predictions.png`. The model is UPerNet (arXiv 1807.10221) as BEiT, MAE and Swin use it. This module
can be imported without MMSegmentation.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from typing import TYPE_CHECKING

import numpy as np

from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.distributed import DistContext, per_process_batch
from simmim_bench.errors import DataError, MissingFrameworkError, UsageError
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.results.record import Record, write_record
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import RunDir
from transfer.job import TransferJob
from transfer.segmentation.ade20k_classes import ADE20K_CLASSES
from transfer.segmentation.ade20k_layout import (
    SPLITS,
    SegmentationData,
    find_split,
    read_class_names,
)
from transfer.segmentation.confusion import write_predictions
from transfer.segmentation.label_check import check_splits
from transfer.segmentation.label_maps import LabelScheme
from transfer.segmentation.recipes import Ade20kRecipe

if TYPE_CHECKING:
    from pathlib import Path

    from transfer.segmentation.metric import ConfusionMetric


def run_ade20k(context: RunContext, job: TransferJob[Ade20kRecipe]) -> Record | None:
    """Fine-tune the recipe's model, predict the validation split and write the record.

    Args:
        job: its option `label_maps` is whether the predicted label maps are written as PNGs into
            `predictions/label_maps/`.

    Returns:
        The record on rank 0, None on the other processes.

    Raises:
        MissingFrameworkError: MMSegmentation, mmengine or mmcv is not installed.
        UsageError: the batch size or an image size is too small for the model.
        DataError: a file of the data cannot be used.
        DivergedError: the loss is not finite.
        InterruptedRun: SIGINT, SIGTERM or SIGUSR1 arrived; the iteration is saved.
    """
    check_sizes(job.recipe, job.checkpoint.spec, context.dist)
    require_mmseg()
    set_local_rank(context.dist)
    from transfer.segmentation.loop import train_and_predict

    data = read_data(
        context.run,
        job.data,
        reduce_zero_label=job.recipe.reduce_zero_label,
        limit=job.recipe.limit,
        pixel_format=job.checkpoint.pixel_format,
    )
    folder = context.run.predictions / "label_maps" if job.options.get("label_maps") else None
    try:
        metric = train_and_predict(context, job.checkpoint, job.recipe, data, folder)
    except DataError as error:
        raise DataError(message_of(error)) from error
    return _finish(context, job, data, metric) if context.dist.is_main else None


def read_data(
    run: RunDir,
    root: Path,
    *,
    reduce_zero_label: bool,
    limit: int | None = None,
    pixel_format: PixelFormat = RGB,
) -> SegmentationData:
    """List both splits, read the class names, check files and labels, and log what a user should know of them.

    Args:
        limit: images to use of each split; None for all. Files and labels of all are checked, as those of a part
            may lack classes that the data set has.

    Raises:
        DataError: a folder or file is missing or cannot be used, or the labels do not fit the class names.
    """
    training, validation = (find_split(root, name) for name in SPLITS)
    names = read_class_names(root) or list(ADE20K_CLASSES)
    for remark in check_splits(
        (training, validation),
        names,
        LabelScheme(classes=len(names), reduce_zero_label=reduce_zero_label),
        pixel_format,
    ):
        run.log(f"ade20k: data: {remark}")
    if limit is not None:
        training, validation = training.limited(limit), validation.limited(limit)
        run.log(
            f"ade20k: data: limit={limit:,} training={len(training):,} validation={len(validation):,}"
        )
    return SegmentationData(training=training, validation=validation, class_names=names)


def set_local_rank(dist: DistContext) -> None:
    """Set LOCAL_RANK to the number of this process's GPU among those that it sees.

    mmengine's logger reads `CUDA_VISIBLE_DEVICES[LOCAL_RANK]`, which does not exist where every process sees a
    single GPU, as with `srun --gpus-per-task=1`.
    """
    if dist.device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(dist.device.index or 0)


def require_mmseg() -> None:
    """Check that MMSegmentation can be imported, without its greeting on stdout and its warnings.

    Raises:
        MissingFrameworkError: MMSegmentation, or a library that it needs, is not installed.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of compiled operators of mmcv, which are not needed
            import transfer.segmentation.loop  # noqa: F401
    except ImportError as error:
        raise MissingFrameworkError(
            f"ade20k needs MMSegmentation, which cannot be imported ({error}); "
            "install it with: pip install 'simmim-bench[seg]'"
        ) from error


def check_sizes(recipe: Ade20kRecipe, spec: BackboneSpec, dist: DistContext) -> None:
    """Check that the model can be trained with the recipe's batch size and image sizes.

    Raises:
        UsageError: a size is not allowed.
    """
    per_process_batch(recipe.batch_size, dist.size)
    # On GPUs, batches are normalised over all processes; see `build_segmentor`.
    min_batch = 2 if dist.device.type == "cuda" else 2 * dist.size
    if recipe.head == "upernet" and recipe.batch_size < min_batch:
        raise UsageError(
            f"batch_size {recipe.batch_size} is too small: UPerNet's batch normalisation of whole "
            f"images needs {min_batch} images or more."
        )
    spec = spec.at(recipe.img_size, patch_size=recipe.patch_size)
    pyramid = spec.is_plain and recipe.head == "upernet"
    if recipe.map_blocks and spec.is_plain:
        _check_blocks(recipe, spec)
    if recipe.test_mode == "whole" and isinstance(spec, ExternalSpec) and spec.sizing == "fixed":
        raise UsageError(
            f"{spec.arch} takes images of one size alone, not whole test images of any; use -o test_mode=slide."
        )
    min_side = 4 * spec.patch_size if pyramid else spec.patch_size
    if min(recipe.img_size) < min_side:
        raise UsageError(
            f"img_size {recipe.img_size} is below {min_side} pixels, which the feature pyramid of "
            f"{spec.arch} needs; use {min_side} or more."
        )
    if recipe.views_of == "original":
        return
    sides = recipe.resize_within or recipe.img_size
    smallest = min(recipe.test_scales)
    if max(min(sides) * smallest, recipe.min_test_side) < min_side:
        key = "resize_within" if recipe.resize_within else "img_size"
        raise UsageError(
            f"test_scales {smallest:g} of {key} {sides} is below {min_side} pixels, which the feature "
            f"pyramid of {spec.arch} needs; use {min_side / min(sides):.3g} or more."
        )


def _check_blocks(recipe: Ade20kRecipe, spec: BackboneSpec) -> None:
    """Check that a ViT has four levels, the last of its last block: a recipe for another depth is not meant."""
    blocks, depth = recipe.map_blocks, spec.num_blocks
    if len(blocks) != 4 or blocks[-1] != depth:
        thirds = tuple(depth * part // 12 for part in (4, 6, 8, 12))
        distinct = thirds if len(set(thirds)) == 4 else spec.level_blocks
        wanted = ",".join(map(str, distinct))
        raise UsageError(
            f"map_blocks {blocks} of recipe '{recipe.name}' are not four blocks up to {spec.arch}'s last, {depth}; "
            f"use -o map_blocks={wanted}."
        )


def message_of(error: DataError) -> str:
    """Return an error's own line, without the traceback that a DataLoader adds to a worker's error."""
    return str(error).strip().rpartition("DataError: ")[2].splitlines()[0]


def _finish(
    context: RunContext,
    job: TransferJob[Ade20kRecipe],
    data: SegmentationData,
    metric: ConfusionMetric,
) -> Record:
    """Write predictions, IoU by class, figure and record."""
    from mmseg import __version__ as mmseg_version

    recipe, names = job.recipe, data.class_names
    scheme = LabelScheme(classes=len(names), reduce_zero_label=recipe.reduce_zero_label)
    palette = np.array(metric.dataset_meta["palette"])
    predictions = write_predictions(
        context.run,
        data.validation,
        names,
        metric.confusions,
        metric.shown,
        palette,
        scheme,
        job.checkpoint.pixel_format,
    )
    return write_record(
        context.run,
        task="ade20k",
        checkpoint=job.checkpoint,
        recipe=recipe,
        deviates=job.deviates,
        seed=context.seed,
        data={
            **job.data_set,
            "fingerprint": data.validation.fingerprint(),
            "train_fingerprint": data.training.fingerprint(),
        },
        predictions=predictions,
        evaluated=len(metric.confusions),
        expected=len(data.validation),
        images_seen=recipe.max_iters * recipe.batch_size + len(data.validation) * recipe.views,
        dist=context.dist,
        details={
            "classes": len(names),
            "training_images": len(data.training),
            "mmsegmentation": mmseg_version,
        },
    )
