"""Plan a fine-tuning before it starts: its model, its number of steps, and a step on random images."""

from __future__ import annotations

import torch
from torch import Tensor

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.diagnostics.estimate import KEPT, DataSize, Work, checkpoint_bytes, epoch_steps
from simmim_bench.display import plural
from simmim_bench.training.kernels import use_channels_last
from simmim_bench.training.precision import default_precision
from transfer.finetune.recipes import FinetuneRecipe
from transfer.finetune.train import loss_and_mixing, training_transform


def plan_finetune(
    recipe: FinetuneRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    """Build the classifier of a recipe and count its training steps.

    Raises:
        UsageError: an image size that the backbone cannot have.
        DataError: the weights do not fit the backbone.
    """
    model = load_backbone(
        checkpoint,
        recipe.img_size,
        data.classes,
        window_size=recipe.window_size,
        drop_path_rate=recipe.drop_path_rate,
    )
    model.to(device).train()
    use_channels_last(model, model.spec, device)
    criterion, mixup = loss_and_mixing(recipe, data.classes)

    def forward(images: int) -> Tensor:
        pixels = torch.randn(images, model.spec.in_chans, *recipe.img_size, device=device)
        labels = torch.arange(images, device=device) % data.classes
        if mixup is not None:
            labels = torch.nn.functional.one_hot(labels, data.classes).float()
        loss: Tensor = criterion(model(pixels).float(), labels)
        return loss

    steps_per_epoch = epoch_steps(data.train, recipe.batch_size)
    saved = [model, model] if recipe.ema_decay else [model]
    return Work(
        model=model,
        forward=forward,
        precision=default_precision(recipe.precision, device, allow_fp16=True),
        batch_size=min(recipe.batch_size, data.train),
        steps=recipe.epochs * steps_per_epoch,
        counted=f"{plural(recipe.epochs, 'epoch')} of {plural(steps_per_epoch, 'step')}, of {data.images}",
        disk=KEPT * checkpoint_bytes(saved, model.parameters()),
        written=f"{KEPT} checkpoints at a time; predictions come on top",
        cut="by itself" if device.type == "cuda" else None,
        load=training_transform(recipe, checkpoint, device)
        if checkpoint.pixel_format.is_rgb
        else None,
        num_workers=recipe.num_workers,
    )
