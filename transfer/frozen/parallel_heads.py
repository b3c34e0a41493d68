"""Linear classifiers on the same features, trained jointly: one for every norm and every learning rate.

All heads see the same images in the same order and start from the same weights, so that a sweep costs one wide
matrix product a step instead of one training per setting. The training follows MAE's main_linprobe.py and
BEiT's run_linear_eval.py.

Legend: N images, B of them in a batch, D channels, K classes, S norms, R learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from timm.optim import Lars
from torch import Tensor

from simmim_bench.probes.norms import Normaliser
from transfer.frozen.candidates import LinearHead
from transfer.frozen.recipes import LinearRecipe

REFERENCE_BATCH = 256  # MAE and BEiT scale their learning rates to this many images a step
INITIAL_STD = 0.01  # of the weights: MAE, main_linprobe.py; BEiT, run_linear_eval.py
# MAE: util/lars.py scales the learning rates of weights always and of biases never, and biases do not decay.
# timm's Lars scales and decays biases too if weight_decay is above 0, which no recipe with lars has. Its
# trust coefficient is MAE's.
LARS_WEIGHTS = {"always_adapt": True}
CHUNK = 4096  # images predicted at a time
NORMALISED = 2**27  # values normalised once for all epochs; half a GiB

# Maps logits (S, R, K, B) and one-hot labels (K, B) to the gradient of each image's loss with respect to its logits.
LossGradient = Callable[[Tensor, Tensor], Tensor]


def cross_entropy_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient of the cross-entropy with respect to the logits."""
    return logits.softmax(2).sub_(targets)


class ParallelLinearHeads:
    """S x R linear classifiers on one feature set, trained jointly.

    Gradients are computed explicitly instead of by autograd, and the image axis is the last one: with few
    classes a step takes a quarter of the time.

    Args:
        normaliser: computes S versions of the features.
        channels: D.
        num_classes: K.
        seed: initialises the weights, the same for all heads.
        loss_gradient: gradient of the loss whose mean over the images is minimised.
    """

    def __init__(
        self,
        normaliser: Normaliser,
        channels: int,
        num_classes: int,
        recipe: LinearRecipe,
        *,
        seed: int,
        device: torch.device,
        loss_gradient: LossGradient = cross_entropy_gradient,
    ) -> None:
        self._normaliser, self._device = normaliser.to(device), device
        self._loss_gradient = loss_gradient
        self._classes = torch.arange(num_classes, device=device)
        norms, rates = len(normaliser.norms), len(recipe.base_lr)
        self._shape = (norms, rates, num_classes)
        generator = torch.Generator().manual_seed(seed)
        initial = torch.randn(num_classes, channels, generator=generator) * INITIAL_STD
        self._weights = initial.repeat(norms, rates, 1).to(device)
        self._biases = torch.zeros(norms, rates * num_classes, 1, device=device)
        self._weight_gradients = torch.zeros_like(self._weights)
        self._bias_gradients = torch.zeros_like(self._biases)
        # The rate is scaled by the recipe's batch size, as in all protocols, even if fewer images make a batch.
        peaks = [rate * recipe.batch_size / REFERENCE_BATCH for rate in recipe.base_lr]
        self._sgd: _JointSgd | None = None
        if recipe.optimizer == "sgd":
            by_row = torch.tensor(peaks, device=device).repeat_interleave(num_classes)[:, None]
            joint = [
                (self._weights, self._weight_gradients),
                (self._biases, self._bias_gradients),
            ]
            self._sgd = _JointSgd(joint, by_row, recipe.momentum, recipe.weight_decay)
        else:
            self._optimizer = self._build_optimizer(recipe, peaks)

    def _build_optimizer(
        self, recipe: LinearRecipe, peaks: Sequence[float]
    ) -> torch.optim.Optimizer:
        """Build one optimizer for all heads, with a parameter group for each rate."""
        groups = [
            {"params": parameters, "lr": peak, "peak": peak, **options}
            for joint, gradients, options in (
                (self._weights, self._weight_gradients, LARS_WEIGHTS),
                (self._biases, self._bias_gradients, {}),
            )
            for parameters, peak in zip(self._split_by_head(joint, gradients), peaks, strict=True)
        ]
        momentum, decay = recipe.momentum, recipe.weight_decay
        if recipe.optimizer == "adamw":
            return torch.optim.AdamW(groups, weight_decay=decay, fused=True)
        return Lars(groups, momentum=momentum, weight_decay=decay)

    def _split_by_head(self, joint: Tensor, gradients: Tensor) -> list[list[Tensor]]:
        """Split the joint tensor of all heads into views, one parameter per head: by rate, then by norm."""
        norms, rates, classes = self._shape
        parameters = [
            [joint[s, r * classes : (r + 1) * classes] for s in range(norms)] for r in range(rates)
        ]
        for r in range(rates):
            for s in range(norms):
                parameters[r][s].grad = gradients[s, r * classes : (r + 1) * classes]
        return parameters

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (S, R, K, B) of features (B, D)."""
        return self._logits(self._normaliser(features))

    def _logits(self, x: Tensor) -> Tensor:
        joint = torch.baddbmm(self._biases, self._weights, x.transpose(1, 2))
        return joint.view(*self._shape, -1)

    def normalise(self, features: Tensor) -> Tensor | None:
        """Return (S, N, D) of training features (N, D), for `step_normalised`.

        Returns None where the norm depends on the batch, or the values are too many to keep.
        """
        if self._normaliser.uses_batches or self._shape[0] * features.numel() > NORMALISED:
            return None
        chunks = features.split(CHUNK)
        return torch.cat([self._normaliser(x.to(self._device)) for x in chunks], dim=1)

    def step(self, features: Tensor, labels: Tensor, factor: float) -> None:
        """Take one optimizer step on features (B, D) and labels (B,), at `factor` times the peak rates."""
        self.step_normalised(self._normaliser.normalise_batch(features), labels, factor)

    def step_normalised(self, x: Tensor, labels: Tensor, factor: float) -> None:
        """Take one optimizer step on normalised features (S, B, D); see `step`."""
        targets = (labels == self._classes[:, None]).float()
        gradients = self._loss_gradient(self._logits(x), targets).flatten(1, 2).div_(len(labels))
        torch.bmm(gradients, x, out=self._weight_gradients)
        torch.sum(gradients, 2, keepdim=True, out=self._bias_gradients)
        if self._sgd is not None:
            self._sgd.step(factor)
            return
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self._optimizer.step()

    def head(self, norm: int, rate: int) -> LinearHead:
        """Return the classifier of a norm and a rate, by their numbers."""
        classes = self._shape[2]
        own = slice(rate * classes, (rate + 1) * classes)
        return LinearHead(
            weight=self._weights[norm, own].cpu(),
            bias=self._biases[norm, own, 0].cpu(),
            mean=self._normaliser.means[norm].cpu(),
            deviation=self._normaliser.deviations[norm].cpu(),
        )

    def predict(self, features: Tensor) -> Tensor:
        """Return logits (S, R, N, K) of features (N, D), on the CPU."""
        chunks = features.split(CHUNK)
        return torch.cat(
            [self.logits(x.to(self._device)).transpose(2, 3).cpu() for x in chunks], dim=2
        )

    def accuracy(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return each head's accuracy on features (N, D): (S, R) in [0, 1]; 0 for a diverged head."""
        count = torch.zeros(self._shape[:2], device=self._device)
        for x, y in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
            logits = self.logits(x.to(self._device))
            correct = logits.argmax(2) == y.to(self._device)
            count += (correct & logits.isfinite().all(2)).sum(2)
        return count.cpu() / len(labels)


