"""Logistic regression by L-BFGS, which needs neither a learning rate nor a seed.

The fit stops at convergence, or after `MAX_ITERATIONS` iterations if the weights are hardly regularised. The folds and
strengths that compare one feature set are fitted together.

Legend: N images, D channels, K classes, A active problems.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
    # Only the logits of unequal parts are padded: with any class, and without weight in the loss.
    labels = pad_sequence([y for _, y in parts], batch_first=True)
    shares = pad_sequence(
        [some.new_full((len(y),), 1 / len(y)) for _, y in parts], batch_first=True
    )

    def objective(variables: Tensor, problems: Sequence[int]) -> tuple[Tensor, Tensor]:
        weight, bias = variables[:, :weights], variables[:, weights:]
        chosen = torch.tensor(problems, device=device)
        losses = (strengths[chosen] * weight.square()).sum(1)
        gradients = torch.cat([2 * strengths[chosen] * weight, torch.zeros_like(bias)], 1)
        rows = _rows_by_part([problem // len(l2) for problem in problems])
        part = chosen // len(l2)
        step = max(1, LOGITS // bias.numel())
        for first in range(0, labels.shape[1], step):
            images = slice(first, first + step)
            features = {own: parts[number][0][images] for number, own in rows.items()}
            _add_cross_entropy(
                features,
                labels[part, images],
                shares[part, images],
                weight.unflatten(1, (num_classes, channels)),
                bias,
                losses,
                gradients,
            )
        return losses, gradients

    variables = weights + num_classes
    start = torch.zeros(len(parts) * len(l2), variables, device=device, dtype=dtype)
    found, converged = minimise(objective, start)
    return [
        Fit(row[:weights].view(num_classes, channels), row[weights:], done)
        for row, done in zip(found, converged, strict=True)
    ]


def _rows_by_part(parts: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return the first row of each part and the row after its last; the rows of a part follow each other."""
    return {part: (bisect_left(parts, part), bisect_right(parts, part)) for part in set(parts)}


def _add_cross_entropy(
    features: Mapping[tuple[int, int], Tensor],
    labels: Tensor,
    shares: Tensor,
    weight: Tensor,
    bias: Tensor,
    losses: Tensor,
    gradients: Tensor,
) -> None:
    """Add the cross-entropy of A classifiers to their losses (A,), and its gradients, (A, K D + K).

    Args:
        features: (n, D) of the images that the classifiers from one row to another learn; n <= N.
        labels, shares: (A, N), the class of each image and its weight in the loss.
        weight: (A, K, D); bias: (A, K).
    """
    # The images are the last dimension: a softmax over the last one, of few classes, does not vectorise.
    logits = torch.zeros(*bias.shape, labels.shape[1], device=bias.device, dtype=bias.dtype)
    for (first, end), x in features.items():
        product = weight[first:end].flatten(0, 1) @ x.T
        logits[first:end, :, : len(x)] = product.unflatten(0, (end - first, -1))
    log = logits.add_(bias[:, :, None]).log_softmax(1)
    target = labels[:, None]
    losses -= (log.gather(1, target)[:, 0] * shares).sum(1)
    error = log.exp_().scatter_add_(1, target, log.new_full((1,), -1.0).expand_as(target))
    error *= shares[:, None]
    classes = bias.shape[1]
    for (first, end), x in features.items():
        own = error[first:end].flatten(0, 1)[:, : len(x)] @ x
        gradients[first:end, :-classes] += own.view(end - first, -1)
    gradients[:, -classes:] += error.sum(2)


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
