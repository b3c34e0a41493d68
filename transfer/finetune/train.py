"""Fine-tune a backbone with a new classification head on all its weights.

Follows SimMIM (arXiv 2111.09886, section 4.1) and its main_finetune.py: mean pooling, layer-wise
learning-rate decay, Mixup and CutMix, the last epoch's model. The other published protocols differ in what the fields
of `FinetuneRecipe` name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import Lamb
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint, write_checkpoint
from simmim_bench.data.datasets import ImageDataset, LoadImage, train_transform
from simmim_bench.data.loader import EpochLoader
from simmim_bench.data.normalise import normalise_like_torchvision
from simmim_bench.data.sources import ImageSource
from simmim_bench.errors import DataError
from simmim_bench.models.build import Backbone
from simmim_bench.runs.context import RunContext
from simmim_bench.training.accumulation import LossFunction, find_accumulation_steps
from simmim_bench.training.compilation import compile_blocks, decide_compile
from simmim_bench.training.few_images import ENOUGH_STEPS, few_steps_warnings
from simmim_bench.training.kernels import use_channels_last
from simmim_bench.training.loop import fit
from simmim_bench.training.optim import Schedule, describe_lr, parameter_groups, scaled_lr
from simmim_bench.training.precision import agree_on_precision, default_precision
from simmim_bench.training.state import TrainState, choose_accumulation_steps, read_saved
from transfer.finetune.layers import layers_after
from transfer.finetune.recipes import FinetuneRecipe
from transfer.job import TransferJob


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """One fine-tuning run, built.

    Attributes:
        train: the training images, with their classes.
        saved: the checkpoint that the run continues from; None for a new run.
        model: the backbone with its new head.
        compute_loss: the mean loss of a batch.
    """

    context: RunContext
    job: TransferJob[FinetuneRecipe]
    train: ImageSource
    saved: Checkpoint | None
    model: Backbone
    state: TrainState
    compute_loss: LossFunction

    def save(self) -> None:
        """Write the last checkpoint."""
        weights, training = self.state.state_dict(self.context.dist)
        if not self.context.dist.is_main:
            return
        recipe, checkpoint = self.job.recipe, self.job.checkpoint
        write_checkpoint(
            self.context.run.last_checkpoint,
            state=weights,
            spec=self.model.spec,
            form="transfer",
            mean=checkpoint.mean,
            std=checkpoint.std,
            value_range=checkpoint.value_range,
            provenance={
                "label": f"{checkpoint.label}, fine-tuned",
                "method": "finetune",
                "recipe": {"name": recipe.name, "sha256": recipe.sha256()},
                "epochs": round(self.state.epochs_done, 3),
                "seed": self.context.seed,
                "data": {
                    "root": str(self.job.data),
                    "images": len(self.train),
                    "fingerprint": self.train.fingerprint(),
                },
                "classes": list(self.train.classes),
                "from": {"sha256": checkpoint.sha256, "provenance": checkpoint.provenance},
            },
            training=training,
        )


def finetune(
    context: RunContext,
    job: TransferJob[FinetuneRecipe],
    train: ImageSource,
    *,
    accumulation_steps: int | None = None,
) -> Backbone:
    """Train a backbone and a new head on all weights.

    Args:
        train: the training images.
        accumulation_steps: backward passes that each process splits its batch into; None for the smallest
            number that fits in memory.

    Returns:
        The model of the last epoch, or with `ema_decay` the moving average of its weights.

    Raises:
        DataError: the run to resume was trained for other classes, or the checkpoint does not fit.
        DivergedError: the loss is not finite.
    """
    finetuning = build(context, job, train, accumulation_steps)
    restore(finetuning)
    log_setup(finetuning)
    fit(
        context,
        finetuning.state,
        finetuning.compute_loss,
        description="fine-tune",
        epochs=job.recipe.epochs,
        clip_grad=job.recipe.clip_grad,
        save=finetuning.save,
    )
    ema = finetuning.state.ema
    model = finetuning.model if ema is None else ema.module
    context.dist.broadcast_buffers(model)
    return model


def build(
    context: RunContext,
    job: TransferJob[FinetuneRecipe],
    train: ImageSource,
    accumulation_steps: int | None,
) -> Finetuning:
    """Build the model with a new head, the loader, the optimizer and the schedule."""
    recipe, dist, saved = job.recipe, context.dist, context.last_checkpoint()
    if saved is not None:
        check_classes(saved, train, job.data)
    model = load_backbone(
        job.checkpoint,
        recipe.img_size,
        len(train.classes),
        window_size=recipe.window_size,
        drop_path_rate=recipe.drop_path_rate,
        seed=context.seed,
    ).to(dist.device)
    use_channels_last(model, model.spec, dist.device)
    context.run.log(f"fine-tune: {model.load_report}")
    training = read_saved(context, saved)
    # Copied before the model is wrapped, which may convert its BatchNorm layers.
    ema = (
        ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=recipe.ema_warmup)
        if recipe.ema_decay
        else None
    )
    loader = build_loader(context, job, train)
    compute_loss = classification_loss(
        recipe,
        len(train.classes),
        dist.device,
        prepare_images(recipe, job.checkpoint, dist.device),
    )
    decided = default_precision(recipe.precision, dist.device, allow_fp16=True)
    precision = agree_on_precision(decided, dist)
    steps = choose_accumulation_steps(
        accumulation_steps,
        context,
        training,
        lambda: find_accumulation_steps(model, loader.epoch(0), compute_loss, precision, dist),
    )
    total_steps = recipe.epochs * len(loader)
    requested = {"on": True, "off": False}.get(job.options.get("compile", ""))
    if decide_compile(requested, context, "fine-tune", total_steps):
        compile_blocks(model.blocks_in_order)
    return Finetuning(
        context=context,
        job=job,
        train=train,
        model=model,
        saved=saved,
        compute_loss=compute_loss,
        state=TrainState(
            model=model,
            parallel_model=dist.wrap_model(model),
            optimizer=build_optimizer(recipe, model),
            schedule=build_schedule(recipe, len(loader)),
            loader=loader,
            precision=precision,
            accumulation_steps=steps,
            ema=ema,
            saved=training,
        ),
    )


def training_transform(
    recipe: FinetuneRecipe, checkpoint: Checkpoint, device: torch.device
) -> LoadImage:
    """Build the augmentation of a recipe, which normalises as the checkpoint's pretraining did.

    For a GPU it returns images as decoded, which `prepare_images` normalises and erases there.

    Raises:
        UsageError: the recipe changes colours, and the checkpoint takes other images than RGB of 8 bits.
    """
    return train_transform(
        recipe.img_size,
        mean=checkpoint.mean,
        std=checkpoint.std,
        crop_scale=recipe.crop_scale,
        hflip=recipe.hflip,
        color_jitter=recipe.color_jitter,
        auto_augment=recipe.auto_augment,
        random_erasing=recipe.random_erasing,
        as_bytes=normalised_on(device),
        pixel_format=checkpoint.pixel_format,
        resizing=recipe.resizing,
    )


def normalised_on(device: torch.device) -> bool:
    """Return whether a device normalises and erases the images; otherwise the loader does."""
    return device.type == "cuda"


def prepare_images(
    recipe: FinetuneRecipe, checkpoint: Checkpoint, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return a function from the images of `training_transform` to normalised and erased ones on the device.

    Images on a GPU are erased as by timm's PrefetchLoader: after normalising, as the erased pixels are normal noise.
    Which images are erased then follows from the seed, the step and the process, as in Mixup.
    """
    probability = recipe.random_erasing
    erase = RandomErasing(probability, mode="pixel", device=device) if probability else None

    def prepare(images: Tensor) -> Tensor:
        images = images.to(device, non_blocking=True)
        if images.dtype != torch.uint8 and not normalised_on(device):
            return images
        normalised = normalise_like_torchvision(images, checkpoint.mean, checkpoint.std)
        erased: Tensor = normalised if erase is None else erase(normalised)
        return erased

    return prepare


