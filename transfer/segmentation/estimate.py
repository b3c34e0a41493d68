"""Plan an ADE20K transfer before it starts: its model, its number of steps, and a training step on synthetic images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.diagnostics.estimate import KEPT, DataSize, Work, checkpoint_bytes
from simmim_bench.distributed import DistContext
from simmim_bench.training.precision import default_precision
from transfer.segmentation.recipes import Ade20kRecipe
from transfer.segmentation.run import check_sizes, require_mmseg


def plan_ade20k(
    recipe: Ade20kRecipe, checkpoint: Checkpoint, data: DataSize, device: torch.device
) -> Work:
    """Build the segmentor of a recipe and count its training steps.

    Raises:
        MissingFrameworkError: MMSegmentation, mmengine or mmcv is not installed.
        UsageError: the batch size or an image size is too small for the model.
        DataError: the weights do not fit the backbone.
    """
    check_sizes(recipe, checkpoint.spec, DistContext(device=device))
    require_mmseg()
    from transfer.segmentation.model import build_segmentor

    model = build_segmentor(checkpoint, recipe, data.classes, 0)
    model.to(device).train()

    def forward(images: int) -> Tensor:
        pixels = torch.randn(images, checkpoint.spec.in_chans, *recipe.img_size, device=device)
        samples = synthetic_samples(images, recipe.img_size, data.classes, device)
        loss: Tensor = model.parse_losses(model.loss(pixels, samples))[0]
        return loss

    backbone = model.backbone.backbone
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Work(
        model=model,
        forward=forward,
        least=2,  # UPerNet's batch normalisation of the globally pooled maps needs two values
        precision=default_precision(recipe.precision, device, allow_fp16=True),
        batch_size=recipe.batch_size,
        steps=recipe.max_iters,
        counted=f"{recipe.max_iters:,} iterations",
        disk=KEPT * checkpoint_bytes([backbone, model], trained),
        written=f"{KEPT} checkpoints at a time; predictions come on top",
    )


def synthetic_samples(
    count: int, img_size: tuple[int, int], classes: int, device: torch.device
) -> list[Any]:
    """Build label maps (H, W) that contain every class, as MMSegmentation's data samples."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    height, width = img_size
    labels = torch.arange(height * width, device=device) % classes
    samples: list[Any] = [
        SegDataSample(gt_sem_seg=PixelData(data=labels.view(1, height, width)))
        for _ in range(count)
    ]
    for sample in samples:
        sample.set_metainfo({"img_shape": img_size})
    return samples
