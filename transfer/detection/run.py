"""COCO transfer: fine-tune Mask R-CNN on a checkpoint through Detectron2, and score it.

Writes `predictions/coco_results.json`, a record with box AP and, if the data has masks, mask AP, AP by class, and
`predictions.png`. Follows section 4.3 of arXiv 2111.09886 with the detectors of ViTDet (arXiv 2203.16527) and Mask
R-CNN (arXiv 1703.06870). This module can be imported without Detectron2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from simmim_bench.checkpoints.checkpoint import write_checkpoint
from simmim_bench.checkpoints.read import read_training_state
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.distributed import per_process_batch
from simmim_bench.errors import DataError
from simmim_bench.files import write_json, write_text
from simmim_bench.models.build import Backbone
from simmim_bench.results.coco import evaluate_coco
from simmim_bench.results.record import Record, write_record
from simmim_bench.runs.after import warn_only
from simmim_bench.runs.context import RunContext
from simmim_bench.training.kernels import fast_kernels
from simmim_bench.training.precision import (
    Precision,
    agree_on_precision,
    default_precision,
    gradient_scaler,
)
from transfer.detection import figure
from transfer.detection.coco_layout import CocoSplit, data_identity, read_splits
from transfer.detection.data import mask_format
from transfer.detection.fit import fit_to_backbone
from transfer.detection.framework import require_detectron2, silence_detectron2
from transfer.detection.optimizer import build_optimizer, build_schedule, load_optimizer_state
from transfer.detection.recipes import CocoRecipe
from transfer.job import TransferJob
from transfer.pyramid import joined

if TYPE_CHECKING:
    from pathlib import Path

    from detectron2.modeling import GeneralizedRCNN
    from detectron2.structures import Instances


@dataclass(frozen=True, kw_only=True)
class CocoRun:
    """A COCO transfer whose data is read and whose detector is built.

    Attributes:
        identity: identifies the data in the record.
        model: the detector, on its device.
        backbone: the checkpoint's backbone within it.
    """

    context: RunContext
    job: TransferJob[CocoRecipe]
    train: CocoSplit
    val: CocoSplit
    identity: dict[str, str]
    model: GeneralizedRCNN
    backbone: Backbone
    optimizer: torch.optim.Optimizer


@dataclass(kw_only=True)
class Progress:
    """The state of a run in training.

    Attributes:
        iterations: optimizer steps done.
        losses: of the last iteration, by name.
        accumulation_steps: of each process per iteration; None before training.
        precision: of the backbone in training, the same on every process.
        state: the training state to restore; None for a new run.
    """

    iterations: int = 0
    losses: dict[str, float]
    precision: Precision
    accumulation_steps: int | None = None
    state: dict[str, Any] | None = None


@silence_detectron2()
def run_coco(context: RunContext, job: TransferJob[CocoRecipe]) -> Record | None:
    """Fine-tune the detector, detect in the val split, and write the record.

    Args:
        job: its options are `accumulate`, gradient-accumulation steps of each process (by default the smallest
            number that fits in memory; the losses of regions are means over one accumulation step, so that
            other numbers are not exactly the same training), and `grad_checkpointing`, whether the backbone's
            activations are recomputed in the backward pass to save memory.

    Returns:
        The record on rank 0, None on the other processes.

    Raises:
        MissingFrameworkError: Detectron2 is not installed.
        UsageError: the processes cannot split a batch evenly, the backbone does not have the pyramid's
            strides, or a batch does not fit in memory.
        DataError: annotations or images cannot be used.
        DivergedError: the loss is not finite.
        InterruptedRun: SIGINT, SIGTERM or SIGUSR1 arrived; all iterations done are saved.
    """
    require_detectron2()
    per_process_batch(job.recipe.batch_size, context.dist.size)
    run = _build(context, job)
    progress = _restore(run)
    if progress.iterations < job.recipe.max_iters:
        _train(run, progress)
    elif progress.state is not None:
        run.model.load_state_dict(progress.state["model"])
    context.dist.broadcast_buffers(run.model)
    return _finish(run, progress)


def _build(context: RunContext, job: TransferJob[CocoRecipe]) -> CocoRun:
    """Read the data and build detector and optimizer."""
    from transfer.detection.model import build_detector, find_adapter

    recipe, log = job.recipe, context.run.log
    train, val = read_splits(job.data, recipe.bad_annotations, recipe.many_crowds)
    for kind, ids in train.skipped.items():
        log(f'coco: skipped annotations={len(ids):,} reason="{kind}"')
    log_split(context, train)
    log_split(context, val)
    model = build_detector(
        job.checkpoint,
        recipe,
        num_classes=len(train.category_ids),
        masks=train.has_masks,
        seed=context.seed,
        device=context.dist.device,
    )
    backbone = find_adapter(model).backbone
    backbone.set_grad_checkpointing(bool(job.options.get("grad_checkpointing")))
    log(f"coco: {backbone.load_report}")
    log(
        f'coco: training checkpoint="{job.checkpoint.label}" '
        f"parameters={sum(p.numel() for p in model.parameters()) / 1e6:.1f}M images={train.count:,} "
        f"iterations={recipe.max_iters:,} batch_size={recipe.batch_size} "
        f"heads={'boxes+masks' if train.has_masks else 'boxes'}"
    )
    if not recipe.strides:
        fitted = fit_to_backbone(recipe, job.checkpoint.spec)
        log(
            f"coco: pyramid strides={joined(fitted.strides)} anchor_sizes={joined(fitted.anchor_sizes)}"
        )
    form = mask_format(train, recipe)
    if train.has_masks and form != recipe.mask_format:
        log(f'coco: masks={form} reason="run lengths have no outline" recipe={recipe.mask_format}')
    return CocoRun(
        context=context,
        job=job,
        train=train,
        val=val,
        identity={**data_identity(job.data, train, val), **job.data_set},
        model=model,
        backbone=backbone,
        optimizer=build_optimizer(model, backbone, recipe),
    )


def log_split(context: RunContext, split: CocoSplit) -> None:
    """Log what of a split is not trained on or not scored, or is used otherwise than its author may expect."""
    if split.crowds:
        context.run.log(f'coco: ignored crowds={split.crowds:,} annotations="{split.annotations}"')
    for warning in split.warnings:
        context.run.log(f"coco: warning: {warning}")


def _restore(run: CocoRun) -> Progress:
    """Read the progress of an earlier start of this run.

    Raises:
        DataError: the training annotations have changed since then.
    """
    directory, dist, recipe = run.context.run, run.context.dist, run.job.recipe
    decided = default_precision(recipe.precision, dist.device, allow_fp16=True)
    precision = agree_on_precision(decided, dist)
    if not run.context.has_checkpoint():
        return Progress(losses={}, precision=precision)
    state = read_training_state(directory.last_checkpoint)
    done = state["progress"]
    if done["train_fingerprint"] != run.identity["train_fingerprint"]:
        raise DataError(
            f"{run.train.annotations} has changed since {directory.path} was started; restore the file, or start a "
            "new run with another --out."
        )
    directory.log(f"coco: resumed iteration={done['iterations']:,}")
    directory.rewind(done["iterations"] + 1)
    return Progress(
        iterations=done["iterations"],
        losses=done["losses"],
        accumulation_steps=resumed_steps(done, recipe.batch_size, dist.size),
        precision=done.get("precision", precision),
        state=state,
    )


def resumed_steps(done: Mapping[str, Any], batch_size: int, processes: int) -> int | None:
    """Return the accumulation steps with which a process keeps the micro-batch of an earlier start of the run.

    The losses of regions are means over one micro-batch, so that another one would be another training.

    Args:
        done: the saved progress; checkpoints of version 0.1 may not have the number of processes.
    """
    steps: int | None = done["parts"]
    if steps is None:
        return None
    images = per_process_batch(batch_size, done.get("processes", processes))
    own = per_process_batch(batch_size, processes)
    return -(-own // min(own, -(-images // steps)))


def _train(run: CocoRun, progress: Progress) -> None:
    """Train to the recipe's last iteration."""
    from transfer.detection.data import train_loader, training_stream
    from transfer.detection.estimate import largest_image
    from transfer.detection.loop import train_detector
    from transfer.detection.memory import choose_accumulation
    from transfer.detection.model import find_adapter

    context, recipe, dist = run.context, run.job.recipe, run.context.dist
    pixel_format = run.job.checkpoint.pixel_format
    stream = training_stream(run.train, recipe, context.seed, pixel_format)
    find_adapter(run.model).precision = progress.precision
    scaler = gradient_scaler(progress.precision, dist.device)
    requested = run.job.options.get("accumulate") or progress.accumulation_steps
    classes = len(run.train.category_ids)
    image = stream[0] if recipe.square_pad else largest_image(recipe, classes, pixel_format)
    # Memory is measured before the optimizer's state is loaded, which the estimate includes already.
    progress.accumulation_steps = choose_accumulation(run.model, image, recipe, requested, context)
    if progress.state is not None:
        load_optimizer_state(run.optimizer, progress.state["optimizer"])
        run.model.load_state_dict(progress.state["model"])
        if scaler.is_enabled() and "scaler" in progress.state:
            scaler.load_state_dict(progress.state["scaler"])

    def save(iterations: int, losses: dict[str, float]) -> None:
        progress.iterations, progress.losses = iterations, losses
        if dist.is_main:
            _save(run, progress, scaler)
        dist.barrier()  # rank 0 may write for longer than the next collective waits

    # Pyramid and heads, which float16 computes in Detectron2's own mixed precision.
    with fast_kernels(dist.device, progress.precision, run=context.run):
        train_detector(
            dist.wrap_model(run.model),
            run.optimizer,
            scaler,
            build_schedule(recipe),
            train_loader(stream, recipe, progress.iterations, dist),
            recipe=recipe,
            context=context,
            first_iter=progress.iterations,
            save=save,
            accumulation_steps=progress.accumulation_steps,
        )


