"""How good a reconstruction is, and how rich the features are, beside the loss.

In: images, what was predicted of their hidden pixels, masks; pooled features. Out: the mean L1 distance, PSNR
and SSIM of hidden pixels, whose scale no target or loss changes, so that designs can be compared; and the
effective rank of the features.
"""

from __future__ import annotations

import torch
from torch import Tensor

NO_ERROR = 1e-10  # of PSNR: a mean squared error below it counts as this one, 100 dB


class Reconstruction:
    """Measures of hidden pixels, gathered batch by batch; each is the mean of all images' own.

    Pixels are in [0, 1]. What is predicted of a hidden pixel stands in its place, cut off at black and white;
    the visible ones are the image's own.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._images = 0

    def add(self, predicted: Tensor, images: Tensor, hidden: Tensor) -> None:
        """Take a batch.

        Args:
            predicted, images: (B, C, H, W), pixels in [0, 1].
            hidden: (B, 1, H, W), 1 where a pixel is; images without a hidden one do not count.
        """
        predicted, images, hidden = (x.float() for x in (predicted, images, hidden))
        some = hidden.flatten(1).any(1)
        predicted, images, hidden = predicted[some], images[some], hidden[some]
        if not len(images):
            return
        pasted = images * (1 - hidden) + predicted.clamp(0, 1) * hidden
        error = pasted - images
        squared = masked_mean(error**2, hidden)
        of_image = [
            masked_mean(error.abs(), hidden),
            -10 * squared.clamp(min=NO_ERROR).log10(),
            masked_mean(similarity(pasted, images), hidden),
        ]
        self._sums += torch.stack([values.sum() for values in of_image]).cpu().double()
        self._images += len(images)

    def figures(self) -> dict[str, float]:
        """Give `masked_l1` in [0, 1], `psnr` in dB and `ssim` in [-1, 1]; nothing where nothing was hidden."""
        if not self._images:
            return {}
        means = (self._sums / self._images).tolist()
        return dict(zip(("masked_l1", "psnr", "ssim"), means, strict=True))


def masked_mean(values: Tensor, hidden: Tensor) -> Tensor:
    """Give each image's mean of (B, C, H, W) over its hidden pixels (B, 1, H, W): (B,)."""
    total = (values * hidden).flatten(1).sum(1)
    return total / (hidden.flatten(1).sum(1) * values.shape[1])


def similarity(one: Tensor, other: Tensor) -> Tensor:
    """Give the structural similarity (SSIM) of images around every pixel: (B, C, H, W), in [-1, 1].

    Windows are Gaussian, 1.5 pixels wide, of 11 x 11 (Wang et al., IEEE Transactions on Image Processing
    13(4), 2004, section III), mirrored at the border.

    Args:
        one, other: (B, C, H, W), pixels in [0, 1].
    """
    # Seconds to import: only where it is used.
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(
        one, other, gaussian_kernel=True, sigma=1.5, data_range=1.0, return_full_image=True
    )
    return found[1]


def effective_rank(features: Tensor) -> float:
    """Give how many directions features fill: from 1, a collapse, to min(N, C), all alike.

    It is the exponential of the entropy of the singular values' shares, RankMe (arXiv 2210.02885, equations
    1 and 2), of features as they are, not centred, as there.

    Args:
        features: (N, C), pooled, of N images.
    """
    values = torch.linalg.svdvals(features.double().cpu())
    shares = values / values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(shares).sum().exp())
