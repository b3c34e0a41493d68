"""End-to-end fine-tuning for classification: `imagenet`, and `fewshot` with all weights trained.

In: a checkpoint, a folder in ImageNet's layout, a recipe. Out: logits of every validation image, and
the record computed from them. Follows SimMIM (arXiv 2111.09886, section 4.1) and its main_finetune.py:
mean pooling, layer-wise learning-rate decay, Mixup and CutMix, the last epoch's model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint, write_checkpoint
from simmim_bench.checkpoints.read import read_checkpoint, read_training_state
from simmim_bench.data.datasets import ImageDataset, eval_transform, train_transform
from simmim_bench.data.loader import EpochLoader
from simmim_bench.data.sources import ImageList, check_same_classes, class_folders
from simmim_bench.distributed import DistContext, best_device
from simmim_bench.errors import DataError
from simmim_bench.models.build import Backbone
from simmim_bench.results.metrics import write_logits
from simmim_bench.results.record import Record, write_record
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.accumulation import find_accumulation_steps
from simmim_bench.training.loop import fit
from simmim_bench.training.optim import Schedule, parameter_groups, scaled_lr
from transfer.fewshot import few_shot_images, split_sha256
from transfer.finetune.recipes import FinetuneRecipe
from transfer.inference import collect, forward_batches

EVALUATED_AT_ONCE = (
    256  # images, by each process: a batch of the training is all processes' together
)


def run_finetune(
    task: str,
    *,
    checkpoint: Checkpoint,
    data: Path,
    run: RunDir,
    recipe: FinetuneRecipe,
    deviates: dict[str, Any],
    seed: int,
    resume: bool = False,
    fraction: float = 1.0,
    split: Path | None = None,
    dist: DistContext | None = None,
) -> Record | None:
    """Fine-tune on `data/train`, score on `data/val`.

    Args:
        task: "imagenet", or "fewshot" with a share of the training images.
        fraction: share of the training images that `fewshot` may see, the same number from every class.
        split: a file that lists them instead.
        team: the processes that share each batch and the evaluation; the main one gives the record.

    Raises:
        DataError: images that cannot be used, or a checkpoint that does not fit.
        DivergedError: the loss is not finite.
    """
    train, val = class_folders(data, "train"), class_folders(data, "val")
    check_same_classes(train, val)
    described = describe(data, train, val)
    if task == "fewshot":
        train = train.subset(few_shot_images(train, fraction, seed, split))
        described |= describe_split(train, split)
    dist = dist or DistContext(device=best_device())
    model = finetune(
        checkpoint=checkpoint,
        train=train,
        run=run,
        recipe=recipe,
        seed=seed,
        resume=resume,
        dist=dist,
    )
    batches = forward_batches(
        model.eval(),
        ImageDataset(
            val,
            eval_transform(
                recipe.img_size,
                crop_ratio=recipe.test_crop_ratio,
                mean=checkpoint.mean,
                std=checkpoint.std,
            ),
        ),
        batch_size=min(recipe.batch_size, EVALUATED_AT_ONCE),
        num_workers=recipe.num_workers,
        precision=recipe.precision,
        run=run,
        dist=dist,
        description="evaluate",
    )
    logits = collect(batches, dist).numpy()
    if not dist.is_main:
        return None
    predictions = run.predictions / "logits.npz"
    write_logits(predictions, logits, np.array(val.labels))
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
        images_seen=recipe.epochs * len(train) + len(val),
        dist=dist,
        details={
            "epochs": recipe.epochs,
            "weights": str(model.load_report),
            "train_images": len(train),
            "train_split_sha256": split_sha256(train),
        },
    )


def describe(data: Path, train: ImageList, val: ImageList) -> dict[str, Any]:
    """Say which data a record is about."""
    return {
        "root": str(data),
        "classes": len(val.classes),
        "train_images": len(train),
        "train_fingerprint": train.fingerprint(),
        "fingerprint": val.fingerprint(),
    }


def describe_split(images: ImageList, listed: Path | None) -> dict[str, str]:
    """Say which images a listed split has; a drawn one follows from the seed, and is no other data."""
    if listed is None:
        return {}
    return {"listed_split": str(listed), "listed_split_sha256": split_sha256(images)}


def finetune(
    *,
    checkpoint: Checkpoint,
    train: ImageList,
    run: RunDir,
    recipe: FinetuneRecipe,
    seed: int,
    resume: bool,
    dist: DistContext,
) -> Backbone:
    """Train a backbone with a new head on all its weights.

    Returns:
        The model of the last epoch, or with `ema_decay` the moving average of its weights.

    Raises:
        DataError: the run to go on with was for other classes.
    """
    device = dist.device
    classes = len(train.classes)
    model = load_backbone(
        checkpoint,
        recipe.img_size,
        classes,
        window_size=recipe.window_size,
        drop_path_rate=recipe.drop_path_rate,
        seed=seed,
    ).to(device)
    run.log(str(model.load_report))
    loader = EpochLoader(
        ImageDataset(
            train,
            train_transform(
                recipe.img_size,
                mean=checkpoint.mean,
                std=checkpoint.std,
                crop_scale=recipe.crop_scale,
                hflip=recipe.hflip,
                color_jitter=recipe.color_jitter,
                auto_augment=recipe.auto_augment,
                random_erasing=recipe.random_erasing,
            ),
        ),
        batch_size=recipe.batch_size,
        num_workers=recipe.num_workers,
        seed=seed,
        rank=dist.rank,
        world_size=dist.size,
    )
    # By the recipe's batch, as all protocols are told; fewer images than that make smaller steps.
    peak_lr = scaled_lr(recipe.base_lr, recipe.batch_size)
    optimizer = torch.optim.AdamW(
        parameter_groups(
            model,
            model,
            lr=peak_lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
        ),
        fused=True,
    )
    schedule = Schedule(
        kind="cosine",
        peak_lr=peak_lr,
        total_steps=recipe.epochs * len(loader),
        warmup_steps=recipe.warmup_epochs * len(loader),
        warmup_lr=scaled_lr(recipe.warmup_lr, recipe.batch_size),
        min_lr=scaled_lr(recipe.min_lr, recipe.batch_size),
    )
    average = (
        ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
    )
    scored = model if average is None else average.module
    first_step, accumulate = 0, None
    if resume and run.last_checkpoint.is_dir():
        saved = read_checkpoint(str(run.last_checkpoint))
        _check_head(saved, train)
        assert saved.state is not None
        state = read_training_state(run.last_checkpoint)
        scored.load_state_dict(saved.state)
        if average is not None:
            model.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        first_step, accumulate = state["steps_done"], state.get("accumulate")
        run.rewind(first_step)
        run.log(f"resumed after step {first_step}, epoch {first_step / len(loader):.2f}")

    shared = dist.wrap_model(model)
    loss_of_logits, mixup = loss_and_mixing(recipe, classes)

    def loss_of(batch: list[Tensor], epoch: int) -> Tensor:
        images, labels, _ = (x.to(device, non_blocking=True) for x in batch)
        # Mixup pairs an image with its mirror in the batch or part of one, so it needs an even one.
        if mixup is not None and len(images) % 2 == 0:
            images, labels = mixup(images, labels)
        elif mixup is not None:
            labels = F.one_hot(labels, classes).float()
        return loss_of_logits(shared(images).float(), labels)

    def save(steps_done: int) -> None:
        if not dist.is_main:
            return
        write_checkpoint(
            run.last_checkpoint,
            state=scored.state_dict(),
            spec=model.spec,
            form="transfer",
            mean=checkpoint.mean,
            std=checkpoint.std,
            provenance={
                "label": f"{checkpoint.label}, fine-tuned",
                "method": "finetune",
                "recipe": {"name": recipe.name, "sha256": recipe.sha256()},
                "epochs": round(steps_done / len(loader), 3),
                "classes": list(train.classes),
                "from": {"sha256": checkpoint.sha256, "provenance": checkpoint.provenance},
            },
            training={
                "optimizer": optimizer.state_dict(),
                "steps_done": steps_done,
                "accumulate": accumulate,
                **({} if average is None else {"weights": model.state_dict()}),
            },
        )

    if accumulate is None:
        on_gpu = device.type == "cuda"
        accumulate = (
            find_accumulation_steps(shared, loader, loss_of, recipe.precision, dist)
            if on_gpu
            else 1
        )
    run.log(
        f"{model.spec.arch}: {len(train)} images, {recipe.epochs} epochs of {len(loader)} steps, "
        f"batch {recipe.batch_size}, learning rate {peak_lr:.3g}"
        + (f", {dist.size} processes" if dist.size > 1 else "")
        + (f", in {accumulate} parts" if accumulate > 1 else "")
    )
    fit(
        model=shared,
        optimizer=optimizer,
        schedule=schedule,
        loader=loader,
        loss_of=loss_of,
        epochs=recipe.epochs,
        first_step=first_step,
        clip_grad=recipe.clip_grad,
        precision=recipe.precision,
        seed=seed,
        dist=dist,
        run=run,
        description="fine-tune",
        save=save,
        accumulate=accumulate,
        after_step=None if average is None else lambda step: average.update(model, step),
    )
    dist.broadcast_buffers(scored)
    return scored


def _check_head(saved: Checkpoint, train: ImageList) -> None:
    """Refuse to go on with a head that was trained for other classes."""
    classes = saved.provenance.get("classes")
    if classes != list(train.classes):
        raise DataError(
            f"{saved.name} was trained for {len(classes or [])} classes, which are not the "
            f"{len(train.classes)} of {train.root}; start anew with another --out."
        )


def loss_and_mixing(recipe: FinetuneRecipe, classes: int) -> tuple[nn.Module, Mixup | None]:
    """Give the loss and the batch mixing of a recipe; label smoothing is in one of them."""
    if recipe.mixup or recipe.cutmix:
        mixing = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            label_smoothing=recipe.label_smoothing,
            num_classes=classes,
        )
        return SoftTargetCrossEntropy(), mixing
    return LabelSmoothingCrossEntropy(recipe.label_smoothing), None
