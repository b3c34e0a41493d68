"""Group a segmentor's parameters by learning rate and weight decay, as the published protocols do.

Does not import MMSegmentation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from simmim_bench.errors import UsageError
from simmim_bench.models.build import Backbone
from simmim_bench.training.optim import is_vector, parameter_groups
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
    if recipe.stage_decay_layers and backbone.spec.family != "convnext":
        raise UsageError(
            f"stage_decay_layers={recipe.stage_decay_layers} does not apply to {backbone.spec.arch}, which is not a "
            "ConvNeXt; use -o stage_decay_layers=0."
        )
    return parameter_groups(
        model,
        backbone,
        lr=recipe.base_lr,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        layers_after=_stages_after(backbone, recipe) if recipe.stage_decay_layers else None,
        without_decay=_without_decay(backbone, recipe.no_decay),
    )


def _stages_after(backbone: Backbone, recipe: Ade20kRecipe) -> Callable[[str], int]:
    """Return the function that maps a ConvNeXt's parameter to the number of layers after its layer.

    MMSegmentation counts the stem and all downsamplings as layer 0, stage i as layer i + 1 and the rest as the last
    of `stage_decay_layers` + 2 layers (mmseg/engine/optimizers/layer_decay_optimizer_constructor.py:53-77).
    """
    last = recipe.stage_decay_layers + 1

    def stages_after(name: str) -> int:
        stage = _CONVNEXT_STAGE.match(name)
        if stage is not None:
            return last - 1 - int(stage[1])
        return last if name.startswith("stages.") or backbone.layer_id(name) == 0 else 0

    return stages_after


def _without_decay(backbone: Backbone, rule: NoDecay) -> Callable[[str, nn.Parameter], bool] | None:
    """Return whether a parameter has no weight decay by a rule; None for SimMIM's."""
    norms = {
        id(parameter)
        for name, parameter in backbone.named_parameters()
        if "norm" in name or backbone.no_weight_decay(name)
    }
    rules: dict[NoDecay, Callable[[str, nn.Parameter], bool] | None] = {
        "default": None,
        "vectors": is_vector,
        "norms": lambda _, parameter: id(parameter) in norms,
        "nothing": lambda *_: False,
    }
    return rules[rule]
