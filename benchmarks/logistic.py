"""Time the cross-validation of a logistic regression, each fit alone by torch's L-BFGS and all fits together.

    python benchmarks/logistic.py --images 1280 --channels 384 --classes 10

The features are random, around a random centre for each class; the folds, norm and strengths are those of the recipe
`logistic`. Both alternatives should predict the held-out images equally well.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import compare, report
from torch import Tensor

from simmim_bench.distributed import best_device
from simmim_bench.probes.lbfgs import HISTORY, MAX_EVALUATIONS, MAX_ITERATIONS
from simmim_bench.probes.logistic import cross_validate
from simmim_bench.probes.norms import Normaliser
from transfer.frozen.candidates import assign_folds
from transfer.frozen.recipes import LOGISTIC


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
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(arguments.images) % classes
    centres = 0.15 * torch.randn(classes, arguments.channels, generator=generator)
    noise = torch.randn(arguments.images, arguments.channels, generator=generator)
    features = (centres[labels] + noise).to(device)
    folds = assign_folds(labels, LOGISTIC.folds, 0)
    assert folds is not None
    labels, folds = labels.to(device), folds.to(device)
    top1: dict[str, list[float]] = {}

    def fit_alone() -> None:
        top1["alone"] = [
            _cross_validate(features, l2, labels, classes, folds) for l2 in LOGISTIC.l2
        ]

    def fit_together() -> None:
        top1["together"] = cross_validate(
            features, LOGISTIC.norm[0], LOGISTIC.l2, labels, classes, folds
        )

    fits = LOGISTIC.folds * len(LOGISTIC.l2)
    timings = compare(
        {f"torch's L-BFGS, {fits} fits": fit_alone, "ours, together": fit_together},
        rounds=arguments.rounds,
    )
    largest = max(abs(a - b) for a, b in zip(top1["alone"], top1["together"], strict=True))
    report(
        f"logistic regression of {arguments.images} images, {arguments.channels} channels, {classes} classes: "
        f"{LOGISTIC.folds} folds, {len(LOGISTIC.l2)} strengths",
        timings,
        arguments.json,
        top1_of_the_best=round(max(top1["together"]), 2),
        largest_difference_of_top1=round(largest, 3),
    )


def _cross_validate(
    features: Tensor, l2: float, labels: Tensor, classes: int, folds: Tensor
) -> float:
    """Return the top-1, in percent, of fitting one fold after another."""
    correct = 0
    for fold in range(LOGISTIC.folds):
        held_out = folds == fold
        x = Normaliser(LOGISTIC.norm, features[~held_out]).normalise_all(features)
        weight, bias = _fit(x[~held_out], labels[~held_out], classes, l2)
        correct += int(((x[held_out] @ weight + bias).argmax(1) == labels[held_out]).sum())
    return 100 * correct / len(labels)


def _fit(x: Tensor, labels: Tensor, classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """Fit one regression with torch's optimizer and autograd."""
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
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
    return weight.detach(), bias.detach()


if __name__ == "__main__":
    main()
