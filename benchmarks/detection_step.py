"""Time a training step of a ViT's detector: attention over the image, in windows, with recomputed blocks.

    python benchmarks/detection_step.py --arch vit_b --batch-size 2

The model is that of a recipe, ViTDet's by default, with weights drawn anew; pictures and objects are drawn.
Facts: the peak of a GPU's memory, and what `transfer coco` estimates before it starts.
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
from side_by_side import compare, report

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.distributed import DistContext, best_device
from simmim_bench.recipe import find_recipe
from simmim_bench.training.memory import GIB
from simmim_bench.training.optim import parameter_groups
from transfer.detection.loop import Batch, estimate_memory
from transfer.detection.model import build_detector, find_adapter
from transfer.detection.recipes import CocoRecipe
from transfer.recipes import RECIPES

CLASSES = 80
OBJECTS = 7  # an image; COCO has 7.3


def main() -> None:
    """Read the arguments, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="vit_b")
    parser.add_argument("--recipe", default="coco_vit_100ep")
    parser.add_argument("--img-size", type=int, help="pixels a side; the recipe's by default")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    device = best_device()
    recipe = find_recipe(RECIPES, arguments.recipe)
    if not isinstance(recipe, CocoRecipe):
        parser.error(f"{arguments.recipe} is not for coco")
    side = arguments.img_size or recipe.img_size[0]
    recipe = replace(recipe, img_size=(side, side))
    batch = draw(arguments.batch_size, side)
    work: dict[str, Callable[[], object]] = {}
    facts: dict[str, object] = {}
    alternatives = {
        "attention over the image": (replace(recipe, window_size=None), False),
        f"windows of {recipe.window_size}, the default": (recipe, False),
        f"windows of {recipe.window_size}, blocks computed again": (recipe, True),
    }
    for name, (changed, again) in alternatives.items():
        step, estimated = stepper(arguments.arch, changed, batch, device, grad_checkpointing=again)
        work[name] = step
        facts[f"estimated_for_{name}"] = f"{estimated:.1f} GiB"
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            step()  # the first one makes the moments
            peak = torch.cuda.max_memory_allocated() - before
            facts[f"peak_of_{name}"] = f"{peak / GIB:.1f} GiB"
    timings = compare(work, rounds=arguments.rounds)
    best = min(timings, key=lambda timing: timing.seconds)
    report(
        f"a training step of {recipe.name}, {arguments.arch}, {len(batch)} images of {side} pixels",
        timings,
        arguments.json,
        images_per_s=round(len(batch) / best.seconds, 2),
        **facts,
    )


def stepper(
    arch: str,
    recipe: CocoRecipe,
    batch: Batch,
    device: torch.device,
    *,
    grad_checkpointing: bool,
) -> tuple[Callable[[], object], float]:
    """Give a function that takes one step, and the estimate of its memory in GiB."""
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


def draw(images: int, side: int) -> Batch:
    """Give noise with rectangular objects, as Detectron2's mapper gives training images."""
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
