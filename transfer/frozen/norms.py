"""The norms between a backbone's features and a classifier, several in one pass.

Legend: N images, B of them in a batch, D channels, S norms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfer.frozen.recipes import Norm

EPSILON = 1e-6  # MAE: main_linprobe.py (BatchNorm1d)
CHUNK = 4096  # images normalised at a time


class Normaliser(nn.Module):
    """Normalise features (B, D) by each of S norms: (S, B, D).

    Args:
        norms: see `FrozenRecipe.norm`.
        features: training features (N, D), whose means and deviations the norm "batch" uses.
        device: where to normalise; the device of `features` by default.
    """

    def __init__(
        self, norms: Sequence[Norm], features: Tensor, device: torch.device | None = None
    ) -> None:
        super().__init__()
        device = device or features.device
        self.norms = list(norms)
        means, deviations = [], []
        for norm in self.norms:
            total = torch.zeros(2, features.shape[1], dtype=torch.float64, device=device)
            for chunk in features.split(CHUNK):
                x = _layer_norm(norm, chunk.to(device).float()).double()
                total += torch.stack([x.sum(0), x.square().sum(0)])
            mean, square = total / len(features)
            variance = (square - mean.square()).clamp_min(0)
            batch = norm.endswith("batch")
            means.append(mean if batch else torch.zeros_like(mean))
            deviations.append((variance + EPSILON).sqrt() if batch else torch.ones_like(variance))
        self.means: Tensor
        self.deviations: Tensor
        self.register_buffer("means", torch.stack(means).float())
        self.register_buffer("deviations", torch.stack(deviations).float())

    def forward(self, features: Tensor) -> Tensor:
        """Return (S, B, D) float32."""
        x = features.float()
        before = torch.stack([_layer_norm(norm, x) for norm in self.norms])
        result: Tensor = (before - self.means[:, None]) / self.deviations[:, None]
        return result

    def normalise_all(self, features: Tensor) -> Tensor:
        """Return features (N, D) float32 under the only norm, computed in chunks."""
        result = torch.empty(features.shape, device=self.means.device)
        for chunk, into in zip(features.split(CHUNK), result.split(CHUNK), strict=True):
            into.copy_(self(chunk.to(result.device))[0])
        return result


def _layer_norm(norm: Norm, x: Tensor) -> Tensor:
    """Apply the layer norm that `norm` starts with, if any."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) if norm.startswith("layer") else x
