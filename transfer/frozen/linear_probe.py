"""The linear-probe protocol: a linear classifier on the features of a frozen backbone.

1. The backbone runs once over the images; `feature_store.py` stores its pooled tokens after every block.
2. Every candidate (feature set x norm x learning rate) is trained on a part of the training images and compared
   by its top-1 on the held-out rest. All norms and rates of a feature set are trained jointly
   (`parallel_heads.py`); several processes divide the feature sets.
3. The best candidate is trained again on all training images, and the validation set is evaluated once.

The recipes are in `recipes.py`: LINEAR (the default), LINEAR_POCKET and LINEAR_CIFAR (small images); and in
`published_recipes.py`. The published ones name a single candidate or few, and train on random crops, which the
backbone processes anew (`LinearRecipe.crops`).

Legend: N images, D channels, S norms, R learning rates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from simmim_bench.display import ProgressTask
from simmim_bench.results.metrics import rank_logits
from transfer.frozen.candidates import ProbeResult, TrainingSubset, best_candidate, hold_out
from transfer.frozen.feature_store import FeatureStore, StoredFeatures
from transfer.frozen.features import FeatureSet, RandomCrop
from transfer.frozen.norms import Normaliser
from transfer.frozen.parallel_heads import ParallelLinearHeads, train_epoch
from transfer.frozen.recipes import LinearRecipe


def probe_linear(
    train: TrainingSubset,
    val: StoredFeatures,
    recipe: LinearRecipe,
    *,
    store: FeatureStore,
    seed: int,
) -> ProbeResult | None:
    """Choose feature set, norm and rate on held-out training images, train on all, and score `val`.

    Returns:
        The result on rank 0; None on the other processes.

    Raises:
        DataError: the classes have too few images to hold some out.
    """
    dist, number = store.dist, 0
    candidates = list_candidates(store.feature_sets, recipe)
    compared: list[dict[str, Any]] = []
    if len(candidates) > 1:
        top1 = _held_out_top1(train, recipe, store, seed)
        if dist.is_main:
            compared = [
                {**candidate, "held_out_top1": score}
                for candidate, score in zip(candidates, top1, strict=True)
            ]
            number = compared.index(best_candidate(compared))
            _log_best_by_block(compared, store)
        number = dist.all_max(number)
    heads = _train_chosen(candidates[number], train, recipe, store, seed)
    if heads is None:
        return None
    logits = heads.predict(val.read(FeatureSet.of(candidates[number])))[0, 0]
    chosen = compared[number] if compared else candidates[number]
    return ProbeResult(rank_logits(logits.numpy()), chosen, compared)


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


def _held_out_top1(
    train: TrainingSubset, recipe: LinearRecipe, store: FeatureStore, seed: int
) -> list[float]:
    """Return every candidate's top-1 on held-out training images, in percent, on rank 0."""
    dist, labels = store.dist, train.labels
    learnt, held_out = hold_out(labels, recipe.held_out, seed)
    own_sets = store.feature_sets[dist.rank :: dist.size]
    own_top1 = torch.zeros(len(own_sets), len(recipe.norm) * len(recipe.base_lr))
    steps = recipe.epochs * (1 if recipe.crops else len(own_sets))
    with store.run.display.task("compare", steps) as task:
        for feature_set, heads in _train(own_sets, recipe, train, learnt, store, seed, task):
            accuracy = heads.accuracy(train.read(feature_set, held_out), labels[held_out])
            own_top1[own_sets.index(feature_set)] = 100 * accuracy.flatten()
    top1 = torch.zeros(len(store.feature_sets), own_top1.shape[1])
    for rank, gathered in enumerate(dist.gather(own_top1)):
        top1[rank :: dist.size] = gathered
    return top1.flatten().tolist()


def _train_chosen(
    candidate: dict[str, Any],
    train: TrainingSubset,
    recipe: LinearRecipe,
    store: FeatureStore,
    seed: int,
) -> ParallelLinearHeads | None:
    """Train one candidate on all training images, on rank 0; the other processes compute crops."""
    single = replace(recipe, norm=(candidate["norm"],), base_lr=(candidate["base_lr"],))
    own_sets = [FeatureSet.of(candidate)] if store.dist.is_main else []
    with store.run.display.task("linear", recipe.epochs) as task:
        trained = [heads for _, heads in _train(own_sets, single, train, None, store, seed, task)]
    return trained[0] if trained else None


def _train(
    feature_sets: Sequence[FeatureSet],
    recipe: LinearRecipe,
    train: TrainingSubset,
    indices: Tensor | None,
    store: FeatureStore,
    seed: int,
    task: ProgressTask,
) -> Iterator[tuple[FeatureSet, ParallelLinearHeads]]:
    """Train the heads of some feature sets; yield each feature set with its trained heads.

    Args:
        indices: positions of the images to learn from; None for all.
    """
    run_epochs = _train_on_random_crops if recipe.crops else _train_on_centre_crops
    return run_epochs(feature_sets, recipe, train, indices, store, seed, task)


def _train_on_centre_crops(
    feature_sets: Sequence[FeatureSet],
    recipe: LinearRecipe,
    train: TrainingSubset,
    indices: Tensor | None,
    store: FeatureStore,
    seed: int,
    task: ProgressTask,
) -> Iterator[tuple[FeatureSet, ParallelLinearHeads]]:
    """Train one feature set after another; the features of each are read once."""
    labels = _labels(train, indices, store)
    for feature_set in feature_sets:
        features = train.read(feature_set, indices).to(store.dist.device)
        heads = _build_heads(features, train.num_classes, recipe, seed)
        for epoch in range(recipe.epochs):
            train_epoch(heads, features, labels, recipe, seed=seed, epoch=epoch)
            task.advance()
        yield feature_set, heads


def _train_on_random_crops(
    feature_sets: Sequence[FeatureSet],
    recipe: LinearRecipe,
    train: TrainingSubset,
    indices: Tensor | None,
    store: FeatureStore,
    seed: int,
    task: ProgressTask,
) -> Iterator[tuple[FeatureSet, ParallelLinearHeads]]:
    """Train all feature sets together, epoch by epoch.

    All processes compute an epoch's crops together. The features of a crop are removed after its last epoch.
    """
    labels = _labels(train, indices, store)
    all_heads: dict[FeatureSet, ParallelLinearHeads] = {}
    # Crops are seeded by an image's index among the images learnt from, whatever else is stored.
    images, rows = train.images, None if indices is None else indices.tolist()
    for epoch in range(recipe.epochs):
        number = epoch % recipe.crops
        crop = RandomCrop(number, recipe.crop_scale, recipe.hflip, recipe.crop_rule)
        stored = store.load_or_compute(images, crop)
        for feature_set in feature_sets:
            features = stored.read(feature_set, rows).to(store.dist.device)
            if feature_set not in all_heads:
                all_heads[feature_set] = _build_heads(features, train.num_classes, recipe, seed)
            train_epoch(all_heads[feature_set], features, labels, recipe, seed=seed, epoch=epoch)
        if epoch + recipe.crops >= recipe.epochs:
            store.discard(images, crop)
        task.advance()
    yield from all_heads.items()


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
