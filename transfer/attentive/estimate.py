"""Plan an attentive probe before it starts: its steps, and the memory of the tokens of a part of a batch."""

from __future__ import annotations

import torch

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.diagnostics.estimate import DataSize, Work
from transfer.attentive.recipes import AttentiveRecipe


def plan_attentive(
    recipe: AttentiveRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    """Build the backbone and the heads of a recipe, and count its training steps."""
    raise NotImplementedError
