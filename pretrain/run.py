"""Set up a pretraining run: its options, its data, its model with a fitted target, and its train state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method

from pretrain.build import (
    build_model,
    build_optimizer,
    build_schedule,
    check_same_teacher,
    check_sizes,
    load_teacher,
)
from pretrain.evaluation.monitor import sample_images
from pretrain.evaluation.probe import ProbeImages, load_probe_images
from pretrain.images import open_splits
from pretrain.masking.masks import sample_image_mask, visible_patch_count
from pretrain.recipes import PretrainRecipe
from pretrain.simmim import SimMIM
from pretrain.targets.models import TargetSource
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.loader import EpochLoader, seed_everything
from simmim_bench.data.normalise import normalise
from simmim_bench.data.random_crop import RandomCropFlip
from simmim_bench.data.sources import ImageSource
from simmim_bench.data.subsets import limit_images
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.runs.context import RunContext
from simmim_bench.training.accumulation import LossFunction, find_accumulation_steps
from simmim_bench.training.compilation import compile_blocks, decide_compile
from simmim_bench.training.few_images import check_batch_fits
from simmim_bench.training.kernels import use_channels_last
from simmim_bench.training.precision import agree_on_precision, decide_precision
from simmim_bench.training.state import TrainState, choose_accumulation_steps, read_saved


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a run is carried out: options that change speed and memory, not what is computed.

    Attributes:
        accumulate: gradient-accumulation steps of each process; None for the smallest number that fits.
        grad_checkpointing: recompute activations in the backward pass.
        shard: shard weights, gradients and optimizer state over the processes (FSDP2).
        compiled: compile the encoder's blocks by torch.compile; None where a GPU's run is long enough.
        skip_unreadable: the most unreadable images that are skipped; one more ends the run.
        keep_every: epochs between checkpoints that are kept; 0 for the last and the best alone.
        visualize_every: epochs between figures of reconstructions.
        probe_data: labelled images in ImageNet's layout, on which the features are probed; None for no probe.
        probe_every: epochs between probes.
    """

    accumulate: int | None = None
    grad_checkpointing: bool = False
    shard: bool = False
    compiled: bool | None = None
    skip_unreadable: int = 0
    keep_every: int = 0
    visualize_every: int = 1
    probe_data: Path | None = None
    probe_every: int = 1


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """One pretraining run, built.

    Attributes:
        images: the training images; `dataset` loads and crops them.
        held_out: images of the validation set, or a held-out part of the training images where the data has none.
        held_out_from: where they are from, as the checkpoint's provenance keeps it.
        probe: labelled images of the probe; None without one, and on processes that take no part in it.
        teacher: the frozen teacher or tokenizer that the target comes from; None for other targets.
        fitted: figures of what the target was fitted to, such as the tokenizer's error.
        state: the model under training, its optimizer and schedule.
        compute_loss: the mean loss of a batch.
    """

    context: RunContext
    recipe: PretrainRecipe
    options: TrainOptions
    spec: BackboneSpec
    images: ImageSource
    dataset: ImageDataset
    held_out: ImageSource
    held_out_from: dict[str, Any]
    probe: ProbeImages | None
    model: SimMIM
    teacher: TargetSource | None
    fitted: dict[str, float]
    state: TrainState
    compute_loss: LossFunction


def masked_loss(
    visible: int | None,
    device: torch.device,
    model: nn.Module,
    batch: list[Tensor],
    epoch: int,
    *,
    statistics: tuple[Sequence[float], Sequence[float]] = (IMAGENET_MEAN, IMAGENET_STD),
) -> Tensor:
    """Return the mean loss of a batch (images as decoded, labels, indices, masks) on a device.

    Args:
        visible: visible patches of every image, for an encoder of visible patches alone.
        statistics: mean and standard deviation that normalise the images.
    """
    pixels, _, _, masks = batch
    images = normalise(pixels, *statistics, device)
    loss: Tensor = model(images, masks.float(), visible=visible, reconstruct=False).loss
    return loss


