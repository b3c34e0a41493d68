"""Run the task `attentive`: train attentive probes on live tokens of a frozen backbone, choose one, and score it.

1. One pass of the backbone an epoch over random crops trains the heads of all candidates (block x head x rate), each
   once without the held-out training images and once on all (`probes.py`).
2. The candidates are compared on the held-out images, and the validation set is evaluated once.

A recipe of a single candidate holds out nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from simmim_bench.data.sources import ImageSource
from simmim_bench.files import write_json
from simmim_bench.results.metrics import write_logits
from simmim_bench.results.record import Record, write_record
from simmim_bench.runs.context import RunContext
from simmim_bench.training.kernels import fast_kernels
from transfer.attentive.classifier import AttentiveClassifier, describe_fitted
from transfer.attentive.probes import SINGLE, list_candidates
from transfer.attentive.recipes import AttentiveRecipe
from transfer.attentive.tokens import FrozenTokens, blocks_of
from transfer.attentive.train import (
    Probing,
    build,
    forward_centre_crops,
    held_out_top1,
    train_probes,
)
from transfer.fewshot import split_sha256
from transfer.fitted import write_fitted
from transfer.frozen.candidates import best_candidate, hold_out, log_choice
from transfer.inference import gather_rows
from transfer.job import TransferJob
from transfer.split_description import describe_data, read_splits


def run_attentive(context: RunContext, job: TransferJob[AttentiveRecipe]) -> Record | None:
    """Train attentive probes on `train/`, choose on held-out images of it, and score on `val/`.

    Returns:
        The record on rank 0; None on the other processes.

    Raises:
        UsageError: the recipe names what the backbone does not have.
        DataError: images that cannot be used, too few images to hold some out, or a checkpoint that does not fit.
        DivergedError: the loss is not finite.
    """
    train, val = read_splits(context, job)
    recipe, spec = job.recipe, job.checkpoint.spec
    held_out = None
    if len(list_candidates(blocks_of(recipe, spec), recipe)) > 1:
        labels = torch.tensor(train.labels)
        _, held_out = hold_out(labels, recipe.held_out, context.seed, SINGLE)
    device, benchmark = context.dist.device, spec.is_convolutional
    with fast_kernels(device, recipe.precision, benchmark=benchmark, run=context.run):
        probing = build(context, job, train, _parts(len(train), held_out))
        train_probes(probing)
        number, compared = _choose(probing, held_out)
        classifier = _classifier(probing, number)
        batches = forward_centre_crops(probing, val, classifier, "evaluate")
        logits = gather_rows(batches, context.dist).numpy()
    if not context.dist.is_main:
        return None
    candidate = probing.probes.candidates[number]
    fitted = describe_fitted(classifier.head, candidate, recipe, tuple(train.classes), context.seed)
    write_fitted(context.run.path, fitted)
    write_json(context.run.path / "compared.json", compared)
    chosen = compared[number] if compared else candidate.to_json()
    trained = recipe.epochs * len(probing.state.loader) * min(recipe.batch_size, len(train))
    images_seen = trained + (0 if held_out is None else len(held_out)) + len(val)
    return _write_record(context, job, train, val, logits, chosen, len(compared) or 1, images_seen)


def _parts(images: int, held_out: Tensor | None) -> Tensor:
    """Return the images that each part learns from, (P, images): all but the held-out ones, and all."""
    every = torch.ones(images)
    if held_out is None:
        return every.unsqueeze(0)
    return torch.stack([every.index_fill(0, held_out, 0.0), every])


def _choose(probing: Probing, held_out: Tensor | None) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of the best candidate, on every process, and on rank 0 all with their held-out top-1."""
    if held_out is None:
        return 0, []
    top1, number, compared = held_out_top1(probing, held_out), 0, []
    if top1:
        compared = [
            {**candidate.to_json(), "held_out_top1": score}
            for candidate, score in zip(probing.probes.candidates, top1, strict=True)
        ]
        number = compared.index(best_candidate(compared))
        log_choice(probing.context.run, compared[number])
    return probing.context.dist.all_max(number), compared


def _classifier(probing: Probing, number: int) -> AttentiveClassifier:
    """Return the classifier of a candidate that has learnt from all images."""
    tokens, probes = probing.tokens, probing.probes
    block = probes.candidates[number].block
    single = FrozenTokens(tokens.backbone, [block], tokens.norm)
    return AttentiveClassifier(single, probes.head(number, -1))


def _write_record(
    context: RunContext,
    job: TransferJob[AttentiveRecipe],
    train: ImageSource,
    val: ImageSource,
    logits: np.ndarray,
    chosen: dict[str, Any],
    candidates: int,
    images_seen: int,
) -> Record:
    """Write the predictions and the record."""
    predictions = context.run.predictions / "logits.npz"
    write_logits(predictions, logits, np.array(val.labels))
    recipe = job.recipe
    return write_record(
        context.run,
        task=job.record_name,
        checkpoint=job.checkpoint,
        recipe=recipe,
        deviates=job.deviates,
        seed=context.seed,
        data=describe_data(job, train, val),
        predictions=predictions,
        evaluated=len(logits),
        expected=len(val),
        images_seen=images_seen,
        dist=context.dist,
        details={
            **chosen,
            "blocks": job.checkpoint.spec.probed_blocks,
            "candidates": candidates,
            "epochs": recipe.epochs,
            "scored": "val",
            "train_images": len(train),
            "train_split_sha256": split_sha256(train),
        },
    )
