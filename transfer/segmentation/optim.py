"""Group a segmentor's parameters by learning rate and weight decay, as the published protocols do.

Does not import MMSegmentation.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from simmim_bench.errors import UsageError
from simmim_bench.models.build import Backbone
from simmim_bench.training.optim import parameter_groups
from transfer.segmentation.recipes import Ade20kRecipe, NoDecay

_CONVNEXT_STAGE = re.compile(r"stages\.(\d+)\.blocks\.")


def segmentor_groups(
    model: nn.Module, backbone: Backbone, recipe: Ade20kRecipe
) -> list[dict[str, Any]]:
    """Group the trained parameters of a segmentor.

    Args:
        model: contains `backbone`; its other parameters have the full learning rate.

    Returns:
        One dict per group with `params`, `lr`, `weight_decay` and `lr_scale`.

    Raises:
        UsageError: decay by stage of another network than a ConvNeXt.
    """
    if recipe.no_decay == "default" and not recipe.stage_decay_layers:
        return parameter_groups(
            model,
            backbone,
            lr=recipe.base_lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
        )
    names_in_backbone = {id(p): name for name, p in backbone.named_parameters()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = names_in_backbone.get(id(parameter))
        scale = 1.0 if inner is None else _lr_scale(backbone, inner, recipe)
        exempt = _is_exempt(recipe.no_decay, backbone, inner, name, parameter)
        decay = 0.0 if exempt else recipe.weight_decay
        group = groups.setdefault(
            (scale, decay),
            {"params": [], "lr": recipe.base_lr * scale, "weight_decay": decay, "lr_scale": scale},
        )
        group["params"].append(parameter)
    return list(groups.values())


def _lr_scale(backbone: Backbone, name: str, recipe: Ade20kRecipe) -> float:
    """Return the factor of a backbone parameter's learning rate.

    By stage, MMSegmentation counts the stem and all downsamplings as layer 0, stage i as layer i + 1 and the rest as
    the last of `stage_decay_layers` + 2 layers (mmseg/engine/optimizers/layer_decay_optimizer_constructor.py:53-77).
    """
    if not recipe.stage_decay_layers:
        return recipe.layer_decay ** (backbone.num_layers - 1 - backbone.layer_id(name))
    if backbone.spec.family != "convnext":
        raise UsageError(
            f"stage_decay_layers={recipe.stage_decay_layers} does not apply to {backbone.spec.arch}, which is not a "
            "ConvNeXt; use -o stage_decay_layers=0."
        )
    last = recipe.stage_decay_layers + 1
    stage = _CONVNEXT_STAGE.match(name)
    if stage is not None:
        return recipe.layer_decay ** (last - 1 - int(stage[1]))
    in_stages = name.startswith("stages.") or backbone.layer_id(name) == 0
    return recipe.layer_decay**last if in_stages else 1.0


def _is_exempt(
    rule: NoDecay, backbone: Backbone, inner: str | None, name: str, parameter: nn.Parameter
) -> bool:
    """Return whether a parameter has no weight decay.

    Args:
        inner: name in the backbone; None outside of it.
        name: name in the segmentor.
    """
    listed = inner is not None and backbone.no_weight_decay(inner)
    if rule == "norms":
        return listed or (inner is not None and "norm" in inner)
    vector = parameter.ndim <= 1 or name.endswith(".bias")
    return {"default": vector or listed, "vectors": vector, "nothing": False}[rule]
