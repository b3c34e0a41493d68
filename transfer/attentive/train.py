"""Train the heads of all candidates on random crops, and compare them on the centre crops of held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import Checkpoint, write_checkpoint
from simmim_bench.data.datasets import ImageDataset, LoadImage
from simmim_bench.data.loader import EpochLoader
from simmim_bench.data.normalise import normalise_like_torchvision
from simmim_bench.data.sources import ImageSource
from simmim_bench.runs.context import RunContext
from simmim_bench.training.accumulation import LossFunction
from simmim_bench.training.loop import fit
from simmim_bench.training.optim import Schedule
from simmim_bench.training.precision import agree_on_precision, default_precision
from simmim_bench.training.state import TrainState, read_saved
from transfer.attentive.batch_norm import total_over
from transfer.attentive.probes import AttentiveProbes, build_optimizer, list_candidates, peak_lr
from transfer.attentive.recipes import AttentiveRecipe
from transfer.attentive.tokens import FrozenTokens, load_tokens
from transfer.finetune.train import check_classes
from transfer.frozen.crops import centre_crop, random_crop_flip
from transfer.frozen.features import block_width
from transfer.inference import forward_batches
from transfer.job import TransferJob


@dataclass(frozen=True, kw_only=True)
class Probing:
    """One attentive probe, built.

    Attributes:
        train: the training images, with their classes.
        learnt: (P, images), 1 for a training image that a part learns from, else 0; the last part learns from all.
    """

    context: RunContext
    job: TransferJob[AttentiveRecipe]
    train: ImageSource
    learnt: Tensor
    tokens: FrozenTokens
    probes: AttentiveProbes
    state: TrainState

    def save(self) -> None:
        """Write the last checkpoint: the frozen backbone, with the heads among the training state."""
        heads, training = self.state.state_dict(self.context.dist)
        if not self.context.dist.is_main:
            return
        checkpoint, backbone = self.job.checkpoint, self.tokens.backbone
        write_checkpoint(
            self.context.run.last_checkpoint,
            state=backbone.state_dict(),
            spec=backbone.spec,
            form="transfer",
            mean=checkpoint.mean,
            std=checkpoint.std,
            value_range=checkpoint.value_range,
            provenance={
                "label": checkpoint.label,
                "method": "attentive",
                "classes": list(self.train.classes),
                "from": {"sha256": checkpoint.sha256, "provenance": checkpoint.provenance},
            },
            training={**training, "heads": heads},
        )


def build(
    context: RunContext,
    job: TransferJob[AttentiveRecipe],
    train: ImageSource,
    learnt: Tensor,
) -> Probing:
    """Build backbone, heads, loader and optimizer, and resume from the run's last checkpoint if there is one.

    Raises:
        UsageError: the recipe names what the backbone does not have, or the processes do not divide the batch.
        DataError: the checkpoint does not fit, or the run to resume was trained for other classes.
    """
    recipe, dist = job.recipe, context.dist
    saved = context.last_checkpoint()
    if saved is not None:
        check_classes(saved, train, job.data)
    training = read_saved(context, saved)
    tokens = load_tokens(recipe, job.checkpoint, dist.device, seed=context.seed)
    context.run.log(f"attentive: {tokens.backbone.load_report}")
    spec = job.checkpoint.spec
    probes = AttentiveProbes(
        list_candidates(tokens.blocks, recipe),
        {block: block_width(spec, block) for block in tokens.blocks},
        len(train.classes),
        recipe,
        parts=len(learnt),
        seed=context.seed,
        total=total_over(dist),
        processes=dist.size,
    ).to(dist.device)
    loader = EpochLoader(
        ImageDataset(train, random_crop(recipe, job.checkpoint)),
        batch_size=recipe.batch_size,
        num_workers=recipe.num_workers,
        seed=context.seed,
        rank=dist.rank,
        world_size=dist.size,
    )
    batch = min(recipe.batch_size, len(train))
    state = TrainState(
        model=probes,
        parallel_model=dist.wrap_model(probes),
        optimizer=build_optimizer(probes, recipe),
        schedule=build_schedule(recipe, len(loader)),
        loader=loader,
        precision=agree_on_precision(
            default_precision(recipe.precision, dist.device, allow_fp16=True), dist
        ),
        accumulation_steps=-(-batch // recipe.norm_images),
    )
    if training is not None:
        state.load_state_dict(training["heads"], training)
        context.run.rewind(state.step)
        context.run.log(f"attentive: resumed step={state.step} epoch={state.epochs_done:.2f}")
    return Probing(
        context=context,
        job=job,
        train=train,
        learnt=learnt,
        tokens=tokens,
        probes=probes,
        state=state,
    )


def train_probes(probing: Probing) -> None:
    """Train all heads to the last epoch.

    Raises:
        DivergedError: a loss is not finite.
        InterruptedRun: a signal came; its step is saved.
    """
    context, recipe, state = probing.context, probing.job.recipe, probing.state
    context.run.log(
        f"attentive: start images={len(probing.train):,} candidates={len(probing.probes.candidates)} "
        f"heads={len(probing.probes.candidates) * probing.probes.parts} epochs={recipe.epochs} "
        f"steps_per_epoch={len(state.loader):,} batch_size={recipe.batch_size} "
        f"accumulation_steps={state.accumulation_steps} processes={context.dist.size}"
    )
    fit(
        context,
        state,
        probe_loss(probing),
        description="attentive",
        epochs=recipe.epochs,
        clip_grad=0.0,
        save=probing.save,
    )


def probe_loss(probing: Probing) -> LossFunction:
    """Return a function from the heads and a batch (images, labels, indices) to the mean of all heads' losses."""
    prepare, device = normaliser(probing), probing.context.dist.device
    learnt = probing.learnt.to(device)

    def compute_loss(model: nn.Module, batch: list[Tensor], epoch: int) -> Tensor:
        images, labels, indices = (x.to(device, non_blocking=True) for x in batch)
        tokens = probing.tokens(prepare(images))
        with torch.autocast(device.type, enabled=False):
            losses: Tensor = model(tokens, labels, learnt[:, indices])
        # The mean for the log, with the gradient of the sum: each head's gradient is that of its own loss.
        return losses.sum() + (losses.mean() - losses.sum()).detach()

    return compute_loss


