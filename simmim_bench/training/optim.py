"""Parameter groups with layer-wise learning-rate decay, learning-rate scaling and schedules, as in SimMIM.

They follow SimMIM's optimizer.py, lr_scheduler.py and main_*.py; tests/pretrain/test_golden.py shows that
their numbers are equal.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simmim_bench.models.build import Backbone

LrRule = Literal["simmim", "mae", "beit", "spark", "mmcv"]
REFERENCE_BATCH = 512  # images per step for which SimMIM states its learning rates


def scaled_lr(base_lr: float, batch_size: int) -> float:
    """Scale a learning rate stated for 512 images per step to the total batch size."""
    return base_lr * batch_size / REFERENCE_BATCH


def describe_lr(base_lr: float, batch_size: int) -> str:
    """Return the learning rate of a batch size and how it is scaled, for the log."""
    return (
        f"lr={scaled_lr(base_lr, batch_size):.3g} (base_lr {base_lr:g} x batch_size {batch_size:,} / "
        f"{REFERENCE_BATCH})"
    )


def parameter_groups(
    model: nn.Module,
    backbone: Backbone,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    layers_after: Callable[[str], int] | None = None,
    without_decay: Callable[[str, nn.Parameter], bool] | None = None,
    pretraining: bool = False,
) -> list[dict[str, Any]]:
    """Group a model's parameters by layer (layer-wise learning-rate decay) and by weight decay.

    Args:
        model: contains `backbone`; parameters outside of the backbone count as its last layer.
        lr: learning rate of the last layer.
        layer_decay: factor per layer from the last to the first, in (0, 1]; 1 for one learning rate.
        layers_after: maps the name of a backbone's parameter to the number of layers after its layer; None for
            the layers of `Backbone.layer_id`.
        without_decay: whether a parameter, with its name in `model`, has no weight decay; None for SimMIM's rule:
            vectors, biases, and what `Backbone.no_weight_decay` names.
        pretraining: whether `model` is a SimMIM model.

    Returns:
        One dict per group with `params`, `lr`, `weight_decay` and `lr_scale`.
    """
    names_in_backbone = {id(p): name for name, p in backbone.named_parameters()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = names_in_backbone.get(id(parameter))
        if inner is None:
            after = 0
        elif layers_after is None:
            after = backbone.num_layers - 1 - backbone.layer_id(inner)
        else:
            after = layers_after(inner)
        if without_decay is not None:
            exempt = without_decay(name, parameter)
        else:
            exempt = is_vector(name, parameter)
            # SimMIM's mask token lies outside of the encoder.
            known = inner or (name if pretraining else None)
            if known is not None:
                exempt = exempt or backbone.no_weight_decay(known, pretraining=pretraining)
        scale = layer_decay**after
        decay = 0.0 if exempt else weight_decay
        group = groups.setdefault(
            (scale, decay),
            {"params": [], "lr": lr * scale, "weight_decay": decay, "lr_scale": scale},
        )
        group["params"].append(parameter)
    return list(groups.values())


def is_vector(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a vector or a bias, which do not decay in most published trainings."""
    return parameter.ndim <= 1 or name.endswith(".bias")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then cosine or multistep decay; all lengths in optimizer steps.

    Attributes:
        peak_lr: learning rate at the end of the warm-up.
        warmup_lr: learning rate at the start of the warm-up.
        min_lr: learning rate at the end of the cosine.
        milestones: steps at which `multistep` multiplies the learning rate by `gamma`.
        warmup_prefix: whether the cosine starts after the warm-up, and not at step 0 as in SimMIM
            (lr_scheduler.py:24-34 with timm's default). microsoft/Swin-Transformer sets timm's option of
            that name (config.py:178) and shortens the cosine by the warm-up (lr_scheduler.py:24-34).
        rule: how steps and layers enter. "simmim": see `lr`. By the others a step has the rate of its own number,
            and the whole rate is scaled. "mae" (MAE: util/lr_sched.py:9-21, engine_finetune.py:45-47) adds
            nothing to that. "beit" (unilm: beit/utils.py:383-400): the last step of the warm-up has the peak.
            "spark" (SparK: downstream_imagenet/lr_decay.py:11-17): the last step has the minimum. "mmcv" (mmcv
            1: runner/hooks/lr_updater.py): an epoch has one rate, which the warm-up multiplies.
        epoch_steps: steps of an epoch, for "mmcv".
    """

    kind: Literal["cosine", "multistep"]
    peak_lr: float
    total_steps: int
    warmup_steps: int
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    milestones: Sequence[int] = ()
    gamma: float = 0.1
    warmup_prefix: bool = False
    rule: LrRule = "simmim"
    epoch_steps: int = 1

    def lr(self, step: int, scale: float = 1.0) -> float:
        """Return the learning rate of a step, counted from 0.

        The warm-up starts and the cosine ends at the same rate for all groups: the official code scales
        only the peak. (With a timm newer than 0.5 it scales the scaled schedule once more by the group's
        `lr_scale`; SimMIM's published scores are older.)

        The official loop sets the rate after a step, from that step's number: step 1 still has the
        rate of step 0, and the whole schedule is one step late.

        Args:
            scale: factor of the group's peak, its `lr_scale`.
        """
        if self.rule == "simmim":
            return self._rate(max(step - 1, 0), self.peak_lr * scale)
        if self.rule == "mmcv":
            regular = self._decayed(step - step % self.epoch_steps, self.peak_lr)
            return scale * regular * self._warm(step, self.peak_lr) / self.peak_lr
        return scale * self._rate(step, self.peak_lr)

    def _rate(self, t: int, peak: float) -> float:
        """Return the learning rate after `t` steps of a schedule with a given peak."""
        return self._warm(t, peak) if t < self.warmup_steps else self._decayed(t, peak)

    def _warm(self, t: int, peak: float) -> float:
        """Return the learning rate of the warm-up after `t` steps, and the peak after its end."""
        steps = self.warmup_steps - (self.rule == "beit")
        if t >= steps:
            return peak
        return self.warmup_lr + t * (peak - self.warmup_lr) / steps

    def _decayed(self, t: int, peak: float) -> float:
        """Return the learning rate of the decay after `t` steps."""
        if self.kind == "multistep":
            return peak * self.gamma ** bisect_right(list(self.milestones), t)
        # Without warmup_prefix, the cosine starts at step 0, so that the warm-up replaces its first part.
        start = self.warmup_steps if self.warmup_prefix else 0
        end = self.total_steps - (self.rule == "spark")
        progress = min((t - start) / max(end - start, 1), 1.0)
        return self.min_lr + 0.5 * (peak - self.min_lr) * (1 + math.cos(math.pi * progress))

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the learning rate of every group for a step; return that of the last layer."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr(step, group["lr_scale"])
        return self.lr(step)


def step_unless(skip: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Step an optimizer unless a boolean scalar on the device is set."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        # What torch's GradScaler sets: a fused AdamW reads it in its kernels, and the host does not wait.
        fused: Any = optimizer
        fused.found_inf = skip.float()
        fused.step()
    elif not skip:  # waits for the device, as timm's Lamb has no such input
        optimizer.step()
