"""Build what a pretraining recipe describes: checked sizes, the model, the optimizer and its schedule."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from pretrain.design import check_design, read_target_model
from pretrain.masking.masks import check_mask_sizes, masking_unit
from pretrain.recipes import PretrainRecipe
from pretrain.simmim import SimMIM, load_simmim
from pretrain.targets.models import TargetSource, load_target_model
from simmim_bench.backbones import open_checkpoint
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import find_spec
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.training.optim import Schedule, parameter_groups, scaled_lr


def check_sizes(recipe: PretrainRecipe) -> BackboneSpec:
    """Return the recipe's backbone spec after checking that image, mask and model fit each other.

    Raises:
        UsageError: sizes that do not divide each other, or a design that the backbone cannot have.
    """
    spec = replace(
        find_spec(recipe.arch).at(recipe.img_size, recipe.window_size), in_chans=recipe.in_chans
    )
    unit = masking_unit(recipe.masking, recipe.mask_patch_size)
    check_mask_sizes(recipe.img_size, unit, spec.patch_size)
    if any(size % spec.stride for size in recipe.img_size):
        raise UsageError(
            f"img_size {recipe.img_size} is not a multiple of {recipe.arch}'s stride {spec.stride}."
        )
    check_design(recipe.design, spec)
    if recipe.encoder_input == "visible" and unit % spec.patch_size:
        raise UsageError(
            f"encoder_input visible needs masks of whole patches, but the masking unit of {unit} pixels is not a "
            f"multiple of {recipe.arch}'s patch size {spec.patch_size}; use -o encoder_input=tokens."
        )
    return spec


def load_teacher(recipe: PretrainRecipe, spec: BackboneSpec) -> TargetSource | None:
    """Load the teacher or tokenizer that the recipe's target comes from; None for other targets."""
    unit = masking_unit(recipe.masking, recipe.mask_patch_size)
    return load_target_model(recipe.design, spec, unit, recipe.statistics)


def check_same_teacher(teacher: TargetSource | None, saved: Checkpoint) -> None:
    """Refuse to resume a run with a teacher or tokenizer whose weights have changed.

    Raises:
        UsageError: with both hashes.
    """
    known = read_target_model(saved.provenance)
    if teacher is not None and known is not None and teacher.known.sha256 != known.sha256:
        raise UsageError(
            f"{teacher.known.name} has other weights than at the start of this run (SHA-256 "
            f"{teacher.known.sha256[:12]}, not {known.sha256[:12]}); restore the old weights, or start anew with "
            "another --out."
        )


def build_model(
    recipe: PretrainRecipe,
    spec: BackboneSpec,
    teacher: TargetSource | None,
    *,
    init_from: str | None,
    seed: int,
    device: torch.device,
) -> SimMIM:
    """Build the model with new weights, or those of a SimMIM checkpoint, and attach its teacher.

    Args:
        init_from: CKPT of the initial weights; None to initialise them from the seed.

    Raises:
        UsageError: the checkpoint is of another arch, image size or design.
    """
    known = None if teacher is None else teacher.known
    model = SimMIM(
        spec,
        recipe.design,
        known,
        drop_path_rate=recipe.drop_path_rate,
        seed=seed,
        statistics=recipe.statistics,
    )
    if init_from is not None:
        _load_initial_weights(model, recipe, init_from)
    model = model.to(device)
    if teacher is not None:
        model.target.attach_model(teacher.model.to(device))
    return model


def _load_initial_weights(model: SimMIM, recipe: PretrainRecipe, init_from: str) -> None:
    checkpoint = open_checkpoint(init_from)
    start = load_simmim(checkpoint)
    if checkpoint.pixel_format != recipe.pixel_format:
        raise UsageError(
            f"--init-from {init_from} takes {checkpoint.pixel_format}, but the recipe's images are "
            f"{recipe.pixel_format}; use {checkpoint.pixel_format.options}."
        )
    if (checkpoint.mean, checkpoint.std) != recipe.statistics:
        mean, std = (
            ",".join(f"{v:g}" for v in values) for values in (checkpoint.mean, checkpoint.std)
        )
        raise UsageError(
            f"--init-from {init_from} takes images of another mean and standard deviation; use -o mean={mean} "
            f"-o std={std}."
        )
    if start.spec != model.spec:
        raise UsageError(
            f"--init-from {init_from} is a {start.spec.arch} for {start.spec.img_size} pixels, not "
            f"a {recipe.arch} for {recipe.img_size}; use the same arch and -o img_size=..."
        )
    own, theirs = asdict(recipe.design), asdict(start.design)
    if _shapes(model) != _shapes(start):
        differs = [f"{key}={theirs[key]}" for key in own if own[key] != theirs[key]]
        raise UsageError(
            f"--init-from {init_from} has another design than this recipe's model; use -o {' -o '.join(differs)}."
        )
    model.load_state_dict(start.state_dict())


def _shapes(model: SimMIM) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def build_optimizer(recipe: PretrainRecipe, model: SimMIM) -> torch.optim.Optimizer:
    """Build AdamW over the model's parameter groups."""
    lr = scaled_lr(recipe.base_lr, recipe.batch_size)
    groups = parameter_groups(
        model, model.encoder, lr=lr, weight_decay=recipe.weight_decay, pretraining=True
    )
    return torch.optim.AdamW(groups, betas=recipe.betas, fused=True)


def build_schedule(recipe: PretrainRecipe, steps_per_epoch: int) -> Schedule:
    """Build the learning-rate schedule, its rates scaled to the total batch."""
    return Schedule(
        kind=recipe.schedule,
        peak_lr=scaled_lr(recipe.base_lr, recipe.batch_size),
        total_steps=recipe.epochs * steps_per_epoch,
        warmup_steps=recipe.warmup_epochs * steps_per_epoch,
        warmup_lr=scaled_lr(recipe.warmup_lr, recipe.batch_size),
        min_lr=scaled_lr(recipe.min_lr, recipe.batch_size),
        milestones=[epoch * steps_per_epoch for epoch in recipe.milestones],
    )
