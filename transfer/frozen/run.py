"""Run the tasks on frozen features: `linear`, `knn`, and `fewshot` with a linear classifier.

One pass of the frozen backbone yields features after every block. Feature set, norm and the classifier's settings
are chosen on training images alone, so that the validation set is evaluated once. SimMIM's authors find
that its features are best in the middle of the network (github.com/microsoft/SimMIM/issues/14).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from simmim_bench.data.sources import ImageSource
from simmim_bench.files import write_json
from simmim_bench.results.metrics import classification_scores, write_ranking
from simmim_bench.results.record import Record, write_record
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import RunDir
from transfer.fewshot import split_sha256
from transfer.fitted import write_fitted
from transfer.frozen.candidates import ProbeResult, TrainingSubset, hold_out, log_choice
from transfer.frozen.feature_store import FeatureStore, StoredFeatures
from transfer.frozen.features import feature_sets
from transfer.frozen.fitted_linear import fitted_linear
from transfer.frozen.knn import probe_knn
from transfer.frozen.linear_probe import list_candidates, probe_linear
from transfer.frozen.logistic import probe_logistic
from transfer.frozen.recipes import FrozenRecipe, KnnRecipe, LinearRecipe, LogisticRecipe
from transfer.job import TransferJob
from transfer.split_description import choose_few_shot, describe_data, read_splits


def run_probe(context: RunContext, job: TransferJob[FrozenRecipe]) -> Record | None:
    """Train and score a classifier on frozen features.

    Args:
        context: the run; its processes divide the images to forward, and the candidates to compare.
        job: a job of the task `linear`, `knn` or `fewshot`. Its options are `fraction`, the fraction of the
            training images that `fewshot` may learn from; `split`, a file that lists these images; and
            `features`, the directory of the feature store (by default in the run directory), through which
            several tasks share one pass of the backbone.

    Returns:
        The record on rank 0; None on the other processes.

    Raises:
        UsageError: the recipe names features that the backbone does not have.
        DataError: images that cannot be used, too few images to compare candidates on, or a checkpoint that
            does not fit.
    """
    images = _read_images(context, job)
    store = _open_store(context, job)
    _check_enough_images(job.recipe, store, images, context.seed)
    train = _load_training_subset(store, images)
    leave_one_out = isinstance(job.recipe, KnnRecipe) and job.recipe.leave_one_out
    val = None if leave_one_out else store.load_or_compute(images.val)
    result = _probe(job.recipe, train, val, images.val.labels, store, context.seed)
    if result is None:
        return None
    _write_choice(context.run, result)
    return _write_record(context, job, images, store, train, val, result)


@dataclass(frozen=True)
class _ProbeImages:
    """The images of a job.

    Attributes:
        train, val: all images of the data set.
        few_shot: indices of the training images that may be learnt from; None for all.
        description: the data as the record describes it.
        details: what the record's details say of the few-shot images.
    """

    train: ImageSource
    val: ImageSource
    few_shot: list[int] | None
    description: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def learnt(self) -> ImageSource:
        """The training images that may be learnt from."""
        return self.train if self.few_shot is None else self.train.subset(self.few_shot)


def _read_images(context: RunContext, job: TransferJob[FrozenRecipe]) -> _ProbeImages:
    """List the images of both splits, and choose the few-shot images."""
    train, val = read_splits(context, job)
    description = describe_data(job, train, val)
    if job.task != "fewshot":
        return _ProbeImages(train, val, None, description)
    few_shot = choose_few_shot(context, job, train)
    description |= few_shot.data
    return _ProbeImages(train, val, few_shot.indices, description, few_shot.details)


def _open_store(context: RunContext, job: TransferJob[FrozenRecipe]) -> FeatureStore:
    """Return the feature store of a job, with the feature sets that its recipe names."""
    return FeatureStore(
        folder=job.options.get("features") or context.run.path / "features",
        checkpoint=job.checkpoint,
        recipe=job.recipe,
        feature_sets=tuple(feature_sets(job.recipe, job.checkpoint.spec)),
        seed=context.seed,
        run=context.run,
        dist=context.dist,
    )


def _check_enough_images(
    recipe: FrozenRecipe, store: FeatureStore, images: _ProbeImages, seed: int
) -> None:
    """Raise `DataError` before the pass of the backbone if there are too few images to hold some out."""
    if isinstance(recipe, LinearRecipe) and len(list_candidates(store.feature_sets, recipe)) > 1:
        hold_out(torch.tensor(images.learnt.labels), recipe.held_out, seed)


def _load_training_subset(store: FeatureStore, images: _ProbeImages) -> TrainingSubset:
    """Load the features to learn from.

    Few-shot images are read from the features of all training images if these are stored; otherwise only the
    few-shot images are forwarded.
    """
    if images.few_shot is not None and store.dist.all_max(not store.has(images.train)):
        learnt = images.learnt
        return TrainingSubset(learnt, None, store.load_or_compute(learnt))
    return TrainingSubset(images.train, images.few_shot, store.load_or_compute(images.train))


def _probe(
    recipe: FrozenRecipe,
    train: TrainingSubset,
    val: StoredFeatures | None,
    val_labels: Sequence[int] | np.ndarray,
    store: FeatureStore,
    seed: int,
) -> ProbeResult | None:
    """Train and score the classifier of the recipe's type; return the result on rank 0."""
    if isinstance(recipe, LinearRecipe):
        assert val is not None
        return probe_linear(train, val, recipe, val_labels=val_labels, store=store, seed=seed)
    more: dict[str, Any] = {"seed": seed, "run": store.run, "dist": store.dist}
    if isinstance(recipe, KnnRecipe):
        return probe_knn(train, val, store.feature_sets, recipe, **more)
    assert isinstance(recipe, LogisticRecipe)
    assert val is not None
    return probe_logistic(train, val, store.feature_sets, recipe, val_labels=val_labels, **more)


