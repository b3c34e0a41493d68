"""Pretraining from images to a checkpoint directory.

In: a recipe, a folder of images, a seed. Out: a run directory whose `checkpoints/last/` holds the SimMIM
model, `metrics.jsonl` the losses and `reconstructions.png` what it has learned to see.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from pretrain.health import CollapseAlarm, trivial_loss
from pretrain.masking import check_mask_sizes, mask_generator, random_masks
from pretrain.recipes import PretrainRecipe
from pretrain.simmim import SimMIM, load_simmim
from pretrain.visualize import draw
from simmim_bench.archs import find_spec
from simmim_bench.checkpoint import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    read_checkpoint,
    read_training_state,
    write_checkpoint,
)
from simmim_bench.data import (
    EpochLoader,
    ImageDataset,
    ImageList,
    any_images,
    eval_loader,
    eval_transform,
    pretrain_transform,
    seed_everything,
)
from simmim_bench.engine import fit
from simmim_bench.errors import UsageError
from simmim_bench.kernels import autocast, best_device, decide_precision
from simmim_bench.optim import Schedule, parameter_groups, scaled_lr
from simmim_bench.rundir import RunDir
from simmim_bench.team import Team

HELD_OUT_IMAGES = 512  # enough for the third digit of the held-out loss
PICTURES = 8


def pretrain(
    *,
    recipe: PretrainRecipe,
    deviates: dict[str, Any],
    data: Path,
    run: RunDir,
    seed: int,
    init_from: str | None = None,
    resume: bool = False,
    team: Team | None = None,
    accumulate: int = 1,
    skip_unreadable: int = 0,
) -> Path:
    """Pretrain and give the checkpoint directory.

    Args:
        team: the processes that share each batch; None for this one alone.
        accumulate: parts that a process cuts its share of a batch into, where the whole does not fit.
        skip_unreadable: so many images that cannot be read are left out, with a count in the log.

    Raises:
        UsageError: sizes that do not divide each other.
        DataError: images or a checkpoint that cannot be used.
        DivergedError: the loss is not finite.
    """
    spec = find_spec(recipe.arch).at(recipe.img_size, recipe.window_size)
    check_mask_sizes(recipe.img_size, recipe.mask_patch_size, spec.patch_size)
    if any(size % spec.stride for size in recipe.img_size):
        raise UsageError(
            f"img_size {recipe.img_size} is not a multiple of {recipe.arch}'s stride {spec.stride}."
        )
    images = any_images(data)
    if (data / "val").is_dir():
        any_images(
            data / "val"
        )  # it is asked for after the last epoch: too late to learn that it is empty
    team = team or Team(device=best_device())
    device = team.device
    model = SimMIM(
        spec, drop_path_rate=recipe.drop_path_rate, norm_target=recipe.norm_target, seed=seed
    )
    if init_from is not None:
        start = load_simmim(init_from)
        if start.spec != spec:
            raise UsageError(
                f"--init-from {init_from} is a {start.spec.arch} made for {start.spec.img_size} pixels, not "
                f"a {recipe.arch} for {recipe.img_size}; give the same arch and -o img_size=..."
            )
        model.load_state_dict(start.state_dict())
    model.to(device)

    dataset = ImageDataset(
        images,
        pretrain_transform(
            recipe.img_size, crop_scale=recipe.crop_scale, mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
        skip_unreadable=skip_unreadable,
    )
    loader = EpochLoader(
        dataset,
        batch_size=recipe.batch_size,
        num_workers=recipe.num_workers,
        seed=seed,
        rank=team.rank,
        team_size=team.size,
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
    decided = decide_precision(recipe.precision, device, spec.num_features)
    first_step, precision = 0, "bf16" if team.largest(decided == "bf16") else "fp32"
    if resume and run.last_checkpoint.is_dir():
        if "wall_time_s" in read_checkpoint(str(run.last_checkpoint)).provenance:
            run.log(f"{run.path} is finished")
            return run.last_checkpoint
        state = read_training_state(run.last_checkpoint)
        model.load_state_dict(load_simmim(str(run.last_checkpoint)).state_dict())
        optimizer.load_state_dict(state["optimizer"])
        first_step, precision = state["steps_done"], state.get("precision", "fp32")
        run.rewind(first_step)
        run.log(f"resumed after step {first_step}, epoch {first_step / len(loader):.2f}")
    run.log(
        f"{recipe.arch}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, "
        f"{len(images)} images, {recipe.epochs} epochs of {len(loader)} steps, "
        f"batch {recipe.batch_size}, learning rate {peak_lr:.3g}, {precision}"
        + (f", {team.size} processes" if team.size > 1 else "")
        + (f", in {accumulate} parts" if accumulate > 1 else "")
    )

    provenance: dict[str, Any] = {
        "label": f"{recipe.arch}, SimMIM {recipe.name}" + (" *" if deviates else ""),
        "method": "simmim",
        "recipe": {"name": recipe.name, "sha256": recipe.sha256(), "deviates": deviates},
        "norm_target": recipe.norm_target,
        "seed": seed,
        "init_from": init_from,
        "data": {"root": str(data), "images": len(images), "fingerprint": images.fingerprint()},
    }

    seed_everything(seed)
    alarm = CollapseAlarm(trivial_loss(dataset, seed))
    run.log(f"a constant picture scores {alarm.trivial:.4f}: a loss near it has learnt nothing")

    def save(steps_done: int) -> None:
        if not team.is_main:
            return
        if steps_done % len(loader) == 0 and "wall_time_s" not in provenance:
            held_out = _held_out(model, recipe, data, images, run, device, precision)
            provenance["held_out_loss"] = held_out
            run.metrics(steps_done - 1, held_out_loss=held_out, trivial_loss=alarm.trivial)
        write_checkpoint(
            run.last_checkpoint,
            state=model.state_dict(),
            spec=spec,
            form="pretrain",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            provenance={**provenance, "epochs": round(steps_done / len(loader), 3)},
            training={
                "optimizer": optimizer.state_dict(),
                "steps_done": steps_done,
                "precision": precision,
            },
        )

    shared = team.share(model)

    def loss_of(batch: list[torch.Tensor], epoch: int) -> torch.Tensor:
        pixels, _, indices = batch
        generators = [mask_generator(seed, epoch, int(index)) for index in indices]
        mask = _masks(len(pixels), recipe, spec.patch_size, generators).to(device)
        loss: torch.Tensor = shared(pixels.to(device, non_blocking=True), mask).loss
        return loss

    started = time.monotonic()
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
        team=team,
        accumulate=accumulate,
        watch=alarm.hear,
    )
    if not team.is_main:
        return run.last_checkpoint
    if dataset.skipped:  # by this process; a loader's processes count in the same place
        run.log(f"{dataset.skipped} images could not be read and were left out")
        provenance["unreadable_images"] = dataset.skipped
    if "held_out_loss" not in provenance:  # killed between the last epoch and this line
        provenance["held_out_loss"] = _held_out(model, recipe, data, images, run, device, precision)
    provenance["wall_time_s"] = round(time.monotonic() - started, 1)
    save(recipe.epochs * len(loader))
    run.log(
        f"held-out reconstruction loss {provenance['held_out_loss']:.4f}; "
        f"{run.path / 'reconstructions.png'}"
    )
    return run.last_checkpoint


def _masks(
    count: int,
    recipe: PretrainRecipe,
    patch_size: int,
    generator: torch.Generator | list[torch.Generator],
) -> torch.Tensor:
    return random_masks(
        count,
        recipe.img_size,
        mask_patch_size=recipe.mask_patch_size,
        patch_size=patch_size,
        mask_ratio=recipe.mask_ratio,
        generator=generator,
    )


@torch.no_grad()
def _held_out(
    model: SimMIM,
    recipe: PretrainRecipe,
    data: Path,
    images: ImageList,
    run: RunDir,
    device: torch.device,
    precision: str,
) -> float:
    """Score reconstruction on images of `val/` with fixed masks, and draw some.

    Without a `val/` folder the training images stand in.
    """
    if (data / "val").is_dir():
        images = any_images(data / "val")
    stride = max(1, len(images) // HELD_OUT_IMAGES)
    images = images.subset(range(0, len(images), stride))
    transform = eval_transform(
        recipe.img_size, crop_ratio=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    loader = eval_loader(
        ImageDataset(images, transform), batch_size=64, num_workers=recipe.num_workers
    )
    model.eval()
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for pixels, _ in loader:
        mask = _masks(len(pixels), recipe, model.spec.patch_size, generator)
        with autocast(device, precision):
            loss = model(pixels.to(device), mask.to(device)).loss
        total += float(loss) * len(pixels)
    draw(
        model,
        images,
        run.path / "reconstructions.png",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        count=PICTURES,
        mask_patch_size=recipe.mask_patch_size,
        mask_ratio=recipe.mask_ratio,
        seed=0,
    )
    return total / len(images)