def build_loader(
    context: RunContext, job: TransferJob[FinetuneRecipe], train: ImageSource
) -> EpochLoader:
    """Build the loader of augmented training images."""
    recipe = job.recipe
    return EpochLoader(
        ImageDataset(train, training_transform(recipe, job.checkpoint, context.dist.device)),
        batch_size=recipe.batch_size,
        num_workers=recipe.num_workers,
        seed=context.seed,
        rank=context.dist.rank,
        world_size=context.dist.size,
        repeats=recipe.repeated_aug,
    )


def build_optimizer(recipe: FinetuneRecipe, model: Backbone) -> torch.optim.Optimizer:
    """Build a recipe's optimizer over parameter groups with layer-wise learning-rate decay.

    Raises:
        UsageError: the recipe groups layers as a convolutional network's, and the model is none.
    """
    groups = parameter_groups(
        model,
        model,
        lr=scaled_lr(recipe.base_lr, recipe.batch_size),
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        layers_after=layers_after(model, recipe.layer_groups),
    )
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    spark = recipe.optimizer == "lamb_spark"
    # The training loop clips the gradient and logs its norm, as for AdamW.
    return Lamb(groups, max_grad_norm=None, always_adapt=spark, bias_correction=not spark)


def build_schedule(recipe: FinetuneRecipe, steps_per_epoch: int) -> Schedule:
    """Build the cosine schedule; its rates follow the recipe's batch size, also where images are fewer."""
    return Schedule(
        kind="cosine",
        peak_lr=scaled_lr(recipe.base_lr, recipe.batch_size),
        total_steps=recipe.epochs * steps_per_epoch,
        warmup_steps=recipe.warmup_epochs * steps_per_epoch,
        warmup_lr=scaled_lr(recipe.warmup_lr, recipe.batch_size),
        min_lr=scaled_lr(recipe.min_lr, recipe.batch_size),
        warmup_prefix=recipe.warmup_prefix,
        rule=recipe.lr_rule,
        epoch_steps=steps_per_epoch,
    )


