"""Pretraining from images to a checkpoint directory.

In: a recipe, a source of images, a seed. Out: a run directory whose `checkpoints/last/` holds the SimMIM
model, `metrics.jsonl` the losses and `reconstructions.png` what it has learned to see.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pretrain.design import Design, TargetModel, check_design, target_model_of
from pretrain.evaluate import draw_held_out, held_out_measures
from pretrain.masking.avg_dist import recipe_distance
from pretrain.masking.masks import check_mask_sizes, mask_generator, masking_unit, recipe_masks
from pretrain.monitor import CollapseMonitor, sample_images, trivial_loss
from pretrain.recipes import PretrainRecipe
from pretrain.simmim import PAPER, SimMIM, load_simmim
from pretrain.targets.models import TargetSource, load_target_model
from simmim_bench.checkpoints.checkpoint import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    keep_checkpoint,
    write_checkpoint,
)
from simmim_bench.checkpoints.read import read_checkpoint, read_training_state
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.decode import normalise, random_crop_flip
from simmim_bench.data.loader import EpochLoader, seed_everything
from simmim_bench.data.sources import any_images, held_out_images
from simmim_bench.distributed import DistContext, best_device, full_state, load_full_state
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import BackboneSpec, find_spec
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.accumulation import find_accumulation_steps
from simmim_bench.training.flops import count_flops
from simmim_bench.training.loop import fit
from simmim_bench.training.optim import Schedule, parameter_groups, scaled_lr
from simmim_bench.training.precision import decide_precision

FORWARD_AND_BACKWARD = 3  # the backward pass has two products for each of the forward pass


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a run is carried out: it changes the speed and the memory, not what is computed.

    Attributes:
        accumulate: parts that a process cuts its share of a batch into; None for as few as fit.
        grad_checkpointing: compute a block again in the backward pass instead of keeping what is in it.
        shard: spread weights, gradients and optimizer over the processes (FSDP2).
        compiled: through torch.compile.
        skip_unreadable: so many images that cannot be read are left out and counted.
        keep_every: epochs between checkpoints that stay; 0 for the last and the best alone.
        pictures_every: epochs between pictures of reconstructions.
    """

    accumulate: int | None = None
    grad_checkpointing: bool = False
    shard: bool = False
    compiled: bool = False
    skip_unreadable: int = 0
    keep_every: int = 0
    pictures_every: int = 1


