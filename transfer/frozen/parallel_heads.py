"""Linear classifiers trained by steps, many side by side on the same features.

In: features (N, D), labels (N,). Out: a classifier for every norm and every learning rate. All of them see
the same images in the same order and start from the same weights, so that a sweep costs one wide matrix
product a step instead of a training each. Follows MAE's main_linprobe.py, and BEiT's run_linear_eval.py.

Legend: N images, B of them in a batch, D channels, K classes, S norms, R learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from timm.optim import Lars
from torch import Tensor

from transfer.frozen.norms import Normaliser
from transfer.frozen.recipes import LinearRecipe

REFERENCE_BATCH = 256  # MAE and BEiT scale their learning rates to this many images a step
INITIAL_DEVIATION = 0.01  # of the weights: MAE, main_linprobe.py; BEiT, run_linear_eval.py
# MAE: util/lars.py: weights' rates are always scaled, biases' never, nor do these decay. timm's Lars scales and
# decays biases too where weight_decay is above 0, which no recipe with lars has. Its trust coefficient is MAE's.
ADAPT = {"always_adapt": True}
CHUNK = 4096  # images at a time where nothing is learnt

# Logits (S, R, K, B) and one-hot labels (K, B) to the derivative of each image's loss by its logits.
Slope = Callable[[Tensor, Tensor], Tensor]


def cross_entropy_slope(logits: Tensor, wanted: Tensor) -> Tensor:
    """Give the derivative of the cross-entropy by the logits."""
    return logits.softmax(2).sub_(wanted)


class ParallelLinearHeads:
    """S x R linear classifiers on one feature set, trained together.

    Gradients are written out instead of left to autograd, and images come last: where classes are few that
    takes a quarter of the time.

    Args:
        normaliser: gives S versions of the features.
        channels: D.
        classes: K.
        seed: draws the weights, the same for all.
        slope: of the loss whose mean over the images is minimised.
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
        slope: Slope = cross_entropy_slope,
    ) -> None:
        self._normaliser, self._slope, self._device = normaliser.to(device), slope, device
        self._classes = torch.arange(classes, device=device)
        norms, rates = len(normaliser.norms), len(recipe.base_lr)
        self._shape = (norms, rates, classes)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(classes, channels, generator=generator) * INITIAL_DEVIATION
        self._weights = drawn.repeat(norms, rates, 1).to(device)
        self._biases = torch.zeros(norms, rates * classes, 1, device=device)
        self._weight_slopes = torch.zeros_like(self._weights)
        self._bias_slopes = torch.zeros_like(self._biases)
        # By the recipe's batch, as all protocols are told; fewer images than that make smaller steps.
        peaks = [rate * recipe.batch_size / REFERENCE_BATCH for rate in recipe.base_lr]
        groups = [
            {"params": pieces, "lr": peak, "peak": peak, **how}
            for whole, slopes, how in (
                (self._weights, self._weight_slopes, ADAPT),
                (self._biases, self._bias_slopes, {}),
            )
            for pieces, peak in zip(self._pieces(whole, slopes), peaks, strict=True)
        ]
        momentum, decay = recipe.momentum, recipe.weight_decay
        self._optimizer: torch.optim.Optimizer
        if recipe.optimizer == "adamw":
            self._optimizer = torch.optim.AdamW(groups, weight_decay=decay, fused=True)
        elif recipe.optimizer == "lars":
            self._optimizer = Lars(groups, momentum=momentum, weight_decay=decay)
        else:
            self._optimizer = torch.optim.SGD(
                groups, momentum=momentum, weight_decay=decay, fused=True
            )

    def _pieces(self, whole: Tensor, slopes: Tensor) -> list[list[Tensor]]:
        """Cut what all classifiers have in one tensor into a parameter each: by rates, then by norms."""
        norms, rates, classes = self._shape
        pieces = [
            [whole[s, r * classes : (r + 1) * classes] for s in range(norms)] for r in range(rates)
        ]
        for r in range(rates):
            for s in range(norms):
                pieces[r][s].grad = slopes[s, r * classes : (r + 1) * classes]
        return pieces

    def logits(self, features: Tensor) -> Tensor:
        """Give (S, R, K, B) of features (B, D)."""
        return self._logits(self._normaliser(features))

    def _logits(self, x: Tensor) -> Tensor:
        together = torch.baddbmm(self._biases, self._weights, x.transpose(1, 2))
        return together.view(*self._shape, -1)

    def step(self, features: Tensor, labels: Tensor, factor: float) -> None:
        """Take one step on features (B, D) and labels (B,), with the peak rates times `factor`."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        x = self._normaliser(features)
        wanted = (labels == self._classes[:, None]).float()
        slopes = self._slope(self._logits(x), wanted).flatten(1, 2) / len(labels)
        torch.bmm(slopes, x, out=self._weight_slopes)
        torch.sum(slopes, 2, keepdim=True, out=self._bias_slopes)
        self._optimizer.step()

    def predict(self, features: Tensor) -> Tensor:
        """Give logits (S, R, N, K) of features (N, D), on the CPU."""
        parts = features.split(CHUNK)
        return torch.cat(
            [self.logits(x.to(self._device)).transpose(2, 3).cpu() for x in parts], dim=2
        )

    def accuracy(self, features: Tensor, labels: Tensor) -> Tensor:
        """Give the share of features (N, D) that each classifier gets right: (S, R); diverged ones, none."""
        right = torch.zeros(self._shape[:2], device=self._device)
        for x, y in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
            logits = self.logits(x.to(self._device))
            correct = logits.argmax(2) == y.to(self._device)
            right += (correct & logits.isfinite().all(2)).sum(2)
        return right.cpu() / len(labels)


def train_epoch(
    trained: ParallelLinearHeads,
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
