"""Logistic regression by L-BFGS, which needs neither a learning rate nor a seed.

The fit stops at convergence, or after `MAX_ITERATIONS` iterations if the weights are hardly regularised; the
log reports the latter. The folds and strengths that compare one feature set are fitted together, and several
processes divide the feature sets.

Legend: N images, D channels, K classes, F folds, R strengths of regularisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from simmim_bench.distributed import DistContext
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
from transfer.frozen.lbfgs import MAX_ITERATIONS, minimise
from transfer.frozen.norms import Normaliser
from transfer.frozen.recipes import LogisticRecipe, Norm

LOGITS = 2**27  # computed at a time; half a GiB
FEATURES = 2**29  # normalised features kept at a time, of one fold or more; two GiB


@dataclass(frozen=True)
class Fit:
    """A fitted regression: weights (K, D), bias (K,), and whether the fit converged."""

    weight: Tensor
    bias: Tensor
    converged: bool

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of normalised features (N, D)."""
        return torch.addmm(self.bias, features, self.weight.T)


def fit_logistic(features: Tensor, labels: Tensor, num_classes: int, l2: float) -> Fit:
    """Fit a multinomial logistic regression; see `fit_jointly`."""
    return fit_jointly([(features, labels)], num_classes, [l2])[0]


def fit_jointly(
    parts: Sequence[tuple[Tensor, Tensor]], num_classes: int, l2: Sequence[float]
) -> list[Fit]:
    """Fit multinomial logistic regressions by L-BFGS: one for every part with every strength.

    Args:
        parts: features (N, D) normalised, and labels (N,), such as those of one fold; N may differ.
        l2: weights of the squared norm of the classifier's weights, added to the mean loss.

    Returns:
        The fits of the first part with every strength, then those of the second, ...
    """
    some = parts[0][0]
    channels, device, dtype = some.shape[1], some.device, some.dtype
    weights = num_classes * channels
    strengths = torch.tensor(l2, device=device, dtype=dtype).repeat(len(parts))[:, None]

    def objective(variables: Tensor, problems: Sequence[int]) -> tuple[Tensor, Tensor]:
        weight, bias = variables[:, :weights], variables[:, weights:]
        chosen = strengths[torch.tensor(problems, device=device)]
        losses = (chosen * weight.square()).sum(1)
        gradients = torch.cat([2 * chosen * weight, torch.zeros_like(bias)], 1)
        for number, (features, labels) in enumerate(parts):
            rows = [row for row, problem in enumerate(problems) if problem // len(l2) == number]
            if rows:
                own = slice(rows[0], rows[-1] + 1)  # the problems of a part follow each other
                _add_cross_entropy(
                    features, labels, weight[own], bias[own], losses[own], gradients[own]
                )
        return losses, gradients

    variables = weights + num_classes
    start = torch.zeros(len(parts) * len(l2), variables, device=device, dtype=dtype)
    found, converged = minimise(objective, start)
    return [
        Fit(row[:weights].view(num_classes, channels), row[weights:], done)
        for row, done in zip(found, converged, strict=True)
    ]


def _add_cross_entropy(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    losses: Tensor,
    gradients: Tensor,
) -> None:
    """Add the mean cross-entropy of R classifiers to their losses (R,), and its gradients, (R, K D + K).

    Args:
        weight: (R, K D); bias: (R, K).
    """
    rates, classes = bias.shape
    rows = weight.reshape(rates * classes, -1)
    for x, y in zip(
        *(t.split(max(1, LOGITS // len(rows))) for t in (features, labels)), strict=True
    ):
        target = y[:, None, None].expand(-1, rates, 1)
        log = torch.addmm(bias.reshape(-1), x, rows.T).view(-1, rates, classes).log_softmax(2)
        losses -= log.gather(2, target)[:, :, 0].sum(0) / len(labels)
        error = log.exp_().scatter_add_(2, target, log.new_full((1,), -1.0).expand_as(target))
        error = error.flatten(1).div_(len(labels))
        gradients[:, :-classes] += (error.T @ x).view(rates, -1)
        gradients[:, -classes:] += error.sum(0).view(rates, -1)


def probe_logistic(
    train: TrainingSubset,
    val: StoredFeatures,
    feature_sets: Sequence[FeatureSet],
    recipe: LogisticRecipe,
    *,
    seed: int,
    run: RunDir,
    dist: DistContext,
) -> ProbeResult | None:
    """Choose feature set, norm and l2 by cross-validation, fit on all training images, and score `val`.

    A class of one image is learnt in every fold. If no class has two images, nothing can be compared; then
    the last feature set, the last norm and the strongest l2 are taken.

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
    head = LinearHead(fit.weight, fit.bias, normaliser.means[0], normaliser.deviations[0])
    return ProbeResult(rank_logits(logits.cpu().numpy()), chosen, compared, note=note, head=head)


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
    own_top1 = []
    with run.display.task("compare", len(own_sets) * len(recipe.norm) * len(recipe.l2)) as task:
        for feature_set in own_sets:
            features = train.read(feature_set).to(folds.device)
            for norm in recipe.norm:
                own_top1.append(
                    cross_validate(features, norm, recipe.l2, labels, train.num_classes, folds)
                )
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


def cross_validate(
    features: Tensor,
    norm: Norm,
    l2: Sequence[float],
    labels: Tensor,
    num_classes: int,
    folds: Tensor,
) -> list[float]:
    """Return, for every strength, the top-1, in percent, of predicting each fold from all other images.

    Args:
        features: (N, D); labels: (N,).
        folds: see `assign_folds`.
    """
    correct = [0] * len(l2)
    numbers = folds[folds >= 0].unique().tolist()
    at_once = max(1, FEATURES // features.numel())
    for first in range(0, len(numbers), at_once):
        masks = [folds == fold for fold in numbers[first : first + at_once]]
        normalised = [
            Normaliser([norm], features[~held_out]).normalise_all(features) for held_out in masks
        ]
        fits = fit_jointly(
            [
                (x[~held_out], labels[~held_out])
                for x, held_out in zip(normalised, masks, strict=True)
            ],
            num_classes,
            l2,
        )
        for number, fit in enumerate(fits):
            x, held_out = normalised[number // len(l2)], masks[number // len(l2)]
            hits = fit.logits(x[held_out]).argmax(1) == labels[held_out]
            correct[number % len(l2)] += int(hits.sum())
    return [100 * count / int((folds >= 0).sum()) for count in correct]
