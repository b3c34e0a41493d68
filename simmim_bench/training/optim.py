"""Parameter groups, learning-rate scaling and schedules, as the official SimMIM has them.

In: a model with a backbone, a recipe's numbers. Out: groups for AdamW, the learning rate of every step.
Sources: SimMIM's optimizer.py, lr_scheduler.py and main_*.py; shown equal by tests/test_golden.py.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from simmim_bench.models.build import Backbone

REFERENCE_BATCH = 512  # SimMIM scales its learning rates to this many images a step


def scaled_lr(base_lr: float, batch_size: int) -> float:
    """Scale a learning rate that is given for 512 images to a total batch."""
    return base_lr * batch_size / REFERENCE_BATCH


def parameter_groups(
    model: nn.Module,
    backbone: Backbone,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    pretraining: bool = False,
) -> list[dict[str, Any]]:
    """Group a model's parameters by depth and by whether they decay.

    Args:
        model: holds `backbone` somewhere; what lies outside of it counts as the last layer.
        lr: learning rate of the last layer.
        layer_decay: factor a layer going down, in (0, 1]; 1 for one rate.
        pretraining: `model` is a SimMIM model.

    Returns:
        A dict a group with `params`, `lr`, `weight_decay` and `lr_scale`. Vectors and biases do not decay.
    """
    names_in_backbone = {id(p): name for name, p in backbone.named_parameters()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = names_in_backbone.get(id(parameter))
        layer = backbone.num_layers - 1 if inner is None else backbone.layer_id(inner)
        exempt = parameter.ndim <= 1 or name.endswith(".bias")
        known = inner or (name if pretraining else None)  # SimMIM's mask token is no encoder's
        if known is not None:
            exempt = exempt or backbone.no_weight_decay(known, pretraining=pretraining)
        scale = layer_decay ** (backbone.num_layers - 1 - layer)
        decay = 0.0 if exempt else weight_decay
        group = groups.setdefault(
            (scale, decay),
            {"params": [], "lr": lr * scale, "weight_decay": decay, "lr_scale": scale},
        )
        group["params"].append(parameter)
    return list(groups.values())


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then cosine or steps, in optimizer steps.

    Attributes:
        peak_lr: the rate that the warm-up leads to.
        warmup_lr: where the warm-up starts.
        min_lr: where the cosine ends.
        milestones: steps at which `multistep` multiplies by `gamma`.
    """

    kind: Literal["cosine", "multistep"]
    peak_lr: float
    total_steps: int
    warmup_steps: int
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    milestones: Sequence[int] = ()
    gamma: float = 0.1

    def lr(self, step: int, scale: float = 1.0) -> float:
        """Give the learning rate of a step, counted from 0, for a group whose peak is scaled.

        The warm-up starts and the cosine ends at the same rate for all groups: the official code scales
        their peaks only. (Under a timm newer than 0.5 it scales the whole of the scaled schedule once
        more, by the group's `lr_scale`; SimMIM's published scores are older.)

        The official loop sets the rate after a step, from that step's number: step 1 still has the
        rate of step 0, and everything is one step late.
        """
        t = max(step - 1, 0)
        peak = self.peak_lr * scale
        if t < self.warmup_steps:
            return self.warmup_lr + t * (peak - self.warmup_lr) / self.warmup_steps
        if self.kind == "multistep":
            return peak * self.gamma ** bisect_right(list(self.milestones), t)
        # The cosine starts at step 0, under the warm-up, as timm's does without warmup_prefix.
        progress = min(t / self.total_steps, 1.0)
        return self.min_lr + 0.5 * (peak - self.min_lr) * (1 + math.cos(math.pi * progress))

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set every group's rate for a step by its `lr_scale`; give the last layer's."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr(step, group["lr_scale"])
        return self.lr(step)