def restore(finetuning: Finetuning) -> None:
    """Resume from the run's last checkpoint, if there is one."""
    context, state, saved = finetuning.context, finetuning.state, finetuning.saved
    if saved is not None:
        state.resume(context, saved)
        context.run.log(f"fine-tune: resumed step={state.step} epoch={state.epochs_done:.2f}")


def check_classes(saved: Checkpoint, train: ImageSource, data: Path) -> None:
    """Refuse to resume with a head that was trained for other classes."""
    classes = saved.provenance.get("classes")
    if classes != list(train.classes):
        raise DataError(
            f"{saved.name} was trained for {len(classes or [])} classes, which are not the "
            f"{len(train.classes)} of {data}; start anew with another --out."
        )


def log_setup(finetuning: Finetuning) -> None:
    """Log the model, the data and the protocol."""
    recipe, state = finetuning.job.recipe, finetuning.state
    finetuning.context.run.log(
        f"fine-tune: start arch={finetuning.model.spec.arch} images={len(finetuning.train):,} "
        f"epochs={recipe.epochs} steps_per_epoch={len(state.loader):,} batch_size={recipe.batch_size} "
        f"{describe_lr(recipe.base_lr, recipe.batch_size)} processes={finetuning.context.dist.size} "
        f"accumulation_steps={state.accumulation_steps}"
    )
    # Few-shot recipes are made for few steps an epoch.
    enough = 1 if finetuning.job.task == "fewshot" else ENOUGH_STEPS
    for warning in few_steps_warnings(
        recipe.batch_size, len(finetuning.train), len(state.loader), recipe.epochs, enough=enough
    ):
        finetuning.context.run.log(f"fine-tune: warning: {warning}")


def classification_loss(
    recipe: FinetuneRecipe,
    classes: int,
    device: torch.device,
    prepare: Callable[[Tensor], Tensor],
) -> LossFunction:
    """Return a function from model, batch (images, labels, indices) and epoch to the recipe's mean loss.

    Args:
        prepare: what `prepare_images` returned.
    """
    criterion, mixup = loss_and_mixing(recipe, classes)

    def compute_loss(model: nn.Module, batch: list[Tensor], epoch: int) -> Tensor:
        images, labels = prepare(batch[0]), batch[1].to(device, non_blocking=True)
        # timm's Mixup pairs an image with the one at the mirrored position, so it needs an even batch.
        if mixup is not None and len(images) % 2 == 0:
            images, labels = mixup(images, labels)
        elif mixup is not None:
            labels = F.one_hot(labels, classes).float()
        loss: Tensor = criterion(model(images).float(), labels)
        return loss

    return compute_loss


def loss_and_mixing(recipe: FinetuneRecipe, classes: int) -> tuple[nn.Module, Mixup | None]:
    """Return a recipe's loss and its batch mixing; one of the two smooths the labels."""
    mixup = None
    if recipe.mixup or recipe.cutmix:
        mixup = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            label_smoothing=recipe.label_smoothing,
            num_classes=classes,
        )
    smoothing = recipe.label_smoothing if mixup is None else 0.0
    if recipe.loss != "ce":
        return BinaryCrossEntropy(smoothing, sum_classes=recipe.loss == "bce_sum"), mixup
    return (SoftTargetCrossEntropy() if mixup else LabelSmoothingCrossEntropy(smoothing)), mixup
