"""The optimizer and the learning rate of detector training.

SimMIM's rules, or those of Detectron2 (solver/build.py, get_default_optimizer_params; modeling/backbone/vit.py,
get_vit_lr_decay_rate) and MMDetection (paramwise_cfg), which differ in what decays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from simmim_bench.models.build import Backbone
from simmim_bench.training.optim import Schedule, parameter_groups
from transfer.detection.recipes import CocoRecipe

NORMS = (nn.LayerNorm, nn.BatchNorm2d)  # of the backbones
WARMUP_FACTOR = (
    1e-3  # of the rate, at the first step; detectron2 and Swin-OD: see the recipes' `warmup_iters`
)


def build_optimizer(
    model: nn.Module, backbone: Backbone, recipe: CocoRecipe
) -> torch.optim.Optimizer:
    """Build AdamW for a detector, on its device, with the given backbone in it: fused on a GPU."""
    exempt = _norms_and_tables(backbone) if recipe.decay_exempt == "norms" else set()
    groups = parameter_groups(
        model,
        backbone,
        lr=recipe.base_lr,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        without_decay=(
            None
            if recipe.decay_exempt == "vectors"
            else lambda _, parameter: id(parameter) in exempt
        ),
    )
    fused = next(model.parameters()).is_cuda or None
    return torch.optim.AdamW(groups, betas=recipe.betas, fused=fused)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, which may have been saved on another kind of device."""
    # torch restores with the state which kernels are used.
    kernels = ("fused", "foreach", "capturable")
    own = {key: optimizer.defaults[key] for key in kernels}
    groups = [{**group, **own} for group in state["param_groups"]]
    optimizer.load_state_dict({**state, "param_groups": groups})


def _norms_and_tables(backbone: Backbone) -> set[int]:
    """Return the ids of the parameters of the backbone's norms and position tables."""
    norms = {
        id(parameter)
        for module in backbone.modules()
        if isinstance(module, NORMS)
        for parameter in module.parameters()
    }
    tables = {id(p) for name, p in backbone.named_parameters() if backbone.no_weight_decay(name)}
    return norms | tables


def build_schedule(recipe: CocoRecipe) -> Schedule:
    """Build the linear warm-up and the steps of the learning rate."""
    return Schedule(
        kind="multistep",
        peak_lr=recipe.base_lr,
        warmup_lr=WARMUP_FACTOR * recipe.base_lr,
        total_steps=recipe.max_iters,
        warmup_steps=recipe.warmup_iters,
        milestones=[round(fraction * recipe.max_iters) for fraction in recipe.milestones],
        rule=recipe.lr_rule,
    )
