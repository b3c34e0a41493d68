"""The linear-probe protocol: a linear classifier on the features of a frozen backbone.

1. The backbone runs once over the images; `feature_store.py` stores its pooled tokens after every block.
2. Every candidate (feature set x norm x learning rate) is trained on a part of the training images and compared
   by its top-1 on the held-out rest. All norms and rates of a feature set are trained jointly
   (`parallel_heads.py`); several processes divide the feature sets.
3. The best candidate is trained again on all training images, and the validation set is evaluated once.

Protocols on random crops train every candidate on the part and on all images in the same pass over the crops
(`crop_features.py`): a second pass would decode and forward every crop again.

The recipes are in `recipes.py`: LINEAR (the default), LINEAR_POCKET and LINEAR_CIFAR (small images); and in
`published_recipes.py`. The published ones name a single candidate or few, and train on random crops, which the
backbone processes anew (`LinearRecipe.crops`).

Legend: N images, D channels, S norms, R learning rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simmim_bench.display import ProgressTask
from simmim_bench.probes.norms import Normaliser
from simmim_bench.results.metrics import rank_logits
from transfer.frozen.candidates import (
    LinearHead,
    ProbeResult,
    TrainingSubset,
    best_candidate,
    hold_out,
)
from transfer.frozen.crop_features import CropFeatures
from transfer.frozen.feature_store import FeatureStore, StoredFeatures
from transfer.frozen.features import FeatureSet
from transfer.frozen.parallel_heads import ParallelLinearHeads, train_epoch
from transfer.frozen.recipes import LinearRecipe


def probe_linear(
    train: TrainingSubset,
    val: StoredFeatures,
    recipe: LinearRecipe,
    *,
    val_labels: Sequence[int] | np.ndarray,
    store: FeatureStore,
    seed: int,
) -> ProbeResult | None:
    """Choose feature set, norm and rate on held-out training images, train on all, and score `val`.

    Args:
        val_labels: class numbers of the images of `val`.

    Returns:
        The result on rank 0; None on the other processes.

    Raises:
        DataError: the classes have too few images to hold some out.
    """
    candidates = list_candidates(store.feature_sets, recipe)
    probe = _probe_on_random_crops if recipe.crops else _probe_on_centre_crops
    predicted, number, top1 = probe(candidates, train, val, recipe, store, seed)
    if predicted is None:
        return None
    logits, head = predicted
    compared = _with_scores(candidates, top1)
    chosen = compared[number] if compared else candidates[number]
    return ProbeResult(rank_logits(logits.numpy(), val_labels), chosen, compared, head=head)


# Logits (N, K) of the chosen candidate and its classifier.
Predicted = tuple[Tensor, LinearHead]
# The chosen candidate's logits and classifier, on rank 0; its number; and every candidate's held-out top-1, on rank 0,
# if there are several.
Scored = tuple[Predicted | None, int, list[float]]


def _probe_on_centre_crops(
    candidates: list[dict[str, Any]],
    train: TrainingSubset,
    val: StoredFeatures,
    recipe: LinearRecipe,
    store: FeatureStore,
    seed: int,
) -> Scored:
    """Compare the candidates; train the best one again on all images, whose features are stored."""
    dist, labels, number = store.dist, train.labels, 0
    top1: list[float] = []
    if len(candidates) > 1:
        learnt, held_out = hold_out(labels, recipe.held_out, seed)
        own_sets = store.feature_sets[dist.rank :: dist.size]
        own_top1 = torch.zeros(len(own_sets), len(recipe.norm) * len(recipe.base_lr))
        with store.run.display.task("compare", recipe.epochs * len(own_sets)) as task:
            for row, feature_set in enumerate(own_sets):
                heads = _train(feature_set, recipe, train, learnt, store, seed, task)
                own_top1[row] = _top1(heads, train, feature_set, held_out)
        top1 = _gather_top1(own_top1, store)
        number = _choose(candidates, top1, store)
    if not dist.is_main:
        return None, number, top1
    chosen = candidates[number]
    single = replace(recipe, norm=(chosen["norm"],), base_lr=(chosen["base_lr"],))
    feature_set = FeatureSet.of(chosen)
    with store.run.display.task("linear", recipe.epochs) as task:
        heads = _train(feature_set, single, train, None, store, seed, task)
    return (heads.predict(val.read(feature_set))[0, 0], heads.head(0, 0)), number, top1


def _probe_on_random_crops(
    candidates: list[dict[str, Any]],
    train: TrainingSubset,
    val: StoredFeatures,
    recipe: LinearRecipe,
    store: FeatureStore,
    seed: int,
) -> Scored:
    """Train every candidate on a part of the images and on all of them, in one pass over the crops."""
    dist, labels, number = store.dist, train.labels, 0
    parts: list[Tensor | None] = [None]
    if len(candidates) > 1:
        learnt, held_out = hold_out(labels, recipe.held_out, seed)
        parts = [learnt, None]
    by_process = [store.feature_sets[rank :: dist.size] for rank in range(dist.size)]
    own_sets = by_process[dist.rank]
    trained = _train_on_random_crops(by_process, recipe, train, parts, store, seed)
    top1: list[float] = []
    if len(candidates) > 1:
        own_top1 = torch.zeros(len(own_sets), len(recipe.norm) * len(recipe.base_lr))
        for row, feature_set in enumerate(own_sets):
            own_top1[row] = _top1(trained[feature_set][0], train, feature_set, held_out)
        top1 = _gather_top1(own_top1, store)
        number = _choose(candidates, top1, store)
    # The process that has trained the chosen candidate predicts.
    chosen = candidates[number]
    own: Predicted | None = None
    feature_set = FeatureSet.of(chosen)
    if feature_set in own_sets:
        heads = trained[feature_set][-1]
        setting = recipe.norm.index(chosen["norm"]), recipe.base_lr.index(chosen["base_lr"])
        own = heads.predict(val.read(feature_set))[setting], heads.head(*setting)
    found = [predicted for predicted in dist.gather(own) if predicted is not None]
    return (found[0] if found else None), number, top1


def _with_scores(candidates: list[dict[str, Any]], top1: list[float]) -> list[dict[str, Any]]:
    """Return the candidates with their held-out top-1; none if nothing was compared."""
    if not top1:
        return []
    return [
        {**candidate, "held_out_top1": score}
        for candidate, score in zip(candidates, top1, strict=True)
    ]


def _choose(candidates: list[dict[str, Any]], top1: list[float], store: FeatureStore) -> int:
    """Return the number of the best candidate, which rank 0 knows, on every process."""
    number = 0
    if store.dist.is_main:
        compared = _with_scores(candidates, top1)
        number = compared.index(best_candidate(compared))
        _log_best_by_block(compared, store)
    return store.dist.all_max(number)


def _top1(
    heads: ParallelLinearHeads, train: TrainingSubset, feature_set: FeatureSet, held_out: Tensor
) -> Tensor:
    """Return the top-1 of all heads of a feature set on held-out images, (S R,), in percent."""
    accuracy = heads.accuracy(train.read(feature_set, held_out), train.labels[held_out])
    return 100 * accuracy.flatten()


def _gather_top1(own_top1: Tensor, store: FeatureStore) -> list[float]:
    """Return every candidate's top-1 on rank 0, from those of each process's feature sets."""
    dist = store.dist
    top1 = torch.zeros(len(store.feature_sets), own_top1.shape[1])
    for rank, gathered in enumerate(dist.gather(own_top1)):
        top1[rank :: dist.size] = gathered
    return top1.flatten().tolist()


def list_candidates(
    feature_sets: Sequence[FeatureSet], recipe: LinearRecipe
) -> list[dict[str, Any]]:
    """Return all candidates of a recipe: every feature set with every norm and every rate."""
    return [
        {**feature_set.to_json(), "norm": norm, "base_lr": rate}
        for feature_set in feature_sets
        for norm in recipe.norm
        for rate in recipe.base_lr
    ]


def _train(
    feature_set: FeatureSet,
    recipe: LinearRecipe,
    train: TrainingSubset,
    indices: Tensor | None,
    store: FeatureStore,
    seed: int,
    task: ProgressTask,
) -> ParallelLinearHeads:
    """Train the heads of a feature set on centre crops, whose features are read once.

    Args:
        indices: positions of the images to learn from; None for all.
    """
    labels = _labels(train, indices, store)
    features = train.read(feature_set, indices).to(store.dist.device)
    heads = _build_heads(features, train.num_classes, recipe, seed)
    normalised = heads.normalise(features)
    for epoch in range(recipe.epochs):
        train_epoch(heads, features, labels, recipe, seed=seed, epoch=epoch, normalised=normalised)
        task.advance()
    return heads


def _train_on_random_crops(
    by_process: Sequence[Sequence[FeatureSet]],
    recipe: LinearRecipe,
    train: TrainingSubset,
    parts: Sequence[Tensor | None],
    store: FeatureStore,
    seed: int,
) -> dict[FeatureSet, list[ParallelLinearHeads]]:
    """Train the heads of this process's feature sets, once for each part of the images, epoch by epoch.

    Args:
        by_process: the feature sets of every process.
        parts: positions of the images to learn from; None for all.
    """
    own_sets = by_process[store.dist.rank]
    crops = CropFeatures(store, train.images, recipe, by_process)
    labels = [_labels(train, part, store) for part in parts]
    trained: dict[FeatureSet, list[ParallelLinearHeads]] = {}

    # A function, so that no name holds a crop's features, or those on the device, while the next crop is forwarded.
    def train_on(stored: StoredFeatures, epoch: int) -> None:
        for feature_set in own_sets:
            read = stored.read(feature_set).to(store.dist.device)
            features = [read if part is None else read[part.to(read.device)] for part in parts]
            if feature_set not in trained:
                trained[feature_set] = [
                    _build_heads(some, train.num_classes, recipe, seed) for some in features
                ]
            for heads, some, truth in zip(trained[feature_set], features, labels, strict=True):
                train_epoch(heads, some, truth, recipe, seed=seed, epoch=epoch)

    with store.run.display.task("linear", recipe.epochs) as task:
        for epoch in range(recipe.epochs):
            train_on(crops.of_epoch(epoch), epoch)
            crops.release(epoch)
            task.advance()
    return trained


def _labels(train: TrainingSubset, indices: Tensor | None, store: FeatureStore) -> Tensor:
    """Return the class numbers of the images to learn from, (N,), on the run's device."""
    labels = train.labels
    return (labels if indices is None else labels[indices]).to(store.dist.device)


def _build_heads(
    features: Tensor, num_classes: int, recipe: LinearRecipe, seed: int
) -> ParallelLinearHeads:
    """Build S x R untrained heads for features (N, D), on the features' device."""
    normaliser = Normaliser(recipe.norm, features, batch_images=recipe.norm_images)
    return ParallelLinearHeads(
        normaliser, features.shape[1], num_classes, recipe, seed=seed, device=features.device
    )


def _log_best_by_block(compared: list[dict[str, Any]], store: FeatureStore) -> None:
    """Log the best held-out top-1 of every block."""
    blocks: dict[int, float] = {}
    for candidate in compared:
        block, top1 = candidate["block"], candidate["held_out_top1"]
        blocks[block] = max(top1, blocks.get(block, 0.0))
    store.run.log(
        "linear: best held-out top-1 by block: "
        + ", ".join(f"{block} {top1:.1f}" for block, top1 in blocks.items())
    )