def normaliser(probing: Probing) -> Callable[[Tensor], Tensor]:
    """Return the function that normalises decoded images as in the checkpoint's pretraining."""
    checkpoint = probing.job.checkpoint
    return lambda images: normalise_like_torchvision(images, checkpoint.mean, checkpoint.std)


def build_schedule(recipe: AttentiveRecipe, steps_per_epoch: int) -> Schedule:
    """Build the schedule: linear warm-up, then half a cosine to zero (efficient-probing: util/lr_sched.py)."""
    return Schedule(
        kind="cosine",
        peak_lr=peak_lr(recipe),
        total_steps=recipe.epochs * steps_per_epoch,
        warmup_steps=recipe.warmup_epochs * steps_per_epoch,
        warmup_prefix=True,
        rule="mae",
    )


def random_crop(recipe: AttentiveRecipe, checkpoint: Checkpoint) -> LoadImage:
    """Build the random crop and flip of a recipe, which returns bytes."""
    return random_crop_flip(
        recipe.img_size,
        checkpoint,
        rule=recipe.crop_rule,
        scale=recipe.crop_scale,
        hflip=recipe.hflip,
        resizing=recipe.resizing,
    )


def forward_centre_crops(
    probing: Probing,
    images: ImageSource,
    forward: Callable[[Tensor], Tensor],
    description: str,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[range, Tensor]]:
    """Forward the centre crops of this process's images; see `forward_batches`."""
    recipe, checkpoint = probing.job.recipe, probing.job.checkpoint
    return forward_batches(
        forward,
        ImageDataset(images, centre_crop(recipe, checkpoint)),
        batch_size=recipe.forward_batch_size,
        num_workers=recipe.num_workers,
        precision=recipe.precision,
        run=probing.context.run,
        dist=probing.context.dist,
        description=description,
        dtype=dtype,
        statistics=(checkpoint.mean, checkpoint.std),
    )


def held_out_top1(probing: Probing, held_out: Tensor) -> list[float]:
    """Return the top-1 of every candidate on the centre crops of held-out training images, in percent.

    The heads are those of the first part, which has not learnt from these images.

    Returns:
        One value per candidate on rank 0; an empty list on the other processes.
    """
    images = probing.train.subset(held_out.tolist())
    probes, dist = probing.probes.eval(), probing.context.dist
    numbers = range(len(probes.candidates))

    def predict(pixels: Tensor) -> Tensor:
        tokens = probing.tokens(pixels)
        with torch.autocast(dist.device.type, enabled=False):
            logits = probes.logits(tokens, torch.ones(1, len(pixels), device=dist.device))
        return torch.stack([logits[number, 0].argmax(1) for number in numbers], 1)

    labels = torch.tensor(images.labels)
    correct = torch.zeros(len(numbers), dtype=torch.int64)
    for rows, predicted in forward_centre_crops(probing, images, predict, "compare", torch.int64):
        correct += (predicted == labels[rows.start : rows.stop, None]).sum(0)
    counts = dist.gather(correct)
    if not counts:
        return []
    top1: list[float] = (100 * torch.stack(counts).sum(0) / len(labels)).tolist()
    return top1
