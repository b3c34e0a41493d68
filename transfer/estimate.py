"""A transfer as far as it is known before it is begun.

In: a recipe, a checkpoint, the size of the data. Out: a `Work` whose step can be taken on made-up images.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.diagnostics.estimate import (
    KEPT,
    OVERHEAD,
    DataSize,
    Work,
    checkpoint_bytes,
    epoch_steps,
)
from simmim_bench.distributed import DistContext
from transfer.detection.recipes import CocoRecipe
from transfer.finetune.recipes import FinetuneRecipe
from transfer.finetune.run import loss_and_mixing
from transfer.frozen.recipes import FrozenRecipe, KnnRecipe, LinearRecipe
from transfer.recipes import TransferRecipe
from transfer.segmentation.recipes import Ade20kRecipe

OBJECTS = 7  # of a made-up image: COCO's training images have 7.3 on average
CHECKPOINTS = f"{KEPT} checkpoints at a time; predictions come on top"


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
        return _coco(recipe, checkpoint, data, device)
    if isinstance(recipe, Ade20kRecipe):
        return _ade20k(recipe, checkpoint, data, device)
    if isinstance(recipe, FinetuneRecipe):
        return _finetune(recipe, checkpoint, data, device)
    return _frozen(recipe, checkpoint, data, device)


def _finetune(
    recipe: FinetuneRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    model = load_backbone(
        checkpoint,
        recipe.img_size,
        data.classes,
        window_size=recipe.window_size,
        drop_path_rate=recipe.drop_path_rate,
    )
    model.to(device).train()
    loss_of, mixup = loss_and_mixing(recipe, data.classes)

    def forward(images: int) -> Tensor:
        pixels = torch.randn(images, model.spec.in_chans, *recipe.img_size, device=device)
        labels = torch.arange(images, device=device) % data.classes
        if mixup is not None:
            labels = torch.nn.functional.one_hot(labels, data.classes).float()
        loss: Tensor = loss_of(model(pixels).float(), labels)
        return loss

    of_epoch = epoch_steps(data.train, recipe.batch_size)
    saved = [model, model] if recipe.ema_decay else [model]
    return Work(
        model=model,
        forward=forward,
        precision=recipe.precision,
        batch_size=min(recipe.batch_size, data.train),
        steps=recipe.epochs * of_epoch,
        counted=f"{recipe.epochs} epochs of {of_epoch:,} steps, of {data.images}",
        disk=KEPT * checkpoint_bytes(saved, model.parameters()),
        written=CHECKPOINTS,
        cut="by itself" if device.type == "cuda" else None,
    )


def _frozen(
    recipe: FrozenRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    from transfer.frozen.features import feature_sets

    model = load_backbone(checkpoint, recipe.img_size, window_size=recipe.window_size)
    model.to(device).eval().requires_grad_(False)
    sets = feature_sets(recipe, checkpoint.spec)
    crops = min(recipe.crops, recipe.epochs) if isinstance(recipe, LinearRecipe) else 0
    val = 0 if isinstance(recipe, KnnRecipe) and recipe.leave_one_out else data.val
    rows = data.train * (1 + crops) + val
    poolings = {part for one in sets for part in one.parts}
    row = len({one.block for one in sets}) * len(poolings) * checkpoint.spec.num_features
    steps = (1 + crops) * math.ceil(data.train / recipe.forward_batch_size)
    steps += math.ceil(val / recipe.forward_batch_size)
    return Work(
        model=model,
        forward=lambda n: model.forward_pooled(
            torch.randn(n, model.spec.in_chans, *recipe.img_size, device=device)
        ),
        precision=recipe.precision,
        batch_size=recipe.forward_batch_size,
        steps=steps,
        counted=f"{steps:,} forward passes of {data.images}"
        + (f", {crops} random crops of each" if crops else "")
        + f", and of {val:,}",
        left_out="loading images, learning from the features; fewshot passes its share of the images alone",
        disk=2 * row * rows + 2 * OVERHEAD * (crops + 2),  # float16, and descriptions
        written="features, which linear, knn and fewshot share",
        cut=None,
    )


def _coco(recipe: CocoRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device) -> Work:
    from transfer.detection.run import require_detectron2

    require_detectron2()
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    from transfer.detection.loop import estimate_memory
    from transfer.detection.model import build_detector, find_adapter

    model = build_detector(
        checkpoint, recipe, num_classes=data.classes, masks=True, seed=0, device=device
    )
    model.train()
    height, width = recipe.img_size
    objects = Instances((height, width))
    tops = torch.linspace(0, height / 2, OBJECTS)
    lefts = torch.linspace(0, width / 2, OBJECTS)
    sides = torch.stack([lefts, tops, lefts + width / 4, tops + height / 4], 1)
    objects.gt_boxes = Boxes(sides)
    objects.gt_classes = torch.arange(OBJECTS) % data.classes
    objects.gt_masks = BitMasks(torch.ones(OBJECTS, height, width, dtype=torch.bool))
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    image = {"image": pixels, "instances": objects, "height": height, "width": width}

    def forward(images: int) -> Tensor:
        with EventStorage():
            losses: dict[str, Tensor] = model([image] * images)
        return torch.stack(list(losses.values())).sum()

    backbone = find_adapter(model).backbone
    return Work(
        model=model,
        forward=forward,
        precision="fp32",  # the model's own forward pass goes down where the recipe says so
        batch_size=recipe.batch_size,
        steps=recipe.max_iters,
        counted=f"{recipe.max_iters:,} iterations",
        disk=KEPT * checkpoint_bytes([backbone, model], model.parameters()),
        written=CHECKPOINTS,
        cut="by itself",
        memory=lambda: estimate_memory(model, image, recipe, DistContext(device=device)),
    )


def _ade20k(
    recipe: Ade20kRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    from transfer.segmentation.run import check_sizes, import_mmseg

    check_sizes(recipe, checkpoint.spec, DistContext(device=device))
    engine = import_mmseg()
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    model = engine.build_segmentor(checkpoint, recipe, data.classes, 0)
    model.to(device).train()
    height, width = recipe.img_size

    def forward(images: int) -> Tensor:
        pixels = torch.randn(images, checkpoint.spec.in_chans, height, width, device=device)
        labels = torch.arange(height * width, device=device) % data.classes
        samples: list[Any] = [
            SegDataSample(gt_sem_seg=PixelData(data=labels.view(1, height, width)))
            for _ in range(images)
        ]
        for sample in samples:
            sample.set_metainfo({"img_shape": (height, width)})
        loss: Tensor = model.parse_losses(model.loss(pixels, samples))[0]
        return loss

    backbone = model.backbone.backbone
    return Work(
        model=model,
        forward=forward,
        least=2,  # batch normalisation of whole images
        precision=recipe.precision,
        batch_size=recipe.batch_size,
        steps=recipe.max_iters,
        counted=f"{recipe.max_iters:,} iterations",
        disk=KEPT
        * checkpoint_bytes([backbone, model], [p for p in model.parameters() if p.requires_grad]),
        written=CHECKPOINTS,
    )
