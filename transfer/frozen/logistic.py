"""The protocol of logistic regression: candidates compared by cross-validation, the best fitted on all training images.

`simmim_bench.probes.logistic` fits; the log reports a fit that does not converge. Several processes divide the feature
sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor

from simmim_bench.distributed import DistContext
from simmim_bench.probes.lbfgs import MAX_ITERATIONS
from simmim_bench.probes.logistic import cross_validate, fit_logistic
from simmim_bench.probes.norms import Normaliser
from simmim_bench.results.metrics import rank_logits
from simmim_bench.runs.run_dir import RunDir
from transfer.frozen.candidates import (
    LinearHead,
    ProbeResult,
    TrainingSubset,
    assign_folds,
    best_candidate,
)
from transfer.frozen.feature_store import StoredFeatures
from transfer.frozen.features import FeatureSet
from transfer.frozen.recipes import LogisticRecipe


def probe_logistic(
    train: TrainingSubset,
    val: StoredFeatures,
    feature_sets: Sequence[FeatureSet],
    recipe: LogisticRecipe,
    *,
    val_labels: Sequence[int] | np.ndarray,
    seed: int,
    run: RunDir,
    dist: DistContext,
) -> ProbeResult | None:
    """Choose feature set, norm and l2 by cross-validation, fit on all training images, and score `val`.

    A class of one image is learnt in every fold. If no class has two images, nothing can be compared; then
    the last feature set, the last norm and the strongest l2 are taken.

    Args:
        val_labels: class numbers of the images of `val`.

    Returns:
        The result on rank 0; None on the other processes.
    """
    device = dist.device
    folds = assign_folds(train.labels, recipe.folds, seed)
    compared: list[dict[str, Any]] = []
    note: str | None = "nothing compared: no class has two images"
    if folds is not None:
        compared = _compare(train, feature_sets, recipe, folds.to(device), run, dist)
    if not dist.is_main:
        return None
    if folds is None:
        chosen = {**feature_sets[-1].to_json(), "norm": recipe.norm[-1], "l2": max(recipe.l2)}
    else:
        chosen, note = best_candidate(compared), _single_image_note(folds, train.num_classes)
    feature_set = FeatureSet.of(chosen)
    features = train.read(feature_set).to(device)
    normaliser = Normaliser([chosen["norm"]], features)
    fit = fit_logistic(
        normaliser.normalise_all(features),
        train.labels.to(device),
        train.num_classes,
        chosen["l2"],
    )
    if not fit.converged:
        run.log(f"logistic: not converged after iterations={MAX_ITERATIONS} of L-BFGS")
    logits = fit.logits(normaliser.normalise_all(val.read(feature_set)))
    ranking = rank_logits(logits.cpu().numpy(), val_labels)
    head = LinearHead(fit.weight, fit.bias, normaliser.means[0], normaliser.deviations[0])
    return ProbeResult(ranking, chosen, compared, note=note, head=head)


def _compare(
    train: TrainingSubset,
    feature_sets: Sequence[FeatureSet],
    recipe: LogisticRecipe,
    folds: Tensor,
    run: RunDir,
    dist: DistContext,
) -> list[dict[str, Any]]:
    """Return every candidate with its cross-validated top-1, in percent, on rank 0."""
    labels = train.labels.to(folds.device)
    own_sets = feature_sets[dist.rank :: dist.size]
    # Equally wide sets follow each other, so that they are fitted together.
    order = sorted(range(len(own_sets)), key=lambda number: len(own_sets[number].parts))
    own_top1: list[list[float]] = [[]] * (len(own_sets) * len(recipe.norm))
    with run.display.task("compare", len(own_top1) * len(recipe.l2)) as task:
        for column, norm in enumerate(recipe.norm):
            read = (train.read(own_sets[number]).to(folds.device) for number in order)
            scores = cross_validate(read, norm, recipe.l2, labels, train.num_classes, folds)
            for number, top1 in zip(order, scores, strict=True):
                own_top1[number * len(recipe.norm) + column] = top1
                task.advance(len(recipe.l2))
    if not (gathered := dist.gather(own_top1)):
        return []
    in_order: list[list[float]] = []
    for number in range(len(feature_sets)):
        first = number // dist.size * len(recipe.norm)
        in_order += gathered[number % dist.size][first : first + len(recipe.norm)]
    return [
        {**feature_set.to_json(), "norm": norm, "l2": l2, "held_out_top1": score}
        for (feature_set, norm), scores in zip(
            product(feature_sets, recipe.norm), in_order, strict=True
        )
        for l2, score in zip(recipe.l2, scores, strict=True)
    ]


def _single_image_note(folds: Tensor, num_classes: int) -> str | None:
    """Return the record's note on classes of one image, which no fold could hold out."""
    single = int((folds < 0).sum())
    if not single:
        return None
    return f"compared on classes of two images or more: {single} of {num_classes} have one"