def pretrain(
    *,
    recipe: PretrainRecipe,
    deviates: dict[str, Any],
    data: Path,
    run: RunDir,
    seed: int,
    init_from: str | None = None,
    resume: bool = False,
    dist: DistContext | None = None,
    options: TrainOptions | None = None,
) -> Path:
    """Pretrain and give the checkpoint directory.

    Args:
        data: what `any_images` takes.
        team: the processes that share each batch; None for this one alone.

    Raises:
        UsageError: sizes that do not divide each other, or a teacher or tokenizer that does not fit.
        DataError: images or a checkpoint that cannot be used.
        DivergedError: the loss is not finite.
    """
    last = None
    if resume and run.last_checkpoint.is_dir():
        last = read_checkpoint(str(run.last_checkpoint))
        if "wall_time_s" in last.provenance:
            run.log(f"{run.path} is finished")
            return run.last_checkpoint
    options = options or TrainOptions()
    spec = check_sizes(recipe)
    if options.compiled and options.grad_checkpointing and spec.family == "resnet":
        raise UsageError(
            f"--compile cannot follow how --grad-checkpointing keeps the statistics of {spec.arch}'s BatchNorm; give "
            "one of them."
        )
    images = any_images(data)
    unseen = held_out_images(data) or images
    dist = dist or DistContext(device=best_device())
    device = dist.device
    decided = decide_precision(recipe.precision, device, spec.num_features)
    precision = "bf16" if dist.all_max(decided == "bf16") else "fp32"
    dataset = ImageDataset(
        images,
        partial(random_crop_flip, img_size=recipe.img_size, crop_scale=recipe.crop_scale),
        skip_unreadable=options.skip_unreadable,
    )
    looked_at = partial(sample_images, dataset, seed, IMAGENET_MEAN, IMAGENET_STD, device)
    source = load_target_model(
        recipe.design, spec, masking_unit(recipe.masking, recipe.mask_patch_size)
    )
    model = _start(recipe, spec, init_from, seed, source).to(device)
    if source is not None:
        model.target.attach_model(source.model.to(device))
    fitted: dict[str, float] = {}
    if last is None and (init_from is None or not model.target.inherited):
        seed_everything(seed)
        if dist.is_main:
            fitted = model.target.fit(
                looked_at(model.target.fitted_images), seed, display=run.display
            )
        dist.broadcast_buffers(model.target)
    elif last is None:
        run.log(f"{model.target.inherited} are those of {init_from}, and not found anew")
    parameters = sum(p.numel() for p in model.parameters())
    model.encoder.set_grad_checkpointing(options.grad_checkpointing)
    shared = dist.wrap_model(
        model,
        shard=options.shard,
        parts=model.encoder.blocks_in_order,
        compiled=options.compiled,
    )

    loader = EpochLoader(
        dataset,
        batch_size=recipe.batch_size,
        num_workers=recipe.num_workers,
        seed=seed,
        rank=dist.rank,
        world_size=dist.size,
    )
    peak_lr = scaled_lr(recipe.base_lr, recipe.batch_size)
    optimizer = torch.optim.AdamW(
        parameter_groups(
            model, model.encoder, lr=peak_lr, weight_decay=recipe.weight_decay, pretraining=True
        ),
        betas=recipe.betas,
        fused=True,
    )
    schedule = Schedule(
        kind=recipe.schedule,
        peak_lr=peak_lr,
        total_steps=recipe.epochs * len(loader),
        warmup_steps=recipe.warmup_epochs * len(loader),
        warmup_lr=scaled_lr(recipe.warmup_lr, recipe.batch_size),
        min_lr=scaled_lr(recipe.min_lr, recipe.batch_size),
        milestones=[epoch * len(loader) for epoch in recipe.milestones],
    )

    def loss_of(batch: list[torch.Tensor], epoch: int) -> torch.Tensor:
        pixels, _, indices = batch
        generators = [mask_generator(seed, epoch, int(index)) for index in indices]
        inputs = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD, device)
        mask = recipe_masks(recipe, spec.patch_size, inputs, generators)
        loss: torch.Tensor = shared(inputs, mask.to(device, non_blocking=True)).loss
        return loss

    first_step, accumulate = 0, options.accumulate
    if last is not None:
        _check_same_source(source, last.provenance)
        fitted = last.provenance.get("fitted", {})
        training = read_training_state(run.last_checkpoint)
        assert last.state is not None
        load_full_state(model, optimizer, last.state, training["optimizer"])
        first_step, precision = training["steps_done"], training["precision"]
        accumulate = accumulate or training["accumulate"]
        run.rewind(first_step)
        run.log(f"resumed after step {first_step}, epoch {first_step / len(loader):.2f}")
    seed_everything(seed)
    if accumulate is None:
        on_gpu = device.type == "cuda"
        accumulate = (
            find_accumulation_steps(shared, loader, loss_of, precision, dist) if on_gpu else 1
        )
    run.log(
        f"{recipe.arch}: {parameters / 1e6:.1f} M parameters, "
        f"{len(images)} images, {recipe.epochs} epochs of {len(loader)} steps, "
        f"batch {recipe.batch_size}, learning rate {peak_lr:.3g}, {precision}"
        + (f", {dist.size} processes" if dist.size > 1 else "")
        + (f", in {accumulate} parts" if accumulate > 1 else "")
    )
    run.log(f"predicts {model.target.describe()}")
    if fitted:
        run.log(", ".join(f"{name} {value:.4g}" for name, value in fitted.items()))
    if not model.drawn.draws:
        run.log("nothing can be drawn of it; -o pixel_weight=... has pixels predicted as well")
    generator = torch.Generator().manual_seed(seed)

    def mask_of(image: torch.Tensor) -> torch.Tensor:
        return recipe_masks(recipe, spec.patch_size, image, generator)

    monitor = CollapseMonitor(
        sum(
            weight * trivial_loss(target, looked_at(), mask_of)
            for weight, target in model.weighted_targets()
        )
    )
    run.log(f"a constant picture scores {monitor.trivial:.4f}: a loss near it has learnt nothing")
    avg_dist = recipe_distance(recipe, spec.patch_size, dataset, seed)
    run.log(f"{recipe.masking} masks: a hidden pixel is {avg_dist:.2f} pixels from what is visible")

    provenance: dict[str, Any] = {
        "label": f"{recipe.arch}, SimMIM {recipe.name}" + (" *" if deviates else ""),
        "method": "simmim",
        "recipe": {"name": recipe.name, "sha256": recipe.sha256(), "deviates": deviates},
        "design": asdict(recipe.design),
        **({"target_model": asdict(source.known)} if source is not None else {}),
        **({"fitted": fitted} if fitted else {}),
        # SimMIM's AvgDist in pixels; None where the masks leave nothing visible.
        "avg_dist": round(avg_dist, 3) if math.isfinite(avg_dist) else None,
        "parameters": parameters,
        "seed": seed,
        "init_from": init_from,
        "data": {"root": str(data), "images": len(images), "fingerprint": images.fingerprint()},
    }
    best = min(run.read_metric("held_out_loss"), default=float("inf"))

    def save(steps_done: int) -> None:
        nonlocal best
        epoch, inside = divmod(steps_done, len(loader))
        told = not inside and "wall_time_s" not in provenance
        if told and (dist.is_main or options.shard):
            held_out = held_out_measures(model, recipe, unseen, device=device, precision=precision)
            provenance.update(held_out)
            run.metrics(steps_done - 1, **held_out, trivial_loss=monitor.trivial)
            told_by_picture = epoch % options.pictures_every == 0 or epoch == recipe.epochs
            if told_by_picture and model.drawn.draws:
                picture = run.path / "reconstructions.png" if dist.is_main else None
                draw_held_out(model, recipe, unseen, picture)
                run.picture("reconstructions", epoch, picture)
        state, of_optimizer = full_state(model, optimizer, dist)
        if not dist.is_main:
            return
        write_checkpoint(
            run.last_checkpoint,
            state=state,
            spec=spec,
            form="pretrain",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            provenance={**provenance, "epochs": round(steps_done / len(loader), 3)},
            training={
                "optimizer": of_optimizer,
                "steps_done": steps_done,
                "precision": precision,
                "accumulate": accumulate,
            },
        )
        if told and provenance["held_out_loss"] < best:
            best = provenance["held_out_loss"]
            keep_checkpoint(run.last_checkpoint, "best")
        if told and options.keep_every and epoch % options.keep_every == 0:
            keep_checkpoint(run.last_checkpoint, f"epoch_{epoch:04d}")

    fit(
        model=shared,
        optimizer=optimizer,
        schedule=schedule,
        loader=loader,
        loss_of=loss_of,
        epochs=recipe.epochs,
        first_step=first_step,
        clip_grad=recipe.clip_grad,
        precision=precision,
        seed=seed,
        run=run,
        description="pretrain",
        save=save,
        dist=dist,
        accumulate=accumulate,
        watch=monitor.update,
        flops_per_image=_image_flops(recipe, model),
    )
    if dataset.skipped:  # by this process; a loader's processes count in the same place
        run.log(f"{dataset.skipped} images could not be read and were left out")
        provenance["unreadable_images"] = dataset.skipped
    if "held_out_loss" not in provenance:  # killed between the last epoch and this line
        save(recipe.epochs * len(loader))
    provenance["wall_time_s"] = round(run.wall_time_s(), 1)
    provenance["devices"] = dist.size
    save(recipe.epochs * len(loader))
    if dist.is_main:
        said = f"held-out loss {provenance['held_out_loss']:.4f}"
        if model.drawn.draws:
            said += (
                f", PSNR {provenance['psnr']:.2f} dB, SSIM {provenance['ssim']:.3f} of what is hidden; "
                f"{run.path / 'reconstructions.png'}"
            )
        run.log(said)
    dist.barrier()  # what comes next may read the checkpoint
    return run.last_checkpoint


