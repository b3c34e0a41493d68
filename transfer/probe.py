"""Scores on frozen features: `linear`, `knn`, and `fewshot` by logistic regression.

In: a checkpoint, a folder in ImageNet's layout, a recipe. Out: logits of every validation image, and
the record computed from them. One pass of the frozen backbone gives the mean patch token after every
block; which block serves is chosen on training images alone, so that the validation set is touched
once. That MIM features are best in the middle of the network is SimMIM's own remark
(github.com/microsoft/SimMIM/issues/14); k-NN follows DINO (arXiv 2104.14294, section 4.1).

Legend: N images, D channels, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_bench.checkpoint import Checkpoint
from simmim_bench.data import balanced_subset
from simmim_bench.kernels import best_device
from simmim_bench.metrics import write_logits
from simmim_bench.record import Record, write_record
from simmim_bench.rundir import RunDir
from simmim_bench.sources import check_same_classes, class_folders
from simmim_bench.team import Team
from transfer.classification import describe
from transfer.features import are_kept, block_features
from transfer.fewshot import few_shot_images, split_sha256
from transfer.recipes import ProbeRecipe

KNN_CHUNK = 1024  # rows of the similarity matrix at a time


def run_probe(
    task: str,
    *,
    checkpoint: Checkpoint,
    data: Path,
    run: RunDir,
    recipe: ProbeRecipe,
    deviates: dict[str, Any],
    seed: int,
    fraction: float = 1.0,
    split: Path | None = None,
    features: Path | None = None,
    team: Team | None = None,
) -> Record | None:
    """Score frozen features.

    Args:
        team: the processes that share the pass over the images; the main one does the rest.
        features: folder in which features are kept, so that several tasks share one pass of the
            backbone; the run's own by default.
        task: "linear", "knn" or "fewshot".
        fraction: share of the training images that `fewshot` may see, the same number from every class.
        split: a file that lists them instead.

    Raises:
        DataError: images that cannot be used, or a checkpoint that does not fit.
    """
    started = time.monotonic()
    train, val = class_folders(data, "train"), class_folders(data, "val")
    check_same_classes(train, val)
    described = describe(data, train, val)
    shown = list(range(len(train)))
    if task == "fewshot":
        shown = few_shot_images(train, fraction, seed, split)
    team = team or Team(device=best_device())
    store = features or run.path / "features"
    if task == "fewshot" and team.largest(
        not are_kept(checkpoint, train, recipe, store=store, seed=seed)
    ):
        train, shown = train.subset(shown), list(range(len(shown)))  # the others are not asked for
    train_features, val_features = (
        block_features(checkpoint, images, recipe, store=store, run=run, seed=seed, team=team)
        for images in (train, val)
    )
    if not team.is_main:
        return None
    train = train.subset(shown)
    labels = torch.tensor(train.labels)
    classes = len(train.classes)

    def seen(block: int) -> Tensor:
        return train_features.block(block, shown)

    if task == "knn":
        block = max(
            range(train_features.blocks),
            key=lambda b: _accuracy(
                knn_logits(seen(b), labels, seen(b), classes, recipe, leave_one_out=True), labels
            ),
        )
        logits = knn_logits(seen(block), labels, val_features.block(block), classes, recipe)
        chosen: dict[str, Any] = {"block": block + 1, "k": recipe.k}
    else:
        block, l2 = choose_linear(seen, train_features.blocks, labels, classes, recipe, seed)
        weights = fit_linear(seen(block), labels, classes, l2)
        logits = apply_linear(weights, val_features.block(block))
        chosen = {"block": block + 1, "l2": l2}
    run.log(f"chosen on training images: {', '.join(f'{k} {v}' for k, v in chosen.items())}")

    predictions = run.predictions / "logits.npz"
    write_logits(predictions, logits.numpy(), np.array(val.labels))
    return write_record(
        run,
        task=f"fewshot-{fraction:.0%}" if task == "fewshot" else task,
        checkpoint=checkpoint,
        recipe=recipe,
        deviates=deviates,
        seed=seed,
        data=described,
        predictions=predictions,
        evaluated=len(logits),
        expected=len(val),
        wall_time_s=time.monotonic() - started,
        details={
            **chosen,
            "blocks": train_features.blocks,
            "train_images": len(train),
            "train_split_sha256": split_sha256(train),
        },
    )


def knn_logits(
    train: Tensor,
    labels: Tensor,
    queries: Tensor,
    classes: int,
    recipe: ProbeRecipe,
    *,
    leave_one_out: bool = False,
) -> Tensor:
    """Let the k nearest training images vote by cosine similarity.

    Features are standardised by the training images' mean and deviation first: a backbone's largest
    channels say little of the class and would drown the rest.

    Args:
        train: (N, D); labels: (N,); queries: (M, D).
        leave_one_out: queries are the training images; none votes for itself.

    Returns:
        (M, K) sums of exp((similarity - 1) / temperature).
    """
    mean, deviation = train.mean(0), train.std(0).clamp_min(1e-6)
    train = F.normalize((train - mean) / deviation, dim=1)
    queries = F.normalize((queries - mean) / deviation, dim=1)
    k = min(recipe.k, len(train) - int(leave_one_out))
    votes = []
    for start in range(0, len(queries), KNN_CHUNK):
        similarity = queries[start : start + KNN_CHUNK] @ train.T
        if leave_one_out:
            rows = torch.arange(len(similarity))
            similarity[rows, start + rows] = -torch.inf
        nearest, index = similarity.topk(k, dim=1)
        weight = ((nearest - 1) / recipe.temperature).exp()  # at most 1, for float16
        votes.append(torch.zeros(len(similarity), classes).scatter_add_(1, labels[index], weight))
    return torch.cat(votes)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


LinearWeights = tuple[Tensor, Tensor, Tensor, Tensor]


def fit_linear(features: Tensor, labels: Tensor, classes: int, l2: float) -> LinearWeights:
    """Fit a multinomial logistic regression by L-BFGS.

    Features are standardised first, which is what a BatchNorm without weights before the classifier
    does in MAE's protocol (arXiv 2111.06377, appendix A.1). The problem is convex: where it stops does
    not depend on a seed.

    Args:
        features: (N, D); labels: (N,).
        l2: weight of the squared norm of the classifier's weights, per element of the mean loss.

    Returns:
        Mean (D,), deviation (D,), weights (D, K), bias (K,).
    """
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    x = (features - mean) / deviation
    weight = torch.zeros(x.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=100, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight + bias, labels) + l2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return mean, deviation, weight.detach(), bias.detach()


def apply_linear(weights: LinearWeights, features: Tensor) -> Tensor:
    """Give logits (N, K) of features (N, D)."""
    mean, deviation, weight, bias = weights
    return (features - mean) / deviation @ weight + bias


def choose_linear(
    features_of: Callable[[int], Tensor],
    blocks: int,
    labels: Tensor,
    classes: int,
    recipe: ProbeRecipe,
    seed: int,
) -> tuple[int, float]:
    """Choose block and l2 by accuracy on a held-out part of the training images.

    With one image a class there is nothing to hold out: the last block and the strongest l2 serve.

    Args:
        features_of: gives a block's features, (N, D).
    """
    held_out = torch.tensor(balanced_subset(labels.tolist(), recipe.held_out, seed))
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[held_out] = False
    if len(labels[kept].unique()) < classes:
        return blocks - 1, max(recipe.l2)
    scores = {}
    for block in range(blocks):
        features = features_of(block)
        for l2 in recipe.l2:
            weights = fit_linear(features[kept], labels[kept], classes, l2)
            found = apply_linear(weights, features[held_out])
            scores[block, l2] = _accuracy(found, labels[held_out])
    return max(scores, key=lambda candidate: scores[candidate])
