"""Logistic regression by L-BFGS, which needs neither a learning rate nor a seed.

The fit stops at convergence, or after `MAX_ITERATIONS` iterations if the weights are hardly regularised. The folds and
strengths that compare one feature set are fitted together.

Legend: N images, D channels, K classes, F folds, R strengths of regularisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simmim_bench.probes.lbfgs import minimise
from simmim_bench.probes.norms import Normaliser
from simmim_bench.recipe import Norm

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
        folds: the fold that holds out each image, (N,); -1 for an image that is learnt in every fold.
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
