"""ADE20K mIoU of a fine-tuned UPerNet, through MMSegmentation.

In: a checkpoint, a folder in ADE20K's layout, a recipe. Out: a run directory with the confusion matrix
of every validation image at its original size, a record whose mIoU is computed from them, and pictures.
The model is UPerNet (arXiv 1807.10221) as BEiT, MAE and Swin use it; `mmseg_runner.py` has it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.decode import read_image
from simmim_bench.distributed import DistContext, best_device, per_process_batch
from simmim_bench.errors import DataError, MissingFrameworkError, UsageError
from simmim_bench.files import replacing, write_json
from simmim_bench.models.archs import BackboneSpec
from simmim_bench.results.metrics import iou_by_class, write_confusion
from simmim_bench.results.record import Record, write_record
from simmim_bench.runs.run_dir import RunDir
from transfer.segmentation.ade20k_layout import (
    SegmentationSplit,
    check_splits,
    find_split,
    read_class_names,
    read_labels,
)
from transfer.segmentation.recipes import Ade20kRecipe

TILE_HEIGHT = 192  # pixels of one picture


def run_ade20k(
    *,
    checkpoint: Checkpoint,
    data: Path,
    run: RunDir,
    recipe: Ade20kRecipe,
    deviates: dict[str, Any],
    seed: int,
    resume: bool = False,
    dist: DistContext | None = None,
    label_maps: bool = False,
) -> Record | None:
    """Fine-tune UPerNet, predict the validation split and write the record.

    Args:
        team: the processes that share each batch; None for this one alone.
        label_maps: keep the predicted label maps as PNGs in `predictions/label_maps/`.

    Returns:
        The record, on the main process.

    Raises:
        MissingEngineError: MMSegmentation, mmengine or mmcv is not installed.
        UsageError: a batch or a size that the model cannot be trained with.
        DataError: a file of the data cannot be used.
        DivergedError: the loss is not finite.
        InterruptedRun: SIGINT or SIGTERM came; the iteration was saved.
    """
    dist = dist or DistContext(device=best_device())
    check_sizes(recipe, checkpoint.spec, dist)
    engine = import_mmseg()
    training, validation = find_split(data, "training"), find_split(data, "validation")
    names = read_class_names(data) or list(engine.ADE20K_CLASSES)
    check_splits((training, validation), len(names))
    try:
        metric = engine.train_and_predict(
            checkpoint=checkpoint,
            recipe=recipe,
            training=training,
            validation=validation,
            names=names,
            run=run,
            seed=seed,
            resume=resume,
            dist=dist,
            label_maps=run.predictions / "label_maps" if label_maps else None,
        )
    except DataError as error:
        raise DataError(message_of(error)) from error
    if not dist.is_main:
        return None
    if not sum(int(confusion.sum()) for confusion in metric.confusions):
        raise DataError(
            f"the annotations of {data}/annotations/validation hold nothing but label 0, which is "
            "ignored; label some pixels 1 or above."
        )
    predictions = run.predictions / "confusion.npz"
    write_confusion(predictions, metric.confusions, names)
    write_json(run.path / "iou_by_class.json", iou_by_class(sum(metric.confusions), names))
    write_pictures(
        run.path / "predictions.png",
        validation,
        metric.shown,
        np.array(metric.dataset_meta["palette"]),
    )
    return write_record(
        run,
        task="ade20k",
        checkpoint=checkpoint,
        recipe=recipe,
        deviates=deviates,
        seed=seed,
        data={
            "root": str(data),
            "fingerprint": validation.fingerprint(),
            "train_fingerprint": training.fingerprint(),
        },
        predictions=predictions,
        evaluated=len(metric.confusions),
        expected=len(validation),
        images_seen=recipe.max_iters * recipe.batch_size + len(validation) * recipe.views,
        dist=dist,
        details={
            "classes": len(names),
            "training_images": len(training),
            "mmsegmentation": engine.MMSEG_VERSION,
        },
    )


def import_mmseg() -> Any:
    """Import what is built on MMSegmentation, which greets on stdout and warns of mmcv's operators.

    Raises:
        MissingEngineError: it is not installed, or lacks a library of its own.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transfer.segmentation import loop as mmseg_runner
    except ImportError as error:
        raise MissingFrameworkError(
            f"ade20k needs MMSegmentation, which cannot be imported ({error}); "
            "install it with: pip install 'simmim-bench[seg]'"
        ) from error
    return mmseg_runner


def check_sizes(recipe: Ade20kRecipe, spec: BackboneSpec, dist: DistContext) -> None:
    """Refuse what the model cannot be trained with.

    Raises:
        UsageError: with the value and what is allowed.
    """
    per_process_batch(recipe.batch_size, dist.size)
    # GPUs normalise over the batches of all, see `build_segmentor`.
    least_images = 2 if dist.device.type == "cuda" else 2 * dist.size
    if recipe.head == "upernet" and recipe.batch_size < least_images:
        raise UsageError(
            f"batch_size {recipe.batch_size} is too small: UPerNet's batch normalisation of whole "
            f"images wants {least_images} or more."
        )
    pyramid = spec.family == "vit" and recipe.head == "upernet"
    least = 4 * spec.patch_size if pyramid else spec.patch_size
    if min(recipe.img_size) < least:
        raise UsageError(
            f"img_size {recipe.img_size} is below {least} pixels, which the feature pyramid of "
            f"{spec.arch} needs; use {least} or more."
        )
    smallest = min(recipe.test_scales)
    if min(recipe.img_size) * smallest < least:
        raise UsageError(
            f"test_scales {smallest:g} of img_size {recipe.img_size} is below {least} pixels, which the feature "
            f"pyramid of {spec.arch} needs; use {least / min(recipe.img_size):.3g} or more."
        )


def message_of(error: DataError) -> str:
    """Give an error's own line, also where a DataLoader's worker has put its traceback around it."""
    return str(error).strip().rpartition("DataError: ")[2].splitlines()[0]


def write_pictures(
    path: Path, split: SegmentationSplit, predicted: Sequence[np.ndarray], palette: np.ndarray
) -> None:
    """Write the first images of a split, a row each: image, truth, prediction.

    Args:
        predicted: a map (H, W) of classes for each image to show.
        palette: (K, 3) colours in 0..255; ignored pixels are black.
    """
    colours = np.concatenate([np.zeros((1, 3)), palette]).astype(np.uint8)
    rows = []
    for image_path, mask_path, classes in zip(split.images, split.masks, predicted, strict=False):
        image = read_image(image_path)
        truth = read_labels(mask_path, len(palette), (image.height, image.width))
        row = [np.asarray(image), colours[truth], colours[classes + 1]]
        width = round(image.width * TILE_HEIGHT / image.height)
        resized = [
            Image.fromarray(tile).resize((width, TILE_HEIGHT), Image.Resampling.NEAREST)
            for tile in row
        ]
        rows.append(np.concatenate([np.asarray(tile) for tile in resized], axis=1))
    widest = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows]
    with replacing(path) as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary, format="PNG")
