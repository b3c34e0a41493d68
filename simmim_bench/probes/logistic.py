"""Logistic regression by L-BFGS, which needs neither a learning rate nor a seed.

The fit stops at convergence, or after `MAX_ITERATIONS` iterations if the weights are hardly regularised. The folds and
strengths that compare feature sets are fitted together.

Legend: N images, D channels, K classes, A active problems.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from simmim_bench.probes.lbfgs import minimise
from simmim_bench.probes.norms import Normaliser
from simmim_bench.recipe import Norm

# Variables of the fits of several feature sets together; more do not fit the cache of a CPU's core.
VARIABLES = 2**17
IMAGES = 1000  # from which on the fits of one feature set keep a core busy; several at a time were 8 % slower
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

    Parts of fewer images than channels are fitted in the span of their images, which holds the weights of every
    iteration: L-BFGS makes the same steps in any orthonormal basis of it.

    Args:
        parts: features (N, D) normalised, and labels (N,), such as those of one fold; N may differ.
        l2: weights of the squared norm of the classifier's weights, added to the mean loss.

    Returns:
        The fits of the first part with every strength, then those of the second, ...
    """
    channels = parts[0][0].shape[1]
    if max(len(y) for _, y in parts) >= channels:
        return _fit_in_place(parts, num_classes, l2)
    reduced, bases = _reduce_to_span([x for x, _ in parts])
    inner = [(x, y) for x, (_, y) in zip(reduced, parts, strict=True)]
    fits = _fit_in_place(inner, num_classes, l2, bases)
    return [
        Fit(fit.weight @ bases[number // len(l2)], fit.bias, fit.converged)
        for number, fit in enumerate(fits)
    ]


def _reduce_to_span(features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return features (N, D) in bases of their rows, (N, M), and the orthonormal bases (M, D), M the largest N."""
    most = max(len(x) for x in features)
    reduced, bases = [], []
    for x in features:
        basis, triangle = torch.linalg.qr(x.double().T)
        missing = most - len(x)
        reduced.append(pad(triangle.T.to(x.dtype), (0, missing)))
        bases.append(pad(basis.T.to(x.dtype), (0, 0, 0, missing)))
    return reduced, bases


def _fit_in_place(
    parts: Sequence[tuple[Tensor, Tensor]],
    num_classes: int,
    l2: Sequence[float],
    bases: Sequence[Tensor] | None = None,
) -> list[Fit]:
    """Fit in the coordinates of the features (N, D).

    Args:
        bases: of each part, (D, channels), where the features were reduced; L-BFGS starts and ends as with all.
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

    def expand(gradients: Tensor, problems: Sequence[int]) -> Tensor:
        """Return the gradients (A, n) for the weights of all channels."""
        if bases is None:
            return gradients
        rows = _rows_by_part([problem // len(l2) for problem in problems])
        by_class = gradients[:, :weights].unflatten(1, (num_classes, channels))
        expanded = [
            by_class[first:end].flatten(0, 1) @ bases[part]
            for part, (first, end) in sorted(rows.items())
        ]
        of_weights = torch.cat(expanded).view(len(gradients), -1)
        return torch.cat([of_weights, gradients[:, weights:]], 1)

    variables = weights + num_classes
    start = torch.zeros(len(parts) * len(l2), variables, device=device, dtype=dtype)
    found, converged = minimise(objective, start, expand)
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
    feature_sets: Iterable[Tensor],
    norm: Norm,
    l2: Sequence[float],
    labels: Tensor,
    num_classes: int,
    folds: Tensor,
) -> Iterator[list[float]]:
    """Yield, for every feature set, the top-1 of every strength, in percent, of predicting each fold from the rest.

    Feature sets of one width that follow each other are fitted together as far as `VARIABLES`, `IMAGES` and `FEATURES`
    allow.

    Args:
        feature_sets: features (N, D) each; labels: (N,).
        folds: the fold that holds out each image, (N,); -1 for an image that is learnt in every fold.
    """
    numbers = folds[folds >= 0].unique().tolist()
    masks = [folds == fold for fold in numbers]
    total = int((folds >= 0).sum())
    for group in _groups(feature_sets, len(masks) * len(l2) * num_classes, len(masks), len(labels)):
        correct = [[0] * len(l2) for _ in group]
        pairs = [(row, mask) for row in range(len(group)) for mask in masks]
        at_once = max(1, FEATURES // group[0].numel())
        for first in range(0, len(pairs), at_once):
            some = pairs[first : first + at_once]
            normalised = [
                Normaliser([norm], group[row][~held_out]).normalise_all(group[row])
                for row, held_out in some
            ]
            parts = [
                (x[~held_out], labels[~held_out])
                for x, (_, held_out) in zip(normalised, some, strict=True)
            ]
            for number, fit in enumerate(fit_jointly(parts, num_classes, l2)):
                x, (row, held_out) = normalised[number // len(l2)], some[number // len(l2)]
                hits = fit.logits(x[held_out]).argmax(1) == labels[held_out]
                correct[row][number % len(l2)] += int(hits.sum())
        yield from ([100 * count / total for count in counts] for counts in correct)


def _groups(
    feature_sets: Iterable[Tensor], rows: int, folds: int, images: int
) -> Iterator[list[Tensor]]:
    """Yield feature sets that are fitted together: equally wide ones that follow each other.

    Args:
        rows: rows of weights of a feature set: fits by classes.
    """
    group: list[Tensor] = []
    for features in feature_sets:
        channels = features.shape[1]
        variables = (len(group) + 1) * rows * min(channels, images)
        kept = (len(group) + 1) * folds * features.numel()
        full = images > IMAGES or variables > VARIABLES or kept > FEATURES
        if group and (full or group[0].shape[1] != channels):
            yield group
            group = []
        group.append(features)
    if group:
        yield group
