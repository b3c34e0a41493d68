"""Estimate the memory of a detector's training step, and choose the number of accumulation steps from it.

Imports Detectron2 at the top: import this module after `framework.require_detectron2` has passed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from simmim_bench.distributed import DistContext, per_process_batch
from simmim_bench.errors import UsageError
from simmim_bench.runs.context import RunContext
from simmim_bench.training.memory import GIB, StepMemory, step_memory, trial_memory
from transfer.detection.model import POSITIVE_FRACTION
from transfer.detection.recipes import CocoRecipe


def estimate_memory(
    model: GeneralizedRCNN, image: dict[str, Any], recipe: CocoRecipe, dist: DistContext
) -> StepMemory:
    """Measure the forward passes of one and of two training images and estimate a training step's memory.

    The image's objects are repeated until they fill the positive regions that a step samples: the most
    that any image can need.
    """
    objects = image["instances"]
    wanted = math.ceil(POSITIVE_FRACTION * recipe.roi_samples)
    crowded = Instances.cat([objects] * max(1, -(-wanted // max(1, len(objects)))))
    item = {**image, "instances": crowded}
    model.train()
    with EventStorage():
        return step_memory(
            model,
            lambda: model([item]),
            1,
            dist.device,
            dist.size,
            forward_double=lambda: model([item, item]),
        )


def choose_accumulation(
    model: GeneralizedRCNN,
    image: dict[str, Any],
    recipe: CocoRecipe,
    requested: int | None,
    context: RunContext,
) -> int:
    """Return the number of gradient-accumulation steps of a process, the same on every process, and log it.

    Args:
        image: one of the training images.
        requested: number of accumulation steps; None for the smallest number that fits in memory.

    Raises:
        UsageError: one image does not fit in memory, or the steps outnumber a process's images.
    """
    dist = context.dist
    images = per_process_batch(recipe.batch_size, dist.size)
    if requested is not None and requested > images:
        raise UsageError(
            f"--accumulate {requested} is more than the {images} images of a batch that each process takes; use "
            f"1 to {images}."
        )
    memory: StepMemory | None = None
    try:
        with trial_memory(dist.device):
            memory = estimate_memory(model, image, recipe, dist)
        fitting = memory.accumulation_steps(images)
    except torch.OutOfMemoryError:
        fitting = None
    steps = requested or fitting
    if dist.all_max(steps is None):
        raise UsageError(
            "One image does not fit in the memory of a process; try --grad-checkpointing, or a smaller "
            "-o img_size=..."
        )
    assert steps is not None
    steps = dist.all_max(steps)
    if memory is not None and fitting is not None:
        _log_memory(memory, recipe, steps, context)
    return steps


def _log_memory(memory: StepMemory, recipe: CocoRecipe, steps: int, context: RunContext) -> None:
    processes = context.dist.size
    images = per_process_batch(recipe.batch_size, processes)
    micro_batch = -(-images // steps)
    available = "unknown" if memory.available is None else f"{memory.available / GIB:.1f}"
    context.run.log(
        f"coco: memory needed_gib={memory.needed(micro_batch) / GIB:.1f} available_gib={available} "
        f"weights_gradients_moments_gib={memory.fixed / GIB:.1f} batch_size={recipe.batch_size} "
        f"processes={processes} accumulation_steps={-(-images // micro_batch)} micro_batch={micro_batch}"
    )
