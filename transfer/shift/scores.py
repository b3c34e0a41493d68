"""Compute the predictions of a classifier on one set: a folder, ReaL's labels, or the conditions of ImageNet-C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.named import DataSet
from simmim_bench.data.packed import describe_packing
from simmim_bench.data.sharing import open_once
from simmim_bench.data.sources import NamedImages, describe_left_out
from simmim_bench.errors import DataError
from simmim_bench.files import sha256_json
from simmim_bench.models.convnet import ConvNet
from simmim_bench.results.metrics import Ranking, rank_votes, read_ranking, write_logits
from simmim_bench.results.shift import (
    ALEXNET_ERRORS,
    SEVERITIES,
    condition_number,
    top1_by_corruption,
    write_corruptions,
    write_multilabel,
)
from simmim_bench.runs.context import RunContext
from simmim_bench.shift_sets import SHIFT_SETS
from simmim_bench.training.kernels import fast_kernels, use_channels_last
from transfer.inference import forward_batches, gather_rows
from transfer.shift.class_maps import images_folder, label_images, list_images, map_classes
from transfer.shift.classifier import ShiftClassifier
from transfer.shift.corruptions import describe_missing, find_conditions, missing_conditions
from transfer.shift.real import labels_of, list_validation


@dataclass(frozen=True, kw_only=True)
class ShiftScore:
    """The predictions on one set, and what the record describes of them.

    Attributes:
        predictions: the file that the scores are computed from.
        fingerprint: of the scored images.
        evaluated, expected: images that were scored, and images of the published set.
        forwarded: images that went through the model.
        details: figures that do not follow from the predictions.
        packed: how the images were packed (`describe_packing`).
    """

    predictions: Path
    fingerprint: str
    evaluated: int
    expected: int
    forwarded: int
    details: dict[str, Any]
    packed: dict[str, Any]


def score_folder(
    context: RunContext, classifier: ShiftClassifier, data_set: DataSet
) -> ShiftScore | None:
    """Rank the classes of the images of a folder."""
    name, folder = str(data_set.name), images_folder(data_set.root)
    images = open_once(partial(list_images, folder), context.dist)
    _log_left_out(context, name, images)
    mapped = map_classes(name, folder, images.classes, classifier.classes, classifier.ckpt)
    logits = _forward(context, classifier, images, name, outputs=mapped.outputs)
    if logits is None:
        return None
    predictions = context.run.predictions / "logits.npz"
    write_logits(predictions, logits, label_images(images, mapped))
    published = SHIFT_SETS[name].images if name in SHIFT_SETS else 0
    return ShiftScore(
        predictions=predictions,
        fingerprint=images.fingerprint(),
        evaluated=len(images),
        expected=max(published, len(images)),
        forwarded=len(images),
        details={"classes": logits.shape[1]},
        packed=describe_packing(images),
    )


def score_real(
    context: RunContext, classifier: ShiftClassifier, data_set: DataSet
) -> ShiftScore | None:
    """Compare ranked classes of ImageNet's validation images with their ReaL labels.

    The predictions of a run are those that it has stored; those of a file, or with overrides that change them, are
    computed.
    """
    images = open_once(partial(list_validation, data_set.root), context.dist)
    labels = labels_of(images, classifier.classes, classifier.ckpt)
    ranking, logits, forwarded = _stored_ranking(classifier, images), None, 0
    if ranking is None:
        logits = _forward(context, classifier, images, "real")
        forwarded = len(images)
    if not context.dist.is_main:
        return None
    if ranking is None:
        assert logits is not None
        ranking = rank_votes(logits)  # an image with several labels has no calibration
    labelled = [row for row, own in enumerate(labels) if own]
    if not labelled:
        raise DataError(f"real: no image of {images.folder} has a ReaL label; use ImageNet's val/.")
    predictions = context.run.predictions / "real.npz"
    write_multilabel(
        predictions,
        ranking.ranked[labelled],
        ranking.logits[labelled],
        [labels[row] for row in labelled],
        len(classifier.classes),
    )
    return ShiftScore(
        predictions=predictions,
        fingerprint=images.fingerprint(),
        evaluated=len(labelled),
        expected=SHIFT_SETS["real"].images,
        forwarded=forwarded,
        details={
            "images_without_label": len(images) - len(labelled),
            "predictions_of": "the run" if not forwarded else "a forward pass",
        },
        packed=describe_packing(images),
    )


def _stored_ranking(classifier: ShiftClassifier, images: NamedImages) -> Ranking | None:
    """Return the ranked classes that a run has stored; None where they are to be computed.

    Raises:
        DataError: the predictions are damaged, or of other images.
    """
    if classifier.stored is None:
        return None
    if classifier.stored.fingerprint != images.fingerprint():
        raise DataError(
            f"real: {images.folder} is not the validation set that {classifier.ckpt} was scored on (another "
            "fingerprint), so that the stored predictions are not of its images; use the run's own data set."
        )
    path = classifier.stored.path
    ranking, _ = read_ranking(path)
    if len(ranking) != len(images):
        raise DataError(
            f"predictions {path} are of {len(ranking):,} images, not of {len(images):,}; run the task again."
        )
    return ranking


def score_corruptions(
    context: RunContext, classifier: ShiftClassifier, data_set: DataSet
) -> ShiftScore | None:
    """Predict the best class of every image of every condition; the images are taken whole.

    Those of ImageNet-C have been cropped to 224 pixels: the authors' test.py crops them without resizing.
    """
    conditions = find_conditions(data_set.root)
    if missing := missing_conditions(conditions):
        context.run.log(f"shift-c: {describe_missing(missing)}")
    best, labels, numbers, fingerprints, sizes = [], [], [], {}, {}
    packed: dict[str, Any] = {}
    for (corruption, severity), folder in conditions.items():
        name = f"{corruption}/{severity}"
        images = open_once(partial(list_images, folder), context.dist)
        _log_left_out(context, name, images)
        mapped = map_classes("c", folder, images.classes, classifier.classes, classifier.ckpt)
        packed |= describe_packing(images)
        logits = _forward(context, classifier, images, name, whole_images=True)
        fingerprints[name], sizes[corruption, severity] = images.fingerprint(), len(images)
        if logits is not None:
            best.append(logits.argmax(1))
            labels.append(label_images(images, mapped))
            numbers.append(np.full(len(images), condition_number(corruption, severity)))
    if not context.dist.is_main:
        return None
    predictions = context.run.predictions / "corruptions.npz"
    write_corruptions(
        predictions,
        *(np.concatenate(parts) for parts in (best, labels, numbers)),
        classes=len(classifier.classes),
        imagenet=classifier.is_imagenet,
    )
    # The four extra corruptions are in no mean, and may be missing.
    averaged = [size for (corruption, _), size in sizes.items() if corruption in ALEXNET_ERRORS]
    whole = max([*averaged, SHIFT_SETS["c"].images if classifier.is_imagenet else 0])
    return ShiftScore(
        predictions=predictions,
        fingerprint=sha256_json(fingerprints),
        evaluated=sum(averaged),
        expected=whole * len(ALEXNET_ERRORS) * SEVERITIES,
        forwarded=sum(sizes.values()),
        details={
            "conditions": len(conditions),
            "test_crop_ratio": 1.0,
            "top1_by_corruption": top1_by_corruption(predictions),
        },
        packed=packed,
    )


def _forward(
    context: RunContext,
    classifier: ShiftClassifier,
    images: NamedImages,
    description: str,
    *,
    outputs: Sequence[int] | None = None,
    whole_images: bool = False,
) -> np.ndarray | None:
    """Compute the logits of images.

    Args:
        outputs: the outputs to keep; None for all.

    Returns:
        (N, K) float32 on rank 0; None on the other processes.

    Raises:
        DataError: a logit is not finite.
    """
    dist, plan = context.dist, classifier.plan(whole_images=whole_images)
    model = classifier.model.to(dist.device).eval()
    network = getattr(model, "backbone", model)
    convolutional = isinstance(network, ConvNet)
    if isinstance(network, ConvNet):
        use_channels_last(network, network.spec, dist.device)  # as the runs score it
    kept = None if outputs is None else torch.tensor(outputs, device=dist.device)

    def forward(pixels: Tensor) -> Tensor:
        logits: Tensor = model(pixels)
        return logits if kept is None else logits[:, kept]

    transform = plan.pop("transform")
    with fast_kernels(dist.device, plan["precision"], benchmark=convolutional, run=context.run):
        batches = forward_batches(
            forward,
            ImageDataset(images, transform),
            run=context.run,
            dist=dist,
            description=description,
            **plan,
        )
        logits = gather_rows(batches, dist).numpy()
    if not dist.is_main:
        return None
    if not np.isfinite(logits).all():
        raise DataError(
            f"the logits of {classifier.ckpt} on {images.folder} are not finite; use -o precision=fp32, or another "
            "copy of the file."
        )
    return logits


def _log_left_out(context: RunContext, name: str, images: NamedImages) -> None:
    for line in describe_left_out(images, name):
        context.run.log(line)


Score = Callable[[RunContext, ShiftClassifier, DataSet], ShiftScore | None]
# How a kind of predictions is computed; see `ShiftSet.predictions`.
SCORES: dict[str, Score] = {
    "ranking": score_folder,
    "multilabel": score_real,
    "corruptions": score_corruptions,
}