class _JointSgd:
    """torch.optim.SGD with momentum on the joint tensors of all heads: a few operations a step, not some per head.

    Args:
        joint: parameters (S, R K, ...) and their gradients, which are written before every step.
        peaks: rate of every row, (R K, 1).
    """

    def __init__(
        self,
        joint: Sequence[tuple[Tensor, Tensor]],
        peaks: Tensor,
        momentum: float,
        weight_decay: float,
    ) -> None:
        self._joint = [(parameter, g, torch.zeros_like(g)) for parameter, g in joint]
        self._peaks, self._momentum, self._weight_decay = peaks, momentum, weight_decay

    def step(self, factor: float) -> None:
        """Take one step at `factor` times the peak rates."""
        rates = self._peaks * factor
        for parameter, gradient, velocity in self._joint:
            velocity.mul_(self._momentum).add_(gradient)
            if self._weight_decay:
                velocity.add_(parameter, alpha=self._weight_decay)
            parameter.addcmul_(velocity, rates, value=-1)


def train_epoch(
    heads: ParallelLinearHeads,
    features: Tensor,
    labels: Tensor,
    recipe: LinearRecipe,
    *,
    seed: int,
    epoch: int,
    normalised: Tensor | None = None,
) -> None:
    """Train all heads for one epoch on features (N, D) and labels (N,), both on the heads' device.

    Args:
        normalised: what `normalise` returns for the features.
    """
    for rows, factor in epoch_steps(len(labels), recipe, seed=seed, epoch=epoch):
        rows = rows.to(labels.device)
        if normalised is None:
            heads.step(features[rows], labels[rows], factor)
        else:
            heads.step_normalised(normalised.index_select(1, rows), labels[rows], factor)


def epoch_steps(
    images: int, recipe: LinearRecipe, *, seed: int, epoch: int
) -> Iterator[tuple[Tensor, float]]:
    """Yield the rows of every batch of an epoch, and the factor of the peak rate for its step.

    A last incomplete batch is dropped, unless it is the only one, and so are steps beyond `epoch_steps`.
    """
    generator = torch.Generator().manual_seed(
        int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    )
    order = torch.randperm(images, generator=generator)
    batch = min(recipe.batch_size, images)
    steps = min(images // batch, recipe.epoch_steps or images)
    for step in range(steps):
        yield order[step * batch : (step + 1) * batch], lr_factor(epoch + step / steps, recipe)


def lr_factor(epoch: float, recipe: LinearRecipe) -> float:
    """Return the factor of the peak rate, in [0, 1], at an epoch: linear warm-up, then half a cosine to zero."""
    if epoch < recipe.warmup_epochs:
        return epoch / recipe.warmup_epochs
    progress = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * progress))
