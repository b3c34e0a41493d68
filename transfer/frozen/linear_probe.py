"""The linear probe: every feature set, norm and learning rate side by side, then the best one on all images.

In: features of training and validation images. Out: logits of the validation images. Processes share the
feature sets among them.

Legend: N images, D channels, S norms, R learning rates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from simmim_bench.display import Task
from simmim_bench.results.metrics import rank_logits
from transfer.frozen.candidates import ProbeResult, TrainingSubset, best, hold_out
from transfer.frozen.feature_store import Features, FeatureStore
from transfer.frozen.features import Crop, FeatureSet
from transfer.frozen.norms import Normaliser
from transfer.frozen.parallel_heads import ParallelLinearHeads, train_epoch
from transfer.frozen.recipes import LinearRecipe


def probe_linear(
    seen: TrainingSubset,
    val: Features,
    sets: Sequence[FeatureSet],
    recipe: LinearRecipe,
    *,
    store: FeatureStore,
    seed: int,
) -> ProbeResult | None:
    """Choose feature set, norm and rate on held-out training images, train on all, and score `val`.

    Returns:
        None on all processes but the main one.

    Raises:
        DataError: too few images a class to hold some out.
    """
    dist, number = store.dist, 0
    candidates = list_candidates(sets, recipe)
    compared: list[dict[str, Any]] = []
    if len(candidates) > 1:
        top1 = _compare(seen, sets, recipe, store, seed)
        if dist.is_main:
            compared = [
                {**candidate, "held_out_top1": score}
                for candidate, score in zip(candidates, top1, strict=True)
            ]
            number = compared.index(best(compared))
            _say_by_block(compared, store)
        number = dist.all_max(number)
    chosen = candidates[number]
    one = FeatureSet(chosen["block"], chosen["pooling"])
    single = replace(recipe, norm=(chosen["norm"],), base_lr=(chosen["base_lr"],))
    with store.run.display.task("linear", recipe.epochs) as task:
        mine = [one] if dist.is_main else []
        trained = [t for _, t in _train(mine, single, seen, None, store, seed, task)]
    if not dist.is_main:
        return None
    ranking = rank_logits(trained[0].predict(val.read(one))[0, 0].numpy())
    return ProbeResult(ranking, compared[number] if compared else chosen, compared)


def list_candidates(sets: Sequence[FeatureSet], recipe: LinearRecipe) -> list[dict[str, Any]]:
    """Give everything that a recipe tries."""
    return [
        {**asdict(one), "norm": norm, "base_lr": rate}
        for one in sets
        for norm in recipe.norm
        for rate in recipe.base_lr
    ]


def _compare(
    seen: TrainingSubset,
    sets: Sequence[FeatureSet],
    recipe: LinearRecipe,
    store: FeatureStore,
    seed: int,
) -> list[float]:
    """Give every candidate's top-1 on held-out training images, in percent; the main process gets them."""
    dist, labels = store.dist, seen.labels
    learnt, held_out = hold_out(labels, recipe.held_out, seed)
    mine = sets[dist.rank :: dist.size]
    found = torch.zeros(len(mine), len(recipe.norm) * len(recipe.base_lr))
    with store.run.display.task("compare", recipe.epochs * (1 if recipe.crops else len(mine))) as t:
        for one, trained in _train(mine, recipe, seen, learnt, store, seed, t):
            right = trained.accuracy(seen.read(one, held_out), labels[held_out])
            found[mine.index(one)] = 100 * right.flatten()
    shares = dist.gather(found)
    top1 = torch.zeros(len(sets), found.shape[1])
    for rank, share in enumerate(shares):
        top1[rank :: dist.size] = share
    return top1.flatten().tolist()


def _train(
    sets: Sequence[FeatureSet],
    recipe: LinearRecipe,
    seen: TrainingSubset,
    part: Tensor | None,
    store: FeatureStore,
    seed: int,
    task: Task,
) -> Iterator[tuple[FeatureSet, ParallelLinearHeads]]:
    """Train on each of some feature sets; give each when it is done.

    Centre crops are read once a set. Random crops are made by all processes together, an epoch at a time,
    and every set learns from them before they are dropped.

    Args:
        part: numbers of the images to learn from; None for all.
    """
    device = store.dist.device
    labels = (seen.labels if part is None else seen.labels[part]).to(device)

    def begin(features: Tensor) -> ParallelLinearHeads:
        normaliser = Normaliser(recipe.norm, features.to(device))
        return ParallelLinearHeads(
            normaliser, features.shape[1], seen.classes, recipe, seed=seed, device=device
        )

    if not recipe.crops:
        for one in sets:
            features = seen.read(one, part).to(device)
            trained = begin(features)
            for epoch in range(recipe.epochs):
                train_epoch(trained, features, labels, recipe, seed=seed, epoch=epoch)
                task.advance()
            yield one, trained
        return

    all_trained: dict[FeatureSet, ParallelLinearHeads] = {}
    # A crop is drawn by its image's number: among those learnt from, whatever else the store has.
    images, rows = seen.images, None if part is None else part.tolist()
    for epoch in range(recipe.epochs):
        crop = Crop(epoch % recipe.crops, recipe.crop_scale, recipe.hflip)
        crops = store.of(images, crop)
        for one in sets:
            features = crops.read(one, rows).to(device)
            if one not in all_trained:
                all_trained[one] = begin(features)
            train_epoch(all_trained[one], features, labels, recipe, seed=seed, epoch=epoch)
        if epoch + recipe.crops >= recipe.epochs:
            store.drop(images, crop)
        task.advance()
    yield from all_trained.items()


def _say_by_block(compared: list[dict[str, Any]], store: FeatureStore) -> None:
    """Log the best of every block: where in the network the classes can be read."""
    blocks: dict[int, float] = {}
    for candidate in compared:
        block, top1 = candidate["block"], candidate["held_out_top1"]
        blocks[block] = max(top1, blocks.get(block, 0.0))
    store.run.log(
        "best on held-out training images, by block: "
        + ", ".join(f"{block} {top1:.1f}" for block, top1 in blocks.items())
    )
