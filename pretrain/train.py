"""Pretrain a SimMIM model, from images to a checkpoint directory.

The run directory's `checkpoints/last/` holds the model, `metrics.jsonl` the losses and
`reconstructions.png` reconstructions of held-out images.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoints import CheckpointWriter, is_finished
from pretrain.evaluation.monitor import CollapseMonitor, trivial_loss
from pretrain.flops import training_flops
from pretrain.masking.avg_dist import recipe_average_distance
from pretrain.masking.masks import sample_recipe_masks
from pretrain.recipes import PretrainRecipe
from pretrain.run import Pretraining, TrainOptions, build, sample_training_images
from pretrain.simmim import SimMIM
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.loader import seed_everything
from simmim_bench.data.packed import describe_packing
from simmim_bench.data.sources import ImageSource
from simmim_bench.models.archs import find_spec
from simmim_bench.runs.context import RunContext
from simmim_bench.training.few_images import few_steps_warnings
from simmim_bench.training.kernels import fast_kernels
from simmim_bench.training.loop import fit
from simmim_bench.training.optim import describe_lr
from simmim_bench.training.precision import describe_slow_precision

__all__ = ["TrainOptions", "pretrain"]


def pretrain(
    context: RunContext,
    *,
    recipe: PretrainRecipe,
    deviates: dict[str, Any],
    data: Path,
    init_from: str | None = None,
    options: TrainOptions | None = None,
) -> Path:
    """Pretrain and return the checkpoint directory.

    Args:
        deviates: differences from the named recipe.
        data: images in any layout that `any_images` reads.
        init_from: CKPT of the initial weights; None to initialise them from the seed.

    Raises:
        UsageError: sizes that do not divide each other, or a teacher or tokenizer that does not fit.
        DataError: images or a checkpoint that cannot be used.
        DivergedError: the loss is not finite.
    """
    run = context.run
    saved = context.last_checkpoint()
    if saved is not None and is_finished(saved.provenance):
        run.log(f"pretrain: {run.path} is finished")
        return run.last_checkpoint
    convolutional = find_spec(recipe.arch).is_convolutional
    with fast_kernels(context.dist.device, recipe.precision, benchmark=convolutional, run=run):
        return _train(context, recipe, deviates, data, init_from, options or TrainOptions(), saved)


def _train(
    context: RunContext,
    recipe: PretrainRecipe,
    deviates: dict[str, Any],
    data: Path,
    init_from: str | None,
    options: TrainOptions,
    saved: Checkpoint | None,
) -> Path:
    """Build a run or resume it, train to its end, and return the checkpoint directory."""
    pretraining = build(context, recipe, data, init_from, options, saved)
    restore(pretraining, saved)
    log_setup(pretraining)
    constant_loss = constant_prediction_loss(pretraining)
    avg_dist = mask_distance(pretraining)
    writer = CheckpointWriter(
        pretraining,
        constant_loss=constant_loss,
        provenance={
            **({} if saved is None else saved.provenance),  # the figures of the last evaluation
            # The asterisk marks a changed recipe.
            "label": f"{recipe.arch}, SimMIM {recipe.name}" + (" *" if deviates else ""),
            "method": "simmim",
            "recipe": {"name": recipe.name, "sha256": recipe.sha256(), "deviates": deviates},
            **_provenance(pretraining, avg_dist),
            "init_from": init_from,
            "data": _describe_data(data, pretraining.images),
            "held_out": pretraining.held_out_from,
        },
    )
    fit(
        context,
        pretraining.state,
        pretraining.compute_loss,
        description="pretrain",
        epochs=recipe.epochs,
        clip_grad=recipe.clip_grad,
        save=writer.save,
        monitor=CollapseMonitor(constant_loss).update,
        flops_per_image=training_flops(recipe, pretraining.model),
        after_step=writer.show_early,
    )
    writer.finish()
    context.dist.barrier()  # other processes may read the checkpoint next
    return context.run.last_checkpoint


def restore(pretraining: Pretraining, saved: Checkpoint | None) -> None:
    """Resume from a checkpoint, if there is one, and seed the generators."""
    context, state = pretraining.context, pretraining.state
    if saved is not None:
        state.resume(context, saved)
        context.run.log(f"pretrain: resumed step={state.step} epoch={state.epochs_done:.2f}")
    seed_everything(context.seed)


def log_setup(pretraining: Pretraining) -> None:
    """Log the model, the data, the protocol and the target."""
    run, recipe, state = pretraining.context.run, pretraining.recipe, pretraining.state
    target = pretraining.model.target
    run.log(
        f"pretrain: start arch={recipe.arch} parameters={_count_parameters(pretraining.model) / 1e6:.1f}M "
        f"images={len(pretraining.images):,} epochs={recipe.epochs} steps_per_epoch={len(state.loader):,} "
        f"batch_size={recipe.batch_size} {describe_lr(recipe.base_lr, recipe.batch_size)} precision={state.precision} "
        f"processes={pretraining.context.dist.size} accumulation_steps={state.accumulation_steps}"
    )
    for line in (
        *few_steps_warnings(
            recipe.batch_size, len(pretraining.images), len(state.loader), recipe.epochs
        ),
        *describe_slow_precision(recipe.precision, pretraining.context.dist.device),
    ):
        run.log(f"pretrain: warning: {line}")
    run.log(f"pretrain: predicts {target.describe()}")
    if pretraining.fitted:
        figures = (f"{name}={value:.4g}" for name, value in pretraining.fitted.items())
        run.log(f"pretrain: fitted target {' '.join(figures)}")
    if not pretraining.model.reconstruction_target.can_visualize:
        run.log(
            "pretrain: the target cannot be visualised; -o pixel_weight=... predicts pixels as well"
        )


def _count_parameters(model: SimMIM) -> int:
    return sum(p.numel() for p in model.parameters())


def constant_prediction_loss(pretraining: Pretraining) -> float:
    """Compute and log the loss of the best constant prediction, which a model that learns nothing reaches."""
    context, recipe = pretraining.context, pretraining.recipe
    generator = torch.Generator().manual_seed(context.seed)

    def mask_of(image: Tensor) -> Tensor:
        return sample_recipe_masks(recipe, pretraining.spec.patch_size, image, generator)

    loss = sum(
        weight
        * trivial_loss(
            target, sample_training_images(context, recipe, pretraining.dataset), mask_of
        )
        for weight, target in pretraining.model.weighted_targets()
    )
    context.run.log(
        f"pretrain: constant-prediction baseline loss={loss:.4f}; a model that has learnt nothing stays near it"
    )
    return loss


def mask_distance(pretraining: Pretraining) -> float:
    """Compute and log AvgDist (SimMIM, section 4.1.1) of the run's masks, in pixels."""
    context, recipe = pretraining.context, pretraining.recipe
    distance = recipe_average_distance(
        recipe, pretraining.spec.patch_size, pretraining.dataset, context.seed
    )
    context.run.log(
        f"pretrain: {recipe.masking} masks avg_dist={distance:.2f} pixels from a hidden pixel to a visible one"
    )
    return distance


def _provenance(pretraining: Pretraining, avg_dist: float) -> dict[str, Any]:
    """Describe the model and how it was built, as its checkpoint stores it."""
    teacher, fitted = pretraining.teacher, pretraining.fitted
    return {
        "design": asdict(pretraining.recipe.design),
        **({"target_model": asdict(teacher.known)} if teacher is not None else {}),
        **({"fitted": fitted} if fitted else {}),
        # In pixels; None where the masks leave nothing visible.
        "avg_dist": round(avg_dist, 3) if math.isfinite(avg_dist) else None,
        "parameters": _count_parameters(pretraining.model),
        "seed": pretraining.context.seed,
    }


def _describe_data(data: Path, images: ImageSource) -> dict[str, Any]:
    return {
        "root": str(data),
        "images": len(images),
        "fingerprint": images.fingerprint(),
        **describe_packing(images),
    }