def _save(run: CocoRun, progress: Progress, scaler: torch.amp.GradScaler) -> None:
    """Write the fine-tuned backbone as a checkpoint, with the training state that resuming needs."""
    checkpoint, recipe = run.job.checkpoint, run.job.recipe
    write_checkpoint(
        run.context.run.last_checkpoint,
        state=run.backbone.state_dict(),
        spec=run.backbone.spec,
        form="transfer",
        mean=checkpoint.mean,
        std=checkpoint.std,
        value_range=checkpoint.value_range,
        provenance={
            **checkpoint.provenance,
            "label": f"{checkpoint.label}, then {recipe.name}",
            "fine_tuned": {
                "task": "coco",
                "iterations": progress.iterations,
                "seed": run.context.seed,
            },
        },
        training={
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            **({"scaler": scaler.state_dict()} if scaler.is_enabled() else {}),
            "progress": {
                "iterations": progress.iterations,
                "losses": progress.losses,
                "parts": progress.accumulation_steps,
                "processes": run.context.dist.size,
                "precision": progress.precision,
                "train_fingerprint": run.identity["train_fingerprint"],
                "categories": list(zip(run.train.category_ids, run.train.class_names, strict=True)),
            },
        },
    )


def _finish(run: CocoRun, progress: Progress) -> Record | None:
    """Detect in the val split; on rank 0, write predictions, scores, record and figure."""
    context, job, val = run.context, run.job, run.val
    pixel_format = job.checkpoint.pixel_format
    detected = detect_val(
        context, run.model, val, job.recipe, masks=run.train.has_masks, pixel_format=pixel_format
    )
    if detected is None:
        return None
    record = write_record(
        context.run,
        task="coco",
        checkpoint=job.checkpoint,
        recipe=job.recipe,
        deviates=job.deviates,
        seed=context.seed,
        data=run.identity,
        predictions=detected.predictions,
        evaluated=detected.evaluated,
        expected=val.count,
        images_seen=job.recipe.max_iters * job.recipe.batch_size + val.count,
        dist=context.dist,
        details=_details(run, progress, detections=detected.detections),
    )
    with warn_only(context.run.log, "predictions.png"):
        figure.write_figure(val, detected.shown, context.run, pixel_format)
    return record


