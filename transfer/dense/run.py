"""Run the task `ade20k` on frozen patch features: k-nearest neighbours or logistic regression, without MMSegmentation.

The training images are forwarded once, and a bounded number of patches of each map is kept. A candidate is chosen on
held-out training images, then learns from the patches of all, and the validation set is evaluated once. Data checks,
confusion matrices, scores, label maps and the figure are those of the segmentors that are trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simmim_bench.errors import DataError
from simmim_bench.files import write_json
from simmim_bench.results.record import Record, write_record
from simmim_bench.runs.context import RunContext
from transfer.dense.choice import Choice, check_enough_images, choose_candidate, count_candidates
from transfer.dense.classifiers import fit_scorer
from transfer.dense.label_map import predict_image
from transfer.dense.patches import (
    PatchReader,
    PatchSample,
    patches_per_image,
    probed_levels,
    sample_training_patches,
)
from transfer.dense.recipes import DenseRecipe
from transfer.dense.windows import WindowDataset
from transfer.frozen.candidates import log_choice
from transfer.inference import own_part
from transfer.job import TransferJob
from transfer.segmentation.ade20k_layout import SegmentationData, SegmentationSplit
from transfer.segmentation.confusion import (
    SHOWN,
    confusion_matrix,
    write_label_map,
    write_predictions,
)
from transfer.segmentation.label_maps import LabelScheme
from transfer.segmentation.run import message_of, read_data

PALETTE_SEED = 0


def run_dense(context: RunContext, job: TransferJob[DenseRecipe]) -> Record | None:
    """Choose and score a classifier of patch features, and write the record.

    Args:
        job: its option `label_maps` is whether the predicted label maps are written as PNGs into
            `predictions/label_maps/`.

    Returns:
        The record on rank 0, None on the other processes.

    Raises:
        UsageError: the recipe names a block that the backbone does not have.
        DataError: a file of the data cannot be used, or too few images to hold some out.
    """
    recipe = job.recipe
    levels = probed_levels(recipe, job.checkpoint.spec)
    data = read_data(
        context.run,
        job.data,
        reduce_zero_label=recipe.reduce_zero_label,
        limit=recipe.limit,
        pixel_format=job.checkpoint.pixel_format,
    )
    if count_candidates(recipe, levels) > 1:
        check_enough_images(len(data.training))
    reader = PatchReader(context, job.checkpoint, recipe, levels)
    try:
        result = _probe(reader, data, job)
    except DataError as error:
        raise DataError(message_of(error)) from error
    return _write(context, job, data, reader, result) if context.dist.is_main else None


@dataclass(frozen=True)
class _Result:
    """The chosen candidate, the number of patches it learnt from, and its predictions on rank 0."""

    choice: Choice
    patches: int
    confusions: list[np.ndarray]
    shown: list[np.ndarray]


def _probe(reader: PatchReader, data: SegmentationData, job: TransferJob[DenseRecipe]) -> _Result:
    """Sample patches, choose a candidate, and predict the validation images."""
    context, recipe, levels = reader.context, job.recipe, reader.levels
    scheme = scheme_of(data, recipe)
    training = WindowDataset(
        data.training,
        scheme,
        recipe,
        strides=[level.stride for level in levels],
        count=patches_per_image(recipe, len(data.training)),
        seed=context.seed,
        pixel_format=job.checkpoint.pixel_format,
    )
    samples = sample_training_patches(reader, training)
    for level, sample in zip(levels, samples, strict=True):
        context.run.log(f"ade20k: block={level.block} training patches={len(sample):,}")
    scored = WindowDataset(data.training, scheme, recipe, pixel_format=job.checkpoint.pixel_format)
    choice = choose_candidate(reader, samples, training, scored, recipe)
    if choice.compared:
        log_choice(context.run, choice.chosen)
    sample = samples[choice.number]
    folder = context.run.predictions / "label_maps" if job.options.get("label_maps") else None
    confusions, shown = _predict(reader, sample, choice, data.validation, scheme, folder)
    return _Result(choice, len(sample), confusions, shown)


def scheme_of(data: SegmentationData, recipe: DenseRecipe) -> LabelScheme:
    """Return what the labels of a data set mean."""
    return LabelScheme(classes=len(data.class_names), reduce_zero_label=recipe.reduce_zero_label)


def _predict(
    reader: PatchReader,
    sample: PatchSample,
    choice: Choice,
    validation: SegmentationSplit,
    scheme: LabelScheme,
    folder: Path | None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predict the validation images, which the processes divide.

    Returns:
        The confusion matrices of all images and the first predictions, on rank 0; else empty lists.
    """
    context, recipe, level = reader.context, reader.recipe, reader.levels[choice.number]
    scorer = fit_scorer(recipe, sample, choice.norm, [choice.setting], context)
    dataset = WindowDataset(validation, scheme, recipe, pixel_format=reader.checkpoint.pixel_format)
    confusions, shown = [], []
    indices = own_part(len(dataset), context.dist)
    for image, maps in reader.read(dataset, indices, "ade20k: predict", [level]):
        (classes,) = predict_image(scorer, image, maps[0], recipe, level)
        assert image.classes is not None
        confusions.append(confusion_matrix(image.classes, classes, scheme.classes))
        if image.index < SHOWN:
            shown.append(classes)
        if folder is not None:
            path = validation.images[image.index].relative_to(validation.folder)
            write_label_map(folder, path, classes, scheme)
    parts = context.dist.gather((confusions, shown))
    return [c for part, _ in parts for c in part], [s for _, part in parts for s in part]


def _write(
    context: RunContext,
    job: TransferJob[DenseRecipe],
    data: SegmentationData,
    reader: PatchReader,
    result: _Result,
) -> Record:
    """Write predictions, candidates and record."""
    choice, names = result.choice, data.class_names
    write_json(context.run.path / "compared.json", choice.compared)
    predictions = write_predictions(
        context.run,
        data.validation,
        names,
        result.confusions,
        result.shown,
        _palette(len(names)),
        scheme_of(data, job.recipe),
        job.checkpoint.pixel_format,
    )
    return write_record(
        context.run,
        task="ade20k",
        checkpoint=job.checkpoint,
        recipe=job.recipe,
        deviates=job.deviates,
        seed=context.seed,
        data={
            **job.data_set,
            "fingerprint": data.validation.fingerprint(),
            "train_fingerprint": data.training.fingerprint(),
        },
        predictions=predictions,
        evaluated=len(result.confusions),
        expected=len(data.validation),
        images_seen=_images_seen(reader, data, choice),
        dist=context.dist,
        details={
            **choice.chosen,
            "candidates": len(choice.compared) or 1,
            "held_out_images": len(choice.held_out),
            "patches": result.patches,
            "classes": len(names),
            "training_images": len(data.training),
        },
    )


def _images_seen(reader: PatchReader, data: SegmentationData, choice: Choice) -> int:
    """Return the images that all processes forwarded."""
    passes = len(reader.levels) * len(reader.recipe.norm) if choice.compared else 0
    return len(data.training) + passes * len(choice.held_out) + len(data.validation)


def _palette(classes: int) -> np.ndarray:
    """Return a colour for each class, (K, 3) in 0..255; the same in every run."""
    return np.random.default_rng(PALETTE_SEED).integers(0, 256, (classes, 3), dtype=np.uint8)
