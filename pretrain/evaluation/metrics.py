"""Metrics of reconstructions and features that are comparable between designs, unlike the loss.

`ReconstructionMetrics` averages the L1 distance, PSNR and SSIM of hidden pixels, whose scale does not depend on target
or loss. `effective_rank` measures how many dimensions the pooled features use.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SQUARED_ERROR = (
    1e-10  # lower limit of the mean squared error in PSNR, which is then 100 dB at most
)
SSIM_WINDOW = (5, 1.5)  # pixels to each side, and the Gaussian's standard deviation
SSIM_CONSTANTS = (0.01**2, 0.03**2)  # C1 and C2 for pixels in [0, 1]


class ReconstructionMetrics:
    """Metrics of hidden pixels, computed per image and averaged over all images of all batches.

    Pixels are in [0, 1]. Hidden pixels are replaced by their prediction, clipped to [0, 1]; visible pixels keep
    their values.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._images = 0

    def update(self, predicted: Tensor, images: Tensor, hidden: Tensor) -> None:
        """Add a batch.

        Args:
            predicted, images: (B, C, H, W), pixels in [0, 1].
            hidden: (B, 1, H, W), 1 where a pixel is hidden; images without hidden pixels are skipped.
        """
        predicted, images, hidden = (x.float() for x in (predicted, images, hidden))
        masked = hidden.flatten(1).any(1)
        predicted, images, hidden = predicted[masked], images[masked], hidden[masked]
        if not len(images):
            return
        pasted = images * (1 - hidden) + predicted.clamp(0, 1) * hidden
        error = pasted - images
        squared = masked_mean(error**2, hidden)
        per_image = [
            masked_mean(error.abs(), hidden),
            -10 * squared.clamp(min=MIN_SQUARED_ERROR).log10(),
            masked_mean(ssim_map(pasted, images), hidden),
        ]
        self._sums += torch.stack([values.sum() for values in per_image]).cpu().double()
        self._images += len(images)

    def compute(self) -> dict[str, float]:
        """Return `masked_l1` in [0, 1], `psnr` in dB and `ssim` in [-1, 1]; empty if no pixel was hidden."""
        if not self._images:
            return {}
        means = (self._sums / self._images).tolist()
        return dict(zip(("masked_l1", "psnr", "ssim"), means, strict=True))


def masked_mean(values: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean (B,) of values (B, C, H, W) over the hidden pixels (B, 1, H, W) of each image."""
    total = (values * hidden).flatten(1).sum(1)
    return total / (hidden.flatten(1).sum(1) * values.shape[1])


def ssim_map(first: Tensor, second: Tensor) -> Tensor:
    """Return the structural similarity (SSIM) around every pixel: (B, C, H, W), in [-1, 1].

    Windows are Gaussian with a standard deviation of 1.5 pixels, 11 x 11 pixels large (Wang et al., IEEE Transactions
    on Image Processing 13(4), 2004, section III), and mirrored at the border.

    Args:
        first, second: (B, C, H, W), pixels in [0, 1].
    """
    channels, (reach, deviation) = first.shape[1], SSIM_WINDOW
    weights = torch.arange(-reach, reach + 1, device=first.device).div(deviation).square()
    weights = weights.div(-2).exp().to(first.dtype)
    weights = (weights / weights.sum()).expand(5 * channels, 1, -1)
    values = torch.cat([first, second, first * first, second * second, first * second], dim=1)
    values = F.pad(values, (reach,) * 4, mode="reflect")
    rows = F.conv2d(values, weights[:, :, None], groups=5 * channels)
    means = F.conv2d(rows, weights[..., None], groups=5 * channels)
    mean1, mean2, square1, square2, product = means.split(channels, dim=1)
    variances = square1 - mean1.square() + square2 - mean2.square()
    covariance = product - mean1 * mean2
    c1, c2 = SSIM_CONSTANTS
    return ((2 * mean1 * mean2 + c1) * (2 * covariance + c2)) / (
        (mean1.square() + mean2.square() + c1) * (variances + c2)
    )


def effective_rank(features: Tensor) -> float:
    """Return the effective rank of features: from 1, a collapse, to min(N, C), equal singular values.

    It is RankMe (arXiv 2210.02885, equations 1 and 2): the exponential of the entropy of the normalised singular
    values. As in the paper, the features are not centred.

    Args:
        features: (N, C), pooled features of N images.
    """
    values = torch.linalg.svdvals(features.double().cpu())
    proportions = values / values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(proportions).sum().exp())
