"""Signs of a sick run, told while there is time: the trivial loss, and the alarm of a collapse.

In: the training images; then losses and gradient norms as they come. Out: the loss of the best constant
picture, which a model that has learnt nothing reaches, and a warning when a run falls back to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean, median

import torch
from torch import Tensor
from torch.utils.data import Dataset

TRIVIAL_IMAGES = 256  # enough for the second digit of the loss
WINDOW = 20  # figures that the alarm averages
LEARNT = 0.9  # ours: a loss below this share of the trivial one has learnt something
LOST = 0.98  # ours: above this one it has lost it again
VANISHED = 0.1  # ours: of the gradient's median norm


def trivial_loss(
    dataset: Dataset[tuple[Tensor, int]], seed: int, mean: Sequence[float], std: Sequence[float]
) -> float:
    """Give the mean L1 distance of pixels to the best constant of their channel, the channel's median.

    Args:
        dataset: gives (image (C, H, W) uint8, label).
        seed: chooses which images are looked at.
        mean, std: normalise pixels in [0, 1].
    """
    count = len(dataset)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(count, generator=generator)[:TRIVIAL_IMAGES].tolist()
    # One pixel in so many is enough of a large image.
    images = [dataset[i][0].flatten(1) for i in chosen]
    step = max(1, images[0].shape[1] // 4096)
    pixels = torch.cat([image[:, ::step] for image in images], dim=1) / 255
    pixels = (pixels - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]
    return float((pixels - pixels.median(dim=1, keepdim=True).values).abs().mean())


class CollapseAlarm:
    """Warn once when a run that had learnt is back at the trivial loss with a vanishing gradient."""

    def __init__(self, trivial: float) -> None:
        self.trivial = trivial
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._usual_norms: list[float] = []
        self._had_learnt = False
        self._warned = False

    def hear(self, loss: float, grad_norm: float) -> str | None:
        """Take the next figures; give the warning when it is time for it."""
        self._losses.append(loss)
        self._norms.append(grad_norm)
        if len(self._losses) < WINDOW or self._warned:
            return None
        mean = fmean(self._losses)
        if mean < LEARNT * self.trivial:
            self._had_learnt = True
            self._usual_norms.append(grad_norm)
            return None
        usual = median(self._usual_norms) if self._usual_norms else 0.0
        vanished = fmean(self._norms) < VANISHED * usual
        if not (self._had_learnt and mean > LOST * self.trivial and vanished):
            return None
        self._warned = True
        return (
            f"collapse: the loss is back at {mean:.4f}, that of a constant picture is {self.trivial:.4f}, "
            f"and the gradient's norm fell from {usual:.3g} to {fmean(self._norms):.3g}. Start again from an "
            "earlier checkpoint with a lower -o base_lr=... or a longer -o warmup_epochs=..."
        )
