"""Targets that are pixels: as they are, averaged, or normalised by patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.design import Design, TargetModel
from pretrain.targets.base import Numbers, averaged
from simmim_bench.models.archs import BackboneSpec

PATCH_EPSILON = 1e-6  # MAE: models_mae.py (forward_loss)


class Pixels(Numbers):
    """The pixels, plain or normalised by their surroundings."""

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModel | None = None
    ) -> None:
        super().__init__(design, spec, model)
        self.side = design.norm_target

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        what = (
            f"pixels normalised by {self.side} x {self.side} around them" if self.side else "pixels"
        )
        return f"{what}{averaged(self.stride)}, {self.loss_name}"

    def normalised(self, images: Tensor) -> Tensor:
        """Take out of images (B, C, H, W) what is not to be predicted."""
        if not self.side:
            return images
        mean, deviation = local_statistics(images, self.side)
        return (images - mean) / deviation

    def of(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give the pixels that are to be predicted of (B, C, H, W): (B, C, H/t, W/t)."""
        return self.reduce(self.normalised(images.float()))

    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Give the prediction at the image's size, in the target's own units."""
        return self.enlarge(prediction)

    def denormalise(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Lend the local mean and deviation."""
        if not self.side:
            return reconstruction
        mean, deviation = local_statistics(images, self.side)
        return reconstruction * deviation + mean


class PatchNorm(Pixels):
    """Pixels normalised by their patch, as MAE's (arXiv 2111.06377, section 3).

    A patch is a cell of the last map: a ViT's own patch, as there, and 32 pixels of a Swin, the masking unit.
    """

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModel | None = None
    ) -> None:
        super().__init__(design, spec, model)
        self.patch = spec.stride

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        what = f"pixels normalised by their patch of {self.patch} x {self.patch}"
        return f"{what}{averaged(self.stride)}, {self.loss_name}"

    def normalised(self, images: Tensor) -> Tensor:
        """Take each patch's mean and deviation out of it."""
        mean, deviation = patch_statistics(images, self.patch)
        return (images - mean) / deviation

    def denormalise(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Lend each patch's mean and deviation."""
        mean, deviation = patch_statistics(images, self.patch)
        return reconstruction * deviation + mean


def local_statistics(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Give the mean and deviation of every pixel's surroundings, each (B, C, H, W).

    Swin-Transformer's SimMIM for Swin V2 predicts pixels normalised by them (models/simmim.py,
    NORM_TARGET; 47 pixels).

    Args:
        images: (B, C, H, W).
        side: of the square around each pixel, odd; what lies outside the image does not count.
    """
    padding = side // 2
    mean = F.avg_pool2d(images, side, 1, padding, count_include_pad=False)
    square = F.avg_pool2d(images**2, side, 1, padding, count_include_pad=False)
    count = F.avg_pool2d(torch.ones_like(images), side, 1, padding) * side**2
    variance = ((square - mean**2) * count / (count - 1)).clamp(min=0)
    return mean, (variance + 1e-6) ** 0.5


def patch_statistics(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Give the mean and deviation of every pixel's patch, each (B, 1, H, W).

    All channels together have one of each, as in MAE's models_mae.py (forward_loss, norm_pix_loss).

    Args:
        images: (B, C, H, W), H and W multiples of `side`.
        side: of the patches.
    """
    patches = F.pixel_unshuffle(images, side)
    variance, mean = torch.var_mean(patches, dim=1, keepdim=True)
    deviation = (variance + PATCH_EPSILON) ** 0.5

    def spread(one: Tensor) -> Tensor:
        return one.repeat_interleave(side, 2).repeat_interleave(side, 3)

    return spread(mean), spread(deviation)
