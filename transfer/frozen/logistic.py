"""Logistic regression by L-BFGS, which needs neither a learning rate nor a seed.

The fit stops at convergence, or after `MAX_ITERATIONS` iterations if the weights are hardly regularised; the
log reports the latter.

Legend: N images, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_bench.results.metrics import rank_logits
from simmim_bench.runs.run_dir import RunDir
from transfer.frozen.candidates import ProbeResult, TrainingSubset, assign_folds, best_candidate
from transfer.frozen.feature_store import StoredFeatures
from transfer.frozen.features import FeatureSet
from transfer.frozen.norms import Normaliser
from transfer.frozen.recipes import LogisticRecipe, Norm

# Of L-BFGS; evaluations of the loss are limited to torch's default for this number of iterations.
MAX_ITERATIONS, MAX_EVALUATIONS = 100, 125


def fit_logistic(
    features: Tensor, labels: Tensor, num_classes: int, l2: float
) -> tuple[Tensor, Tensor, bool]:
    """Fit a multinomial logistic regression by L-BFGS.

    Args:
        features: (N, D) float32, normalised; labels: (N,).
        l2: weight of the squared norm of the classifier's weights, added to the mean loss.

    Returns:
        Weights (D, K), bias (K,), and whether the fit converged.
    """
    weight = torch.zeros(features.shape[1], num_classes, device=features.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        max_eval=MAX_EVALUATIONS,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weight + bias, labels) + l2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    state = optimizer.state[weight]
    converged = state["n_iter"] < MAX_ITERATIONS and state["func_evals"] < MAX_EVALUATIONS
    return weight.detach(), bias.detach(), converged


def probe_logistic(
    train: TrainingSubset,
    val: StoredFeatures,
    feature_sets: Sequence[FeatureSet],
    recipe: LogisticRecipe,
    *,
    seed: int,
    run: RunDir,
    device: torch.device,
) -> ProbeResult:
    """Choose feature set, norm and l2 by cross-validation, fit on all training images, and score `val`.

    A class of one image is learnt in every fold. If no class has two images, nothing can be compared; then
    the last feature set, the last norm and the strongest l2 are taken.
    """
    folds = assign_folds(train.labels, recipe.folds, seed)
    compared: list[dict[str, Any]] = []
    note: str | None = "nothing compared: no class has two images"
    if folds is None:
        chosen = {**feature_sets[-1].to_json(), "norm": recipe.norm[-1], "l2": max(recipe.l2)}
    else:
        compared = _compare(train, feature_sets, recipe, folds.to(device), run)
        chosen, note = best_candidate(compared), _single_image_note(folds, train.num_classes)
    feature_set = FeatureSet.of(chosen)
    features = train.read(feature_set).to(device)
    normaliser = Normaliser([chosen["norm"]], features)
    weight, bias, converged = fit_logistic(
        normaliser.normalise_all(features),
        train.labels.to(device),
        train.num_classes,
        chosen["l2"],
    )
    if not converged:
        run.log(f"logistic: not converged after iterations={MAX_ITERATIONS} of L-BFGS")
    logits = normaliser.normalise_all(val.read(feature_set)) @ weight + bias
    return ProbeResult(rank_logits(logits.cpu().numpy()), chosen, compared, note=note)


def _compare(
    train: TrainingSubset,
    feature_sets: Sequence[FeatureSet],
    recipe: LogisticRecipe,
    folds: Tensor,
    run: RunDir,
) -> list[dict[str, Any]]:
    """Return every candidate with its cross-validated top-1, in percent."""
    device = folds.device
    labels, compared = train.labels.to(device), []
    candidates = len(feature_sets) * len(recipe.norm) * len(recipe.l2)
    with run.display.task("compare", candidates) as task:
        for feature_set in feature_sets:
            features = train.read(feature_set).to(device)
            for norm in recipe.norm:
                for l2 in recipe.l2:
                    top1 = _cross_validate(features, norm, l2, labels, train.num_classes, folds)
                    candidate = {**feature_set.to_json(), "norm": norm, "l2": l2}
                    compared.append({**candidate, "held_out_top1": top1})
                    task.advance()
    return compared


def _single_image_note(folds: Tensor, num_classes: int) -> str | None:
    """Return the record's note on classes of one image, which no fold could hold out."""
    single = int((folds < 0).sum())
    if not single:
        return None
    return f"compared on classes of two images or more: {single} of {num_classes} have one"


def _cross_validate(
    features: Tensor, norm: Norm, l2: float, labels: Tensor, num_classes: int, folds: Tensor
) -> float:
    """Return the top-1, in percent, of predicting each fold from all other images."""
    correct = 0
    for fold in folds[folds >= 0].unique():
        held_out = folds == fold
        x = Normaliser([norm], features[~held_out]).normalise_all(features)
        weight, bias, _ = fit_logistic(x[~held_out], labels[~held_out], num_classes, l2)
        correct += int(((x[held_out] @ weight + bias).argmax(1) == labels[held_out]).sum())
    return 100 * correct / int((folds >= 0).sum())
