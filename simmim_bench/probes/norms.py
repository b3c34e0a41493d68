"""The norms between a backbone's features and a classifier, several in one pass.

Legend: N images, B of them in a batch, D channels, S norms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim_bench.recipe import Norm

EPSILON = 1e-6  # MAE: main_linprobe.py (BatchNorm1d)
RUNNING_MOMENTUM = 0.1  # of BatchNorm's running statistics: torch's default
CHUNK = 4096  # images normalised at a time


class Normaliser(nn.Module):
    """Normalise features (B, D) by each of S norms: (S, B, D).

    Args:
        norms: "layer" over an image's channels, "batch" over the training images, "layer+batch", or "none".
        features: training features (N, D), whose means and deviations the norm "batch" uses.
        device: where to normalise; the device of `features` by default.
        batch_images: images over which "batch" computes its statistics in training; None for all of `features`.
    """

    def __init__(
        self,
        norms: Sequence[Norm],
        features: Tensor,
        device: torch.device | None = None,
        *,
        batch_images: int | None = None,
    ) -> None:
        super().__init__()
        device = device or features.device
        self.norms, self._batch_images = list(norms), batch_images
        means, deviations = [], []
        for norm in self.norms:
            total = torch.zeros(2, features.shape[1], dtype=torch.float64, device=device)
            for chunk in features.split(CHUNK):
                x = _layer_norm(norm, chunk.to(device).float()).double()
                total += torch.stack([x.sum(0), x.square().sum(0)])
            mean, square = total / len(features)
            variance = (square - mean.square()).clamp_min(0)
            batch = norm.endswith("batch")
            if batch and batch_images is not None:  # running statistics start as torch's
                mean, variance = torch.zeros_like(mean), torch.ones_like(variance)
            means.append(mean if batch else torch.zeros_like(mean))
            deviations.append((variance + EPSILON).sqrt() if batch else torch.ones_like(variance))
        self.means: Tensor
        self.deviations: Tensor
        self.register_buffer("means", torch.stack(means).float())
        self.register_buffer("deviations", torch.stack(deviations).float())

    @property
    def uses_batches(self) -> bool:
        """Whether a training image's norm depends on its batch."""
        return self._batch_images is not None

    def forward(self, features: Tensor) -> Tensor:
        """Return (S, B, D) float32."""
        x = features.float()
        before = torch.stack([_layer_norm(norm, x) for norm in self.norms])
        result: Tensor = (before - self.means[:, None]) / self.deviations[:, None]
        return result

    def normalise_batch(self, features: Tensor) -> Tensor:
        """Return (S, B, D) float32 of a training batch; update running statistics, where these are used."""
        if self._batch_images is None:
            return self(features)
        x = features.float()
        return torch.stack(
            [
                self._normalise_groups(number, _layer_norm(norm, x))
                if norm.endswith("batch")
                else _layer_norm(norm, x)
                for number, norm in enumerate(self.norms)
            ]
        )

    def _normalise_groups(self, number: int, x: Tensor) -> Tensor:
        """Normalise each group of a batch (B, D) by its own statistics, as BatchNorm does on each process.

        The first group updates the running statistics: DistributedDataParallel broadcasts those of rank 0.
        """
        assert self._batch_images is not None
        first, *_ = groups = x.split(self._batch_images)
        variance = self.deviations[number].square() - EPSILON
        mean = self.means[number]
        mean.lerp_(first.mean(0), RUNNING_MOMENTUM)
        variance.lerp_(first.var(0, correction=min(1, len(first) - 1)), RUNNING_MOMENTUM)
        self.deviations[number] = (variance + EPSILON).sqrt()
        return torch.cat([_standardise(group) for group in groups])

    def normalise_all(self, features: Tensor) -> Tensor:
        """Return features (N, D) float32 under the only norm, computed in chunks."""
        result = torch.empty(features.shape, device=self.means.device)
        for chunk, into in zip(features.split(CHUNK), result.split(CHUNK), strict=True):
            into.copy_(self(chunk.to(result.device))[0])
        return result


def _standardise(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, 0, correction=0)
    return (x - mean) / (variance + EPSILON).sqrt()


def _layer_norm(norm: Norm, x: Tensor) -> Tensor:
    """Apply the layer norm that `norm` starts with, if any."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) if norm.startswith("layer") else x