def check_sizes(recipe: PretrainRecipe) -> BackboneSpec:
    """Give the recipe's backbone, where image, mask and model fit each other."""
    spec = find_spec(recipe.arch).at(recipe.img_size, recipe.window_size)
    check_mask_sizes(
        recipe.img_size, masking_unit(recipe.masking, recipe.mask_patch_size), spec.patch_size
    )
    if any(size % spec.stride for size in recipe.img_size):
        raise UsageError(
            f"img_size {recipe.img_size} is not a multiple of {recipe.arch}'s stride {spec.stride}."
        )
    check_design(recipe.design, spec)
    unit = masking_unit(recipe.masking, recipe.mask_patch_size)
    if recipe.encoder_input == "visible" and unit % spec.patch_size:
        raise UsageError(
            f"encoder_input visible needs whole patches hidden, and masking units of {unit} pixels are less than "
            f"{recipe.arch}'s patches of {spec.patch_size}; use -o encoder_input=tokens."
        )
    return spec


def _check_same_source(source: TargetSource | None, provenance: dict[str, Any]) -> None:
    """Refuse to go on with another teacher or tokenizer than the run has had."""
    known = target_model_of(provenance)
    if source is not None and known is not None and source.known.sha256 != known.sha256:
        raise UsageError(
            f"{source.known.name} has other weights than it had when this run began (SHA-256 "
            f"{source.known.sha256[:12]}, not {known.sha256[:12]}); put the old ones back, or start anew with "
            "another --out."
        )