def build(
    context: RunContext,
    recipe: PretrainRecipe,
    data: Path,
    init_from: str | None,
    options: TrainOptions,
    saved: Checkpoint | None,
) -> Pretraining:
    """Build the model, its data and its optimizer, and fit the target to the training images.

    Args:
        saved: the checkpoint that the run continues from; its target is fitted already.
    """
    dist = context.dist
    spec = check_sizes(recipe)
    images, held_out, held_out_from = open_splits(context, recipe, data, saved)
    images = limit_images(images, recipe.limit, "train")
    if saved is None:
        check_batch_fits(recipe.batch_size, len(images))
    held_out = limit_images(held_out, recipe.limit, "val")
    probe = None
    if options.probe_data is not None:
        probe = load_probe_images(
            context, options.probe_data, recipe, len(images), shard=options.shard
        )
    decided = decide_precision(recipe.precision, dist.device, spec.num_features)
    precision = agree_on_precision(decided, dist)
    dataset = ImageDataset(
        images,
        RandomCropFlip(
            recipe.img_size,
            recipe.crop_scale,
            recipe.pixel_format,
            crops_per_decode=recipe.crops_per_decode,
        ),
        skip_unreadable=options.skip_unreadable,
        keep_last=recipe.crops_per_decode > 1,
    )
    teacher = load_teacher(recipe, spec)
    model = build_model(
        recipe, spec, teacher, init_from=init_from, seed=context.seed, device=dist.device
    )
    if saved is None:
        fitted = fit_target(context, recipe, model, dataset, init_from)
    else:
        check_same_teacher(teacher, saved)
        fitted = saved.provenance.get("fitted", {})
    only_visible = recipe.encoder_input == "visible"
    visible = visible_patch_count(recipe, spec.patch_size) if only_visible else None
    compute_loss = partial(masked_loss, visible, dist.device, statistics=recipe.statistics)
    return Pretraining(
        context=context,
        recipe=recipe,
        options=options,
        spec=spec,
        images=images,
        dataset=dataset,
        held_out=held_out,
        held_out_from=held_out_from,
        probe=probe,
        model=model,
        teacher=teacher,
        fitted=fitted,
        state=_build_state(
            context,
            recipe,
            options,
            model,
            dataset,
            precision,
            compute_loss,
            read_saved(context, saved),
        ),
        compute_loss=compute_loss,
    )


def _build_state(
    context: RunContext,
    recipe: PretrainRecipe,
    options: TrainOptions,
    model: SimMIM,
    dataset: ImageDataset,
    precision: str,
    compute_loss: LossFunction,
    saved: dict[str, Any] | None,
) -> TrainState:
    """Choose the accumulation steps and wrap the model for all processes, then build optimizer and schedule."""
    model.encoder.set_grad_checkpointing(options.grad_checkpointing)
    if not options.shard:  # FSDP2 refuses weights in another layout
        use_channels_last(model.encoder, model.spec, context.dist.device)
    loader = EpochLoader(
        dataset,
        batch_size=recipe.batch_size,
        num_workers=recipe.num_workers,
        seed=context.seed,
        rank=context.dist.rank,
        world_size=context.dist.size,
        crops_per_decode=recipe.crops_per_decode,
        per_image=partial(sample_image_mask, recipe, model.spec.patch_size),
    )
    accumulation_steps = choose_accumulation_steps(
        options.accumulate,
        context,
        saved,
        lambda: find_accumulation_steps(
            model, loader.epoch(0), compute_loss, precision, context.dist, shard=options.shard
        ),
    )
    total_steps = recipe.epochs * len(loader)
    if decide_compile(options.compiled, context, "pretrain", total_steps):
        compile_blocks(model.encoder.blocks_in_order)
    # Sharding replaces the parameters, so the optimizer is built afterwards.
    parallel_model = context.dist.wrap_model(
        model,
        shard=options.shard,
        parts=model.encoder.blocks_in_order,
    )
    register_fsdp_forward_method(model, "forward_pooled")  # of a sharded model alone
    return TrainState(
        model=model,
        parallel_model=parallel_model,
        optimizer=build_optimizer(recipe, model),
        schedule=build_schedule(recipe, len(loader)),
        loader=loader,
        precision=precision,
        accumulation_steps=accumulation_steps,
        saved=saved,
    )


def fit_target(
    context: RunContext,
    recipe: PretrainRecipe,
    model: SimMIM,
    dataset: ImageDataset,
    init_from: str | None,
) -> dict[str, float]:
    """Fit the target to training images on rank 0, unless the initial weights come with a fitted target.

    Returns:
        Figures of the fit, by name; empty for targets that are not fitted, and on other ranks.
    """
    dist, seed, target = context.dist, context.seed, model.target
    if init_from is not None and target.inherited:
        context.run.log(
            f"pretrain: {target.inherited} are those of {init_from}; they are not fitted again"
        )
        return {}
    seed_everything(seed)
    figures: dict[str, float] = {}
    if dist.is_main:
        images = sample_training_images(context, recipe, dataset, target.fitted_images)
        figures = target.fit(images, seed, display=context.display)
    dist.broadcast_buffers(target)
    return figures


def sample_training_images(
    context: RunContext, recipe: PretrainRecipe, dataset: ImageDataset, *most: int
) -> Iterator[Tensor]:
    """Load a sample of the training images, (1, C, H, W), normalised; `most` limits their number."""
    return sample_images(dataset, context.seed, *recipe.statistics, context.dist.device, *most)
