"""Time a training step of a ViT detector: with global attention, window attention, and activation recomputation.

    python benchmarks/detection_step.py --arch vit_b --batch-size 2

The model is that of a recipe, by default ViTDet's, with random weights; images and objects are synthetic. The report
includes the peak GPU memory and the estimate that `transfer coco` makes before it starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from timing import compare, report

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.distributed import DistContext, best_device
from simmim_bench.recipe import find_recipe
from simmim_bench.training.memory import GIB
from simmim_bench.training.optim import parameter_groups
from transfer.detection.loop import Batch
from transfer.detection.memory import estimate_memory
from transfer.detection.model import build_detector, find_adapter
from transfer.detection.recipes import CocoRecipe
from transfer.recipes import RECIPES

CLASSES = 80
OBJECTS = 7  # per image; COCO has 7.3


def main() -> None:
    """Parse the arguments, time the alternatives and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="vit_b")
    parser.add_argument("--recipe", default="coco_vitdet_b")
    parser.add_argument("--img-size", type=int, help="side in pixels; the recipe's by default")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    device = best_device()
    recipe = find_recipe(RECIPES, arguments.recipe)
    if not isinstance(recipe, CocoRecipe):
        parser.error(f"--recipe {arguments.recipe} is not a recipe of coco")
    side = arguments.img_size or recipe.img_size[0]
    recipe = replace(recipe, img_size=(side, side))
    batch = synthetic_batch(arguments.batch_size, side)
    steps: dict[str, Callable[[], object]] = {}
    facts: dict[str, object] = {}
    alternatives = {
        "global attention": (replace(recipe, window_size=None), False),
        f"windows of {recipe.window_size}, the default": (recipe, False),
        f"windows of {recipe.window_size}, activations recomputed": (recipe, True),
    }
    for name, (changed, recompute) in alternatives.items():
        step, estimated = build_step(
            arguments.arch, changed, batch, device, grad_checkpointing=recompute
        )
        steps[name] = step
        facts[f"estimated_for_{name}"] = f"{estimated:.1f} GiB"
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            step()  # the first step allocates the optimizer's moments
            peak = torch.cuda.max_memory_allocated() - before
            facts[f"peak_of_{name}"] = f"{peak / GIB:.1f} GiB"
    timings = compare(steps, rounds=arguments.rounds)
    best = min(timings, key=lambda timing: timing.seconds)
    report(
        f"a training step of {recipe.name}, {arguments.arch}, {len(batch)} images of {side} pixels",
        timings,
        arguments.json,
        images_per_s=round(len(batch) / best.seconds, 2),
        **facts,
    )


def build_step(
    arch: str,
    recipe: CocoRecipe,
    batch: Batch,
    device: torch.device,
    *,
    grad_checkpointing: bool,
) -> tuple[Callable[[], object], float]:
    """Return a function that takes one training step, and the estimate of its memory in GiB."""
    model = build_detector(
        read_checkpoint(f"random:{arch}"),
        recipe,
        num_classes=CLASSES,
        masks=True,
        seed=0,
        device=device,
    )
    backbone = find_adapter(model).backbone
    backbone.set_grad_checkpointing(grad_checkpointing)
    memory = estimate_memory(model, batch[0], recipe, DistContext(device=device))
    estimated = memory.needed(len(batch)) / GIB
    optimizer = torch.optim.AdamW(
        parameter_groups(model, backbone, lr=1e-5, weight_decay=recipe.weight_decay)
    )

    def step() -> None:
        with EventStorage():
            loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, estimated


def synthetic_batch(images: int, side: int) -> Batch:
    """Return noise images with rectangular objects, in the format of Detectron2's dataset mapper."""
    generator = np.random.default_rng(0)
    batch: Batch = []
    for _ in range(images):
        corner = generator.uniform(0, 0.6 * side, (OBJECTS, 2))
        extent = generator.uniform(0.05 * side, 0.4 * side, (OBJECTS, 2))
        boxes = torch.from_numpy(np.concatenate([corner, corner + extent], 1)).float()
        masks = torch.zeros(OBJECTS, side, side, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances = Instances(
            (side, side),
            gt_boxes=Boxes(boxes),
            gt_classes=torch.from_numpy(generator.integers(0, CLASSES, OBJECTS)),
            gt_masks=BitMasks(masks),
        )
        pixels = generator.integers(0, 256, (3, side, side), dtype=np.uint8)
        batch.append({"image": torch.from_numpy(pixels), "instances": instances})
    return batch


if __name__ == "__main__":
    main()
