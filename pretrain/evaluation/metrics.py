"""Metrics of reconstructions and features that are comparable between designs, unlike the loss.

`ReconstructionMetrics` averages the L1 distance, PSNR and SSIM of hidden pixels, whose scale does not depend on target
or loss. `effective_rank` measures how many dimensions the pooled features use.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SQUARED_ERROR = (
    1e-10  # lower limit of the mean squared error in PSNR, which is then 100 dB at most
)


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
    # The import takes seconds.
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(
        first, second, gaussian_kernel=True, sigma=1.5, data_range=1.0, return_full_image=True
    )
    return found[1]


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