def _start(
    recipe: PretrainRecipe,
    spec: BackboneSpec,
    init_from: str | None,
    seed: int,
    source: TargetSource | None,
) -> SimMIM:
    """Build the model, with new weights or those of another run."""
    known = None if source is None else source.known
    model = SimMIM(spec, recipe.design, known, drop_path_rate=recipe.drop_path_rate, seed=seed)
    if init_from is None:
        return model
    start = load_simmim(init_from)
    if start.spec != spec:
        raise UsageError(
            f"--init-from {init_from} is a {start.spec.arch} made for {start.spec.img_size} pixels, not "
            f"a {recipe.arch} for {recipe.img_size}; give the same arch and -o img_size=..."
        )
    own, theirs = asdict(recipe.design), asdict(start.design)
    if _shapes(model) != _shapes(start):
        differs = [f"{key}={theirs[key]}" for key in own if own[key] != theirs[key]]
        raise UsageError(
            f"--init-from {init_from} has other parts than this recipe's model; give -o {' -o '.join(differs)}."
        )
    model.load_state_dict(start.state_dict())
    return model


def _shapes(model: SimMIM) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def _image_flops(recipe: PretrainRecipe, model: SimMIM) -> int:
    """Count an image's floating-point operations in a step; a teacher or tokenizer has no backward pass."""
    image = torch.zeros(
        1, model.spec.in_chans, *recipe.img_size, device=next(model.parameters()).device
    )
    mask = _some_mask(model.spec, recipe.mask_ratio)
    of_target = count_flops(lambda: model.target.of(image, mask))
    forward = _forward_flops(model.spec, recipe.design, recipe.mask_ratio, model.target_model)
    return FORWARD_AND_BACKWARD * forward + of_target


def _forward_flops(
    spec: BackboneSpec,
    design: Design = PAPER,
    mask_ratio: float = 0.6,
    target_model: TargetModel | None = None,
) -> int:
    """Count the floating-point operations of one image's forward pass but the target's, on shapes alone."""
    with torch.device("meta"):
        model = SimMIM(spec, design, target_model)
    image = torch.empty(1, spec.in_chans, *spec.img_size, device="meta")
    mask = _some_mask(spec, mask_ratio)
    of_target = count_flops(lambda: model.target.ready and model.target.of(image, mask))
    return count_flops(lambda: model(image, mask)) - of_target


def _some_mask(spec: BackboneSpec, mask_ratio: float) -> torch.Tensor:
    """Give a mask (1, h, w): how many patches are hidden shapes what is computed."""
    mask = torch.zeros(1, *spec.grid)
    mask.view(-1)[: round(mask_ratio * mask.numel())] = 1
    return mask
