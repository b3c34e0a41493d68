"""Signs of a sick run, told while there is time: the trivial loss, and the monitor of a collapse.

In: the training images and what is predicted of them; then losses and gradient norms as they come. Out: the
loss of the best constant picture, which a model that has learnt nothing reaches, and a warning when a run
falls back to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean, median

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.targets.base import Target
from simmim_bench.data.decode import normalise

TRIVIAL_IMAGES = 256  # enough for the second digit of the loss
WINDOW = 20  # figures that the monitor averages
LEARNT = 0.9  # ours: a loss below this share of the trivial one has learnt something
LOST = 0.98  # ours: above this one it has lost it again
VANISHED = 0.1  # ours: of the gradient's median norm


def sample_images(
    dataset: Dataset[tuple[Tensor, int]],
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    most: int = TRIVIAL_IMAGES,
) -> Iterator[Tensor]:
    """Give at most 256 or so many images (1, C, H, W), normalised, on a device.

    Args:
        dataset: gives (image (C, H, W) uint8, label).
        seed: chooses which images are looked at.
        mean, std: normalise pixels in [0, 1].
    """
    count = len(dataset)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for i in torch.randperm(count, generator=generator)[:most].tolist():
        yield normalise(dataset[i][0].unsqueeze(0), mean, std, device)


def trivial_loss(
    target: Target, images: Iterable[Tensor], mask_of: Callable[[Tensor], Tensor] | None = None
) -> float:
    """Give the loss of the best prediction that is the same for every point of images (1, C, H, W).

    Args:
        mask_of: gives an image's mask (1, h, w), for targets that depend on what is hidden.
    """
    seen = []
    for image in images:
        points = target.of(image, mask_of(image) if mask_of else None)[0].flatten(1)
        # One point in so many is enough of a large image.
        seen.append(points[:, :: max(1, points.shape[1] // 4096)])
    return target.trivial_loss(torch.cat(seen, dim=1))


class CollapseMonitor:
    """Warn once when a run that had learnt is back at the trivial loss with a vanishing gradient."""

    def __init__(self, trivial: float) -> None:
        self.trivial = trivial
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._usual_norms: list[float] = []
        self._had_learnt = False
        self._warned = False

    def update(self, loss: float, grad_norm: float) -> str | None:
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
