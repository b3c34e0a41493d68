"""Scores on frozen features: `linear`, `knn`, and `fewshot` by a linear classifier.

In: a checkpoint, a folder in ImageNet's layout, a recipe. Out: logits of every validation image, and
the record computed from them. One pass of the frozen backbone gives features after every block; which of
them serve, and with what norm, rate, weight decay or number of neighbours, is chosen on training images
alone, so that the validation set is touched once. That MIM features are best in the middle of the network
is SimMIM's own remark (github.com/microsoft/SimMIM/issues/14).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.sources import check_same_classes, class_folders
from simmim_bench.distributed import DistContext, best_device
from simmim_bench.files import write_json
from simmim_bench.results.metrics import write_ranking
from simmim_bench.results.record import Record, write_record
from simmim_bench.runs.run_dir import RunDir
from transfer.fewshot import few_shot_images, split_sha256
from transfer.finetune.run import describe, describe_split
from transfer.frozen.candidates import ProbeResult, TrainingSubset, hold_out
from transfer.frozen.feature_store import Features, FeatureStore
from transfer.frozen.features import feature_sets
from transfer.frozen.knn import probe_knn
from transfer.frozen.linear_probe import list_candidates, probe_linear
from transfer.frozen.logistic import probe_logistic
from transfer.frozen.recipes import FrozenRecipe, KnnRecipe, LinearRecipe, LogisticRecipe


def run_probe(
    task: str,
    *,
    checkpoint: Checkpoint,
    data: Path,
    run: RunDir,
    recipe: FrozenRecipe,
    deviates: dict[str, Any],
    seed: int,
    fraction: float = 1.0,
    split: Path | None = None,
    features: Path | None = None,
    dist: DistContext | None = None,
) -> Record | None:
    """Score frozen features.

    Args:
        team: the processes that share the pass over the images, and a sweep; the main one does the rest.
        features: folder in which features are kept, so that several tasks share one pass of the
            backbone; the run's own by default.
        task: "linear", "knn" or "fewshot".
        fraction: share of the training images that `fewshot` may see, the same number from every class.
        split: a file that lists them instead.

    Raises:
        UsageError: a recipe that asks for features which the backbone does not have.
        DataError: images that cannot be used, too few to compare on, or a checkpoint that does not fit.
    """
    train, val = class_folders(data, "train"), class_folders(data, "val")
    check_same_classes(train, val)
    described = describe(data, train, val)
    shown = None
    if task == "fewshot":
        shown = few_shot_images(train, fraction, seed, split)
        described |= describe_split(train.subset(shown), split)
    dist = dist or DistContext(device=best_device())
    store = FeatureStore(
        folder=features or run.path / "features",
        checkpoint=checkpoint,
        recipe=recipe,
        sets=tuple(feature_sets(recipe, checkpoint.spec)),
        seed=seed,
        run=run,
        dist=dist,
    )
    if isinstance(recipe, LinearRecipe) and len(list_candidates(store.sets, recipe)) > 1:
        learnt = train if shown is None else train.subset(shown)
        # Too few images are refused before the pass, not after it.
        hold_out(torch.tensor(learnt.labels), recipe.held_out, seed)
    if shown is not None and dist.all_max(not store.has(train)):
        train, shown = train.subset(shown), None  # the others are not asked for
    seen = TrainingSubset(train, shown, store.of(train))
    leave_one_out = isinstance(recipe, KnnRecipe) and recipe.leave_one_out
    val_features = None if leave_one_out else store.of(val)
    outcome = _probe_result(recipe, seen, val_features, store, seed)
    if outcome is None:
        return None
    chosen = ", ".join(f"{key} {value}" for key, value in outcome.chosen.items())
    run.log(f"chosen on training images: {chosen}")
    if outcome.remark is not None:
        run.log(outcome.remark)
    write_json(run.path / "compared.json", outcome.compared)

    scored = val if outcome.scored is None else seen.images.subset(outcome.scored)
    predictions = run.predictions / "logits.npz"
    write_ranking(predictions, outcome.ranking, np.array(scored.labels))
    return write_record(
        run,
        task=f"fewshot-{fraction:.0%}" if task == "fewshot" else task,
        checkpoint=checkpoint,
        recipe=recipe,
        deviates=deviates,
        seed=seed,
        data={**described, "fingerprint": scored.fingerprint()},
        predictions=predictions,
        evaluated=len(outcome.ranking),
        expected=len(scored),
        images_seen=store.passed,
        dist=dist,
        details={
            **outcome.chosen,
            **({} if outcome.remark is None else {"choice": outcome.remark}),
            "blocks": checkpoint.spec.probed_blocks,
            "candidates": len(outcome.compared) or 1,
            "features_sha256": {
                part: kept.sha256
                for part, kept in (("train", seen.features), ("val", val_features))
                if kept is not None
            },
            "scored": "val" if outcome.scored is None else "train, each by all others",
            "train_images": len(seen.images),
            "train_split_sha256": split_sha256(seen.images),
        },
    )


def _probe_result(
    recipe: FrozenRecipe, seen: TrainingSubset, val: Features | None, store: FeatureStore, seed: int
) -> ProbeResult | None:
    """Let the recipe's kind of classifier learn and score; the main process gets the outcome."""
    if isinstance(recipe, LinearRecipe):
        assert val is not None
        return probe_linear(seen, val, store.sets, recipe, store=store, seed=seed)
    if not store.dist.is_main:
        return None
    alone: dict[str, Any] = {"seed": seed, "run": store.run, "device": store.dist.device}
    if isinstance(recipe, KnnRecipe):
        return probe_knn(seen, val, store.sets, recipe, **alone)
    assert isinstance(recipe, LogisticRecipe)
    assert val is not None
    return probe_logistic(seen, val, store.sets, recipe, **alone)