def _write_choice(run: RunDir, result: ProbeResult) -> None:
    """Log the chosen candidate and write all candidates to `compared.json`."""
    log_choice(run, result.chosen)
    if result.note is not None:
        run.log(result.note)
    write_json(run.path / "compared.json", result.compared)


def _write_record(
    context: RunContext,
    job: TransferJob[FrozenRecipe],
    images: _ProbeImages,
    store: FeatureStore,
    train: TrainingSubset,
    val: StoredFeatures | None,
    result: ProbeResult,
) -> Record:
    """Write the predictions of the scored images and the record."""
    scored = images.val if result.scored is None else train.images.subset(result.scored)
    if result.head is not None:
        fitted = fitted_linear(
            result.head, result.chosen, job.recipe, train.stored.classes, context.seed
        )
        write_fitted(context.run.path, fitted)
    predictions = context.run.predictions / "logits.npz"
    write_ranking(predictions, result.ranking, np.array(scored.labels))
    return write_record(
        context.run,
        task=job.record_name,
        checkpoint=job.checkpoint,
        recipe=job.recipe,
        deviates=job.deviates,
        seed=context.seed,
        data={**images.description, "fingerprint": scored.fingerprint()},
        predictions=predictions,
        evaluated=len(result.ranking),
        expected=len(scored),
        images_seen=store.images_forwarded,
        dist=context.dist,
        details={**_details(job, train, val, result, np.array(scored.labels)), **images.details},
    )


def _details(
    job: TransferJob[FrozenRecipe],
    train: TrainingSubset,
    val: StoredFeatures | None,
    result: ProbeResult,
    labels: np.ndarray,
) -> dict[str, Any]:
    """Return the record's details: the choice, and what it was made on."""
    return {
        **result.chosen,
        **({} if result.note is None else {"choice": result.note}),
        **_scores_by_k(result, labels),
        "blocks": job.checkpoint.spec.probed_blocks,
        "candidates": len(result.compared) or 1,
        "features_sha256": {
            split: stored.sha256
            for split, stored in (("train", train.features), ("val", val))
            if stored is not None
        },
        "scored": "val" if result.scored is None else "train, each by all others",
        "train_images": len(train.images),
        "train_split_sha256": split_sha256(train.images),
    }


def _scores_by_k(result: ProbeResult, labels: np.ndarray) -> dict[str, Any]:
    """Return the scores of k-NN for every k, as DINO's eval_knn.py prints them (lines 238 to 241)."""
    if not result.by_setting:
        return {}
    scores = {
        str(k): classification_scores(ranking.ranked, labels, ranking.classes)
        for k, ranking in result.by_setting.items()
    }
    return {"by_k": scores}
