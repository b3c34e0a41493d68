"""Time the cross-validation of a logistic regression, each fit alone by torch's L-BFGS and all fits together.

    python benchmarks/logistic.py --images 400 --channels 128 --classes 10

The features are random, around a random centre for each class; their channels are correlated, as those of a backbone,
and most fits with weak regularisation do not converge. Folds, norm and strengths are those of the recipe `logistic`.
Both alternatives predict the held-out images equally in float64. In float32 a fit that is cut off has amplified
rounding: torch's fits, too, predict some images otherwise when the images come in another order.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import compare, report
from torch import Tensor

from simmim_bench.distributed import best_device
from simmim_bench.probes.lbfgs import HISTORY, MAX_EVALUATIONS, MAX_ITERATIONS
from simmim_bench.probes.logistic import Fit, fit_jointly
from simmim_bench.probes.norms import Normaliser
from transfer.frozen.candidates import assign_folds
from transfer.frozen.recipes import LOGISTIC

Parts = list[tuple[Tensor, Tensor]]


def main() -> None:
    """Parse the arguments, time the alternatives and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    device, classes = best_device(), arguments.classes
    features, labels = (
        x.to(device) for x in sample_features(arguments.images, arguments.channels, classes)
    )
    folds = assign_folds(labels.cpu(), LOGISTIC.folds, 0)
    assert folds is not None
    folds = folds.to(device)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1)).to(device)
    alone = partial(score_strengths, fit_alone, classes)
    together = partial(score_strengths, fit_jointly, classes)
    fits = LOGISTIC.folds * len(LOGISTIC.l2)
    timings = compare(
        {
            f"torch's L-BFGS, {fits} fits": lambda: alone(features, labels, folds),
            "ours, together": lambda: together(features, labels, folds),
        },
        rounds=arguments.rounds,
    )
    expected, found = alone(features, labels, folds), together(features, labels, folds)
    reordered = alone(features[order], labels[order], folds[order])
    exact = alone(features.double(), labels, folds), together(features.double(), labels, folds)
    report(
        f"logistic regression of {arguments.images} images, {arguments.channels} channels, {classes} classes: "
        f"{LOGISTIC.folds} folds, {len(LOGISTIC.l2)} strengths",
        timings,
        arguments.json,
        top1_of_torch=round(max(expected), 2),
        top1_of_ours=round(max(found), 2),
        largest_difference_of_a_strength=largest_difference(expected, found),
        of_torch_with_reordered_images=largest_difference(expected, reordered),
        of_both_in_float64=largest_difference(*exact),
    )


def sample_features(images: int, channels: int, classes: int) -> tuple[Tensor, Tensor]:
    """Sample features (N, D), whose k-th principal component has a deviation of 1 / k, and their labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    centres = 0.3 * torch.randn(classes, channels, generator=generator)
    components = centres[labels] + torch.randn(images, channels, generator=generator)
    rotation = torch.linalg.qr(torch.randn(channels, channels, generator=generator)).Q
    return components / torch.arange(1, channels + 1) @ rotation, labels


def score_strengths(
    fit: Callable[[Parts, int, Sequence[float]], list[Fit]],
    classes: int,
    features: Tensor,
    labels: Tensor,
    folds: Tensor,
) -> list[float]:
    """Return the top-1, in percent, of predicting each fold from the others, for every strength."""
    masks = [folds == fold for fold in range(LOGISTIC.folds)]
    normalised = [
        Normaliser(LOGISTIC.norm, features[~mask]).normalise_all(features).to(features.dtype)
        for mask in masks
    ]
    parts = [(x[~mask], labels[~mask]) for x, mask in zip(normalised, masks, strict=True)]
    correct = [0] * len(LOGISTIC.l2)
    for number, fitted in enumerate(fit(parts, classes, LOGISTIC.l2)):
        fold, strength = divmod(number, len(LOGISTIC.l2))
        hits = fitted.logits(normalised[fold][masks[fold]]).argmax(1) == labels[masks[fold]]
        correct[strength] += int(hits.sum())
    return [100 * count / len(labels) for count in correct]


def fit_alone(parts: Parts, classes: int, strengths: Sequence[float]) -> list[Fit]:
    """Fit one regression after another with torch's optimizer and autograd."""
    return [_fit(x, labels, classes, l2) for x, labels in parts for l2 in strengths]


def _fit(x: Tensor, labels: Tensor, classes: int, l2: float) -> Fit:
    weight = x.new_zeros(x.shape[1], classes, requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        max_eval=MAX_EVALUATIONS,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight + bias, labels) + l2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    converged = optimizer.state[weight]["n_iter"] < MAX_ITERATIONS
    return Fit(weight.detach().T, bias.detach(), converged)


def largest_difference(some: Sequence[float], others: Sequence[float]) -> float:
    """Return the largest difference of two lists of top-1, in percent."""
    return round(max(abs(a - b) for a, b in zip(some, others, strict=True)), 3)


if __name__ == "__main__":
    main()
