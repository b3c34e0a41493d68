"""Plan an attentive probe before it starts: its steps, and the memory of the tokens of a part of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.diagnostics.estimate import KEPT, DataSize, Work, checkpoint_bytes, epoch_steps
from simmim_bench.display import plural
from simmim_bench.distributed import DistContext
from simmim_bench.training.precision import default_precision
from transfer.attentive.batch_norm import total_over
from transfer.attentive.probes import SINGLE, AttentiveProbes, list_candidates
from transfer.attentive.recipes import AttentiveRecipe
from transfer.attentive.tokens import load_tokens
from transfer.attentive.train import random_crop
from transfer.frozen.candidates import check_enough
from transfer.frozen.features import block_width


def plan_attentive(
    recipe: AttentiveRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    """Build the backbone and the heads of a recipe, and count its training steps.

    Raises:
        UsageError: the recipe names what the backbone does not have.
        DataError: the weights do not fit the backbone, or too few images to compare candidates on.
    """
    tokens = load_tokens(recipe, checkpoint, device)
    candidates = list_candidates(tokens.blocks, recipe)
    parts = 2 if len(candidates) > 1 else 1
    if parts > 1:
        check_enough(data.train, data.classes, SINGLE)
    widths = {block: block_width(checkpoint.spec, block) for block in tokens.blocks}
    probes = AttentiveProbes(
        candidates,
        widths,
        data.classes,
        recipe,
        parts=parts,
        seed=0,
        total=total_over(DistContext()),
    ).to(device)
    model = nn.ModuleList([tokens, probes]).train()
    in_chans = tokens.backbone.spec.in_chans

    def forward(images: int) -> Tensor:
        pixels = torch.randn(images, in_chans, *recipe.img_size, device=device)
        labels = torch.arange(images, device=device) % data.classes
        counted = torch.ones(parts, images, device=device)
        found = tokens(pixels)
        with torch.autocast(device.type, enabled=False):
            losses: Tensor = probes(found, labels, counted)
        return losses.sum()

    steps_per_epoch = epoch_steps(data.train, recipe.batch_size)
    part = min(recipe.norm_images, recipe.batch_size, data.train)
    in_epoch = steps_per_epoch * -(-min(recipe.batch_size, data.train) // part)
    return Work(
        model=model,
        forward=forward,
        precision=default_precision(recipe.precision, device, allow_fp16=True),
        batch_size=part,
        steps=recipe.epochs * in_epoch,
        counted=f"{plural(recipe.epochs, 'epoch')} of {plural(in_epoch, 'part')} of a batch, of {data.images}; "
        f"{plural(len(candidates), 'candidate')} in one pass",
        left_out="loading images, comparing the candidates, scoring, saving",
        disk=KEPT * checkpoint_bytes([tokens.backbone, probes], probes.parameters()),
        written=f"{KEPT} checkpoints at a time; predictions come on top",
        cut=None,
        load=random_crop(recipe, checkpoint) if checkpoint.pixel_format.is_rgb else None,
        num_workers=recipe.num_workers,
    )
