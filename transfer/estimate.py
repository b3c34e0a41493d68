"""A transfer as far as it is known before it is begun.

In: a recipe, a checkpoint, the size of the data. Out: a `Work` whose step can be taken on made-up images.
"""

from __future__ import annotations

import torch

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.diagnostics.estimate import DataSize, Work
from transfer.detection.estimate import plan_coco
from transfer.detection.recipes import CocoRecipe
from transfer.finetune.estimate import plan_finetune
from transfer.finetune.recipes import FinetuneRecipe
from transfer.frozen.estimate import plan_frozen
from transfer.recipes import TransferRecipe
from transfer.segmentation.estimate import plan_ade20k
from transfer.segmentation.recipes import Ade20kRecipe


def data_of(recipe: TransferRecipe) -> str:
    """Give the kind of data set that a recipe is for."""
    if isinstance(recipe, CocoRecipe):
        return "coco"
    return "ade20k" if isinstance(recipe, Ade20kRecipe) else "imagenet"


def plan_transfer(
    recipe: TransferRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    """Build the model of a recipe and count its steps.

    Raises:
        MissingEngineError: the framework of the recipe is not installed.
        UsageError: sizes that the model cannot have.
        DataError: a checkpoint that does not fit.
    """
    if isinstance(recipe, CocoRecipe):
        return plan_coco(recipe, checkpoint, data, device)
    if isinstance(recipe, Ade20kRecipe):
        return plan_ade20k(recipe, checkpoint, data, device)
    if isinstance(recipe, FinetuneRecipe):
        return plan_finetune(recipe, checkpoint, data, device)
    return plan_frozen(recipe, checkpoint, data, device)
