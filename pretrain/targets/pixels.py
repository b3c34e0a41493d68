"""Pixel targets: plain, at reduced resolution, or normalised by their surroundings or by patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.design import Design, TargetModelInfo
from pretrain.targets.base import RegressionTarget, averaging_suffix
from simmim_bench.models.spec import BackboneSpec

PATCH_EPSILON = 1e-6  # MAE: models_mae.py (forward_loss)


class PixelTarget(RegressionTarget):
    """SimMIM's target: plain pixels, or pixels normalised by the `norm_target` square around them."""

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModelInfo | None = None
    ) -> None:
        super().__init__(design, spec, model)
        self.side = design.norm_target

    def describe(self) -> str:
        """Return a short description of what is predicted, for logs and messages."""
        what = (
            f"pixels normalised by {self.side} x {self.side} around them" if self.side else "pixels"
        )
        return f"{what}{averaging_suffix(self.stride)}, {self.loss_name}"

    def normalised(self, images: Tensor) -> Tensor:
        """Normalise images (B, C, H, W) by the statistics that are not predicted."""
        if not self.side:
            return images
        mean, deviation = local_statistics(images, self.side)
        return (images - mean) / deviation

    def from_images(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the pixels to be predicted, (B, C, H/t, W/t)."""
        return self.reduce(self.normalised(images.float()))

    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Return the prediction at the image's size, in the target's units."""
        return self.enlarge(prediction)

    def denormalise(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Apply the local mean and standard deviation of the images."""
        if not self.side:
            return reconstruction
        mean, deviation = local_statistics(images, self.side)
        return reconstruction * deviation + mean


class PatchNormTarget(PixelTarget):
    """Pixels normalised by their patch, as in MAE (arXiv 2111.06377, section 3).

    A patch is a cell of the last feature map: a ViT's patch, as in MAE, and 32 pixels, the masking unit, for a Swin.
    """

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModelInfo | None = None
    ) -> None:
        super().__init__(design, spec, model)
        self.patch = spec.stride

    def describe(self) -> str:
        """Return a short description of what is predicted, for logs and messages."""
        what = f"pixels normalised by their patch of {self.patch} x {self.patch}"
        return f"{what}{averaging_suffix(self.stride)}, {self.loss_name}"

    def normalised(self, images: Tensor) -> Tensor:
        """Normalise every patch by its mean and standard deviation."""
        mean, deviation = patch_statistics(images, self.patch)
        return (images - mean) / deviation

    def denormalise(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Apply the mean and standard deviation of every patch of the images."""
        mean, deviation = patch_statistics(images, self.patch)
        return reconstruction * deviation + mean


def local_statistics(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of every pixel's surroundings, each (B, C, H, W).

    Swin-Transformer's SimMIM for Swin V2 predicts pixels normalised by them (models/simmim.py,
    NORM_TARGET; 47 pixels).

    Args:
        images: (B, C, H, W).
        side: side in pixels of the square around each pixel, odd; pixels outside the image are ignored.
    """
    padding = side // 2
    mean = F.avg_pool2d(images, side, 1, padding, count_include_pad=False)
    square = F.avg_pool2d(images**2, side, 1, padding, count_include_pad=False)
    count = F.avg_pool2d(torch.ones_like(images), side, 1, padding) * side**2
    variance = ((square - mean**2) * count / (count - 1)).clamp(min=0)
    return mean, (variance + 1e-6) ** 0.5


def patch_statistics(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of every pixel's patch, each (B, 1, H, W).

    They are computed over all channels together, as in MAE's models_mae.py (forward_loss, norm_pix_loss).

    Args:
        images: (B, C, H, W), H and W multiples of `side`.
        side: side of the patches in pixels.
    """
    patches = F.pixel_unshuffle(images, side)
    variance, mean = torch.var_mean(patches, dim=1, keepdim=True)
    deviation = (variance + PATCH_EPSILON) ** 0.5

    def to_pixels(values: Tensor) -> Tensor:
        return values.repeat_interleave(side, 2).repeat_interleave(side, 3)

    return to_pixels(mean), to_pixels(deviation)
