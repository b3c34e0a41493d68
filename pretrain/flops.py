"""Floating-point operations of a pretraining step, counted on one image."""

from __future__ import annotations

import functools

import torch

from pretrain.design import Design, TargetModelInfo
from pretrain.recipes import PretrainRecipe
from pretrain.simmim import PAPER_DESIGN, SimMIM
from simmim_bench.models.shapes import shapes_only
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.training.flops import count_flops

FORWARD_AND_BACKWARD = 3  # the backward pass has two products for each product of the forward pass


def training_flops(recipe: PretrainRecipe, model: SimMIM) -> int:
    """Count an image's operations in a training step; a teacher or tokenizer has no backward pass."""
    device = next(model.parameters()).device
    image = torch.zeros(1, model.spec.in_chans, *recipe.img_size, device=device)
    mask = _any_mask(model.spec, recipe.mask_ratio)
    of_target = count_flops(lambda: model.target.from_images(image, mask))
    forward = forward_flops(model.spec, recipe.design, recipe.mask_ratio, model.target_model)
    return FORWARD_AND_BACKWARD * forward + of_target


@functools.lru_cache(maxsize=16)
def forward_flops(
    spec: BackboneSpec,
    design: Design = PAPER_DESIGN,
    mask_ratio: float = 0.6,
    target_model: TargetModelInfo | None = None,
) -> int:
    """Count the operations of one image's forward pass without its target, from shapes alone."""
    with shapes_only():
        model = SimMIM(spec, design, target_model)
    image = torch.empty(1, spec.in_chans, *spec.img_size, device="meta")
    mask = _any_mask(spec, mask_ratio)
    of_target = count_flops(lambda: model.target.ready and model.target.from_images(image, mask))
    return count_flops(lambda: model(image, mask)) - of_target


def _any_mask(spec: BackboneSpec, mask_ratio: float) -> torch.Tensor:
    """Return a mask (1, h, w): the number of hidden patches determines the count, not their positions."""
    mask = torch.zeros(1, *spec.grid)
    mask.view(-1)[: round(mask_ratio * mask.numel())] = 1
    return mask
