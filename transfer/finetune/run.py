"""Run end-to-end classification: `imagenet`, and `fewshot` with all weights trained.

The model is fine-tuned on `train/`, evaluated on `val/`, and the record is computed from the logits of every
validation image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simmim_bench.data.datasets import ImageDataset, eval_transform
from simmim_bench.data.sources import ImageSource
from simmim_bench.models.build import Backbone
from simmim_bench.results.metrics import write_logits
from simmim_bench.results.record import Record, write_record
from simmim_bench.runs.context import RunContext
from simmim_bench.training.compilation import uncompiled
from simmim_bench.training.kernels import fast_kernels
from transfer.fewshot import split_sha256
from transfer.finetune.recipes import FinetuneRecipe
from transfer.finetune.train import finetune
from transfer.inference import forward_batches, gather_rows
from transfer.job import TransferJob
from transfer.split_description import choose_few_shot, describe_data, read_splits

EVAL_BATCH = 256  # images per process; the batch size of training is the total over all processes


def run_finetune(context: RunContext, job: TransferJob[FinetuneRecipe]) -> Record | None:
    """Fine-tune on `train/` of the job's data and score on its `val/`.

    Args:
        job: of the task `imagenet`, or of `fewshot` with the options `fraction` (of the training images to
            learn from, sampled by the recipe's `draw`) and `split` (a file that lists them instead).

    Returns:
        The record on rank 0; None on the other processes.

    Raises:
        DataError: images that cannot be used, or a checkpoint that does not fit.
        DivergedError: the loss is not finite.
    """
    train, val = read_splits(context, job)
    description = describe_data(job, train, val)
    details: dict[str, Any] = {}
    if job.task == "fewshot":
        few_shot = choose_few_shot(context, job, train)
        train, details = train.subset(few_shot.indices), few_shot.details
        description |= few_shot.data
    convolutional = job.checkpoint.spec.is_convolutional
    device, precision = context.dist.device, job.recipe.precision
    with fast_kernels(device, precision, benchmark=convolutional, run=context.run):
        model = finetune(context, job, train)
        with uncompiled(model.blocks_in_order):
            logits = evaluate(context, job, model, val)
        return _record(context, job, model, logits, train, val, description, details)


def _record(
    context: RunContext,
    job: TransferJob[FinetuneRecipe],
    model: Backbone,
    logits: np.ndarray,
    train: ImageSource,
    val: ImageSource,
    description: dict[str, Any],
    details: dict[str, Any],
) -> Record | None:
    """Write the predictions and the record; return it on rank 0."""
    if not context.dist.is_main:
        return None
    predictions = context.run.predictions / "logits.npz"
    write_logits(predictions, logits, np.array(val.labels))
    return write_record(
        context.run,
        task=job.record_name,
        checkpoint=job.checkpoint,
        recipe=job.recipe,
        deviates=job.deviates,
        seed=context.seed,
        data=description,
        predictions=predictions,
        evaluated=len(logits),
        expected=len(val),
        images_seen=job.recipe.epochs * len(train) + len(val),
        dist=context.dist,
        details={
            "epochs": job.recipe.epochs,
            "weights": str(model.load_report),
            "train_images": len(train),
            "train_split_sha256": split_sha256(train),
            **details,
        },
    )


def evaluate(
    context: RunContext,
    job: TransferJob[FinetuneRecipe],
    model: Backbone,
    val: ImageSource,
    *,
    batch_size: int = EVAL_BATCH,
) -> np.ndarray:
    """Compute the logits of validation images.

    Args:
        batch_size: the most images of a forward pass in each process.

    Returns:
        (images, classes) float32 on rank 0; empty on the other processes.
    """
    recipe = job.recipe
    transform = eval_transform(
        recipe.eval_img_size,
        crop_ratio=recipe.test_crop_ratio,
        mean=job.checkpoint.mean,
        std=job.checkpoint.std,
        as_bytes=True,
        pixel_format=job.checkpoint.pixel_format,
        resizing=recipe.resizing,
    )
    batches = forward_batches(
        model.eval(),
        ImageDataset(val, transform),
        batch_size=min(recipe.batch_size, batch_size),
        num_workers=recipe.num_workers,
        precision=recipe.precision,
        run=context.run,
        dist=context.dist,
        description="evaluate",
        statistics=(job.checkpoint.mean, job.checkpoint.std),
    )
    return gather_rows(batches, context.dist).numpy()