@dataclass(frozen=True, kw_only=True)
class Detected:
    """The detections in a val split.

    Attributes:
        predictions: the results file.
        evaluated: number of images.
        detections: number of detections.
        shown: detections of the first images, for the figure.
    """

    predictions: Path
    evaluated: int
    detections: int
    shown: list[Instances]


def detect_val(
    context: RunContext,
    model: GeneralizedRCNN,
    val: CocoSplit,
    recipe: CocoRecipe,
    *,
    masks: bool,
    pixel_format: PixelFormat = RGB,
) -> Detected | None:
    """Detect in the val split, and write the results and the AP of every class into the run directory.

    Args:
        model: a trained detector, on its device.
        masks: whether it predicts masks.
        pixel_format: of the images, as the checkpoint takes them.

    Returns:
        The detections on rank 0, None on the other processes.
    """
    from transfer.detection.data import val_loader
    from transfer.detection.predict import detect

    with context.display.task("coco: val", val.count) as task:
        loader = val_loader(val, recipe, pixel_format)
        results, shown, evaluated = detect(
            model, loader, val, task, keep=figure.IMAGES, dist=context.dist
        )
    if not context.dist.is_main:
        return None
    predictions = context.run.predictions / "coco_results.json"
    write_text(predictions, json.dumps(results) + "\n")
    scores = evaluate_coco(val.annotations, predictions, masks=masks)
    write_json(context.run.path / "ap_by_class.json", scores.by_class)
    return Detected(
        predictions=predictions, evaluated=evaluated, detections=len(results), shown=shown
    )


def _details(run: CocoRun, progress: Progress, *, detections: int) -> dict[str, Any]:
    recipe, device = run.job.recipe, run.context.dist.device
    test_precision = recipe.test_precision or recipe.precision
    return {
        "iterations": progress.iterations,
        "losses": progress.losses,
        "load_report": str(run.backbone.load_report),
        "processes": run.context.dist.size,
        "parts": progress.accumulation_steps,
        "masks": run.train.has_masks,
        "mask_format": mask_format(run.train, recipe) if run.train.has_masks else None,
        "precision": progress.precision,
        "test_precision": default_precision(test_precision, device, allow_fp16=True),
        "left_out_of_training": {kind: len(ids) for kind, ids in run.train.skipped.items()},
        "detections": detections,
    }
