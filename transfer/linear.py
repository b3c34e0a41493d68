"""Linear classifiers trained by steps, many side by side on the same features.

In: features (N, D), labels (N,). Out: a classifier for every norm and every learning rate. All of them see
the same images in the same order and start from the same weights, so that a sweep costs one wide matrix
product a step instead of a training each. Follows MAE's main_linprobe.py, and BEiT's run_linear_eval.py.

Legend: N images, B of them in a batch, D channels, K classes, S norms, R learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import Lars
from torch import Tensor

from transfer.frozen_recipes import LinearRecipe
from transfer.normaliser import Normaliser

REFERENCE_BATCH = 256  # MAE and BEiT scale their learning rates to this many images a step
INITIAL_DEVIATION = 0.01  # of the weights: MAE, main_linprobe.py; BEiT, run_linear_eval.py
# MAE: util/lars.py: weights' rates are always scaled, biases' never. timm's trust coefficient is MAE's 0.001.
ADAPT = {"always_adapt": True}
CHUNK = 4096  # images at a time where nothing is learnt

LossOf = Callable[[Tensor, Tensor], Tensor]  # logits (..., K) and labels (...) to losses (...)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Give the loss of every image: logits (..., K), labels (...)."""
    flat = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return flat.view(labels.shape)


class SideBySide:
    """S x R linear classifiers on one feature set, trained together.

    Args:
        normaliser: gives S versions of the features.
        channels: D.
        seed: draws the weights, the same for all.
        loss_of: what is minimised, in the mean over images.
    """

    def __init__(
        self,
        normaliser: Normaliser,
        channels: int,
        classes: int,
        recipe: LinearRecipe,
        *,
        seed: int,
        device: torch.device,
        loss_of: LossOf = cross_entropy,
    ) -> None:
        self._normaliser, self._loss_of = normaliser.to(device), loss_of
        self._norms, self._rates = len(normaliser.norms), len(recipe.base_lr)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(channels, classes, generator=generator).to(device) * INITIAL_DEVIATION
        self._weights: list[list[Tensor]] = [
            [drawn.clone().requires_grad_() for _ in recipe.base_lr] for _ in normaliser.norms
        ]
        self._biases: list[list[Tensor]] = [
            [torch.zeros(1, classes, device=device, requires_grad=True) for _ in recipe.base_lr]
            for _ in normaliser.norms
        ]
        peaks = [rate * recipe.batch_size / REFERENCE_BATCH for rate in recipe.base_lr]
        groups: list[dict[str, Any]] = [
            {"params": list(column), "lr": peak, "peak": peak, **how}
            for parameters, how in ((self._weights, ADAPT), (self._biases, {}))
            for column, peak in zip(zip(*parameters, strict=True), peaks, strict=True)
        ]
        decay = recipe.weight_decay
        self._optimizer: torch.optim.Optimizer
        if recipe.optimizer == "adamw":
            self._optimizer = torch.optim.AdamW(groups, weight_decay=decay)
        elif recipe.optimizer == "lars":
            self._optimizer = Lars(groups, momentum=recipe.momentum, weight_decay=decay)
        else:
            self._optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=decay)

    def logits(self, features: Tensor) -> Tensor:
        """Give (S, B, R, K) of features (B, D)."""
        weights, biases = (
            torch.stack([torch.cat(row, 1) for row in rows])
            for rows in (self._weights, self._biases)
        )
        together = torch.baddbmm(biases, self._normaliser(features), weights)
        return together.unflatten(2, (self._rates, -1))

    def step(self, features: Tensor, labels: Tensor, factor: float) -> None:
        """Take one step on features (B, D) and labels (B,), with the peak rates times `factor`."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        logits = self.logits(features)
        losses = self._loss_of(logits, labels[None, :, None].expand(logits.shape[:-1]))
        self._optimizer.zero_grad()
        losses.mean(1).sum().backward()
        self._optimizer.step()

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Give logits (S, N, R, K) of features (N, D), on the CPU."""
        device = self._weights[0][0].device
        return torch.cat([self.logits(x.to(device)).cpu() for x in features.split(CHUNK)], dim=1)

    @torch.no_grad()
    def accuracy(self, features: Tensor, labels: Tensor) -> Tensor:
        """Give the share of features (N, D) that each classifier gets right: (S, R); diverged ones, none."""
        device = self._weights[0][0].device
        right = torch.zeros(self._norms, self._rates, device=device)
        for x, y in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
            logits = self.logits(x.to(device))
            correct = logits.argmax(-1) == y.to(device)[None, :, None]
            right += (correct & logits.isfinite().all(-1)).sum(1)
        return right.cpu() / len(labels)


def train_epoch(
    trained: SideBySide,
    features: Tensor,
    labels: Tensor,
    recipe: LinearRecipe,
    *,
    seed: int,
    epoch: int,
) -> None:
    """Train side by side for one epoch on features (N, D) and labels (N,), both on the classifiers' device."""
    for rows, factor in epoch_steps(len(labels), recipe, seed=seed, epoch=epoch):
        rows = rows.to(labels.device)
        trained.step(features[rows], labels[rows], factor)


def epoch_steps(
    images: int, recipe: LinearRecipe, *, seed: int, epoch: int
) -> Iterator[tuple[Tensor, float]]:
    """Give the rows of every batch of an epoch, and the share of the peak rate that its step takes.

    A last small batch is dropped, unless it is the only one.
    """
    generator = torch.Generator().manual_seed(
        int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    )
    order = torch.randperm(images, generator=generator)
    batch = min(recipe.batch_size, images)
    steps = images // batch
    for step in range(steps):
        yield order[step * batch : (step + 1) * batch], rate_factor(epoch + step / steps, recipe)


def rate_factor(epoch: float, recipe: LinearRecipe) -> float:
    """Give the share of the peak rate after so many epochs: linear warm-up, then half a cosine to zero."""
    if epoch < recipe.warmup_epochs:
        return epoch / recipe.warmup_epochs
    progress = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * progress))
