"""Plan a COCO transfer before it starts: its model, its number of steps, and a training step on synthetic images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.diagnostics.estimate import KEPT, DataSize, Work, checkpoint_bytes
from simmim_bench.distributed import DistContext
from transfer.detection.framework import require_detectron2
from transfer.detection.recipes import CocoRecipe

OBJECTS = 7  # of a synthetic image: COCO's training images have 7.3 on average


def plan_coco(
    recipe: CocoRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    """Build the detector of a recipe and count its training steps.

    Raises:
        MissingFrameworkError: Detectron2 is not installed.
        UsageError: the backbone does not have the pyramid's strides.
        DataError: the weights do not fit the backbone.
    """
    require_detectron2()
    from detectron2.utils.events import EventStorage

    from transfer.detection.memory import estimate_memory
    from transfer.detection.model import build_detector, find_adapter

    model = build_detector(
        checkpoint, recipe, num_classes=data.classes, masks=True, seed=0, device=device
    )
    model.train()
    pixel_format = checkpoint.pixel_format
    image = synthetic_image(recipe.img_size, data.classes, pixel_format)

    def forward(images: int) -> Tensor:
        with EventStorage():
            losses: dict[str, Tensor] = model([image] * images)
        return torch.stack(list(losses.values())).sum()

    backbone = find_adapter(model).backbone
    return Work(
        model=model,
        forward=forward,
        precision="fp32",  # the adapter applies the recipe's precision to the backbone
        batch_size=recipe.batch_size,
        steps=recipe.max_iters,
        counted=f"{recipe.max_iters:,} iterations",
        disk=KEPT * checkpoint_bytes([backbone, model], model.parameters()),
        written=f"{KEPT} checkpoints at a time; predictions come on top",
        cut="by itself",
        memory=lambda: estimate_memory(
            model,
            largest_image(recipe, data.classes, pixel_format),
            recipe,
            DistContext(device=device),
        ),
    )


def largest_image(
    recipe: CocoRecipe, classes: int, pixel_format: PixelFormat = RGB
) -> dict[str, Any]:
    """Build a synthetic training image of the largest size that a recipe's images are padded to.

    Without a square, images are padded to the largest of their batch: one upright, another across at most.
    """
    side = max(recipe.img_size)
    return synthetic_image((side, side), classes, pixel_format)


def synthetic_image(
    img_size: tuple[int, int], classes: int, pixel_format: PixelFormat = RGB
) -> dict[str, Any]:
    """Build a training image of random pixels, in the form that Detectron2's mapper returns.

    Args:
        img_size: (H, W) in pixels.
        classes: number of classes; the `OBJECTS` boxes have the classes 0, 1, ... in turn.
        pixel_format: of the image, which is uint8 or float32 as decoded images are.
    """
    from detectron2.structures import BitMasks, Boxes, Instances

    height, width = img_size
    objects = Instances((height, width))
    tops = torch.linspace(0, height / 2, OBJECTS)
    lefts = torch.linspace(0, width / 2, OBJECTS)
    corners = torch.stack([lefts, tops, lefts + width / 4, tops + height / 4], 1)
    objects.gt_boxes = Boxes(corners)
    objects.gt_classes = torch.arange(OBJECTS) % classes
    objects.gt_masks = BitMasks(torch.ones(OBJECTS, height, width, dtype=torch.bool))
    pixels = torch.randint(0, 256, (pixel_format.in_chans, height, width), dtype=torch.uint8)
    image = pixels if pixel_format.value_range == "uint8" else pixels / 255
    return {"image": image, "instances": objects, "height": height, "width": width}
