"""Training monitor: the loss of a constant prediction as a baseline, and a warning when training collapses to it.

`trivial_loss` computes the loss of the best prediction that ignores its input, which a model that has learnt nothing
reaches. `CollapseMonitor` compares the running loss and gradient norm with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean, median

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.targets.base import Target
from simmim_bench.data.normalise import normalise

TRIVIAL_IMAGES = 256  # determine the second digit of the loss
WINDOW = 20  # loss values that the monitor averages
LEARNT = 0.9  # ours: a loss below this fraction of the trivial loss shows that the model has learnt
LOST = 0.98  # ours: a loss above this fraction shows that the model has collapsed
VANISHED = 0.1  # ours: a gradient norm below this fraction of its median has vanished


def sample_images(
    dataset: Dataset[tuple[Tensor, int]],
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    max_images: int = TRIVIAL_IMAGES,
) -> Iterator[Tensor]:
    """Sample images of a data set without repetition; yield each as (1, C, H, W), normalised, on a device.

    Args:
        dataset: items are (image (C, H, W) as decoded, label).
        seed: determines which images are sampled.
        mean, std: normalise the images.
        max_images: number of images; all are used where the data set has fewer.
    """
    count = len(dataset)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for i in torch.randperm(count, generator=generator)[:max_images].tolist():
        yield normalise(dataset[i][0].unsqueeze(0), mean, std, device)


def trivial_loss(
    target: Target, images: Iterable[Tensor], mask_of: Callable[[Tensor], Tensor] | None = None
) -> float:
    """Return the loss of the constant-prediction baseline: the best prediction that is the same for every point.

    Args:
        images: (1, C, H, W) each, normalised.
        mask_of: returns an image's mask (1, h, w), for targets that depend on what is hidden.
    """
    sampled = []
    for image in images:
        points = target.from_images(image, mask_of(image) if mask_of else None)[0].flatten(1)
        # Subsample large images to at most about 4096 points.
        sampled.append(points[:, :: max(1, points.shape[1] // 4096)])
    return target.trivial_loss(torch.cat(sampled, dim=1))


class CollapseMonitor:
    """Warn once when a model that had learnt returns to the trivial loss with a vanishing gradient."""

    def __init__(self, trivial: float) -> None:
        self.trivial = trivial
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._usual_norms: list[float] = []
        self._had_learnt = False
        self._warned = False

    def update(self, loss: float, grad_norm: float) -> str | None:
        """Add the loss and gradient norm of a step; return a warning if the training has collapsed, else None."""
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
            f"training collapsed: the loss is back at {mean:.4f} (constant-prediction baseline {self.trivial:.4f}) and "
            f"the gradient norm fell from {usual:.3g} to {fmean(self._norms):.3g}; restart from an earlier checkpoint "
            "with a lower -o base_lr=... or a longer -o warmup_epochs=..."
        )
