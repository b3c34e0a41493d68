"""Targets that a teacher gives: its features, as in distillation, or what it reconstructs.

In: images (B, C, H, W), normalised as the student has them, and masks. Out: what a `Target` gives. The teacher
itself is read by `target_models.py`; its student is rebuilt, drawn and transferred without it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.design import Design, TargetModel
from pretrain.targets.base import Numbers, averaged
from pretrain.targets.pixels import Pixels
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import BackboneSpec


class TeacherFeatures(Numbers):
    """The teacher's last feature map of the whole image, at every cell of the student's last map.

    The teacher sees what is hidden from the student, as in data2vec (arXiv 2202.03555, section 3.3) and MVP
    (arXiv 2203.05175). Its features are layer-normalised without weights, as Feature Distillation's are
    (arXiv 2205.14141, section 3.2). Where its map is finer than the student's it is averaged, where it is
    coarser interpolated.
    """

    needs_model = True
    draws = False

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModel | None = None
    ) -> None:
        super().__init__(design, spec, model)
        self.label, self.colours = _label(design, model), spec.in_chans

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        return f"{self.channels} features of {self.label}, {self.loss_name}"

    def of(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give the teacher's features of whole images: (B, K, H/t, W/t)."""
        return resized(
            self.query_model(images, None).float(),
            [side // self.stride for side in images.shape[2:]],
        )

    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Give a picture that is not a number anywhere: features cannot be drawn."""
        count, _, height, width = prediction.shape
        nothing = prediction.new_full((), torch.nan)
        return nothing.expand(count, self.colours, height * self.stride, width * self.stride)


class TeacherPixels(Pixels):
    """What the teacher, a SimMIM model, reconstructs of the same image under the same mask.

    A teacher of normalised pixels is lent the hidden pixels' mean and deviation (`PixelTeacher`).
    """

    needs_model = True

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModel | None = None
    ) -> None:
        super().__init__(design, spec, model)
        self.label = _label(design, model)

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        what = f"pixels as {self.label} reconstructs them"
        return f"{what}{averaged(self.stride)}, {self.loss_name}"

    def of(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give the teacher's reconstruction: (B, C, H/t, W/t)."""
        return self.reduce(self.query_model(images, mask).float())


def _label(design: Design, model: TargetModel | None) -> str:
    if model is None:
        raise UsageError(
            f"nothing is known of {design.teacher}, the teacher that target {design.target} comes from."
        )
    return model.label


def resized(features: Tensor, size: list[int]) -> Tensor:
    """Bring (B, C, h, w) to another size: averaged where it is finer, interpolated where it is coarser."""
    finer = [max(own, wanted) for own, wanted in zip(features.shape[2:], size, strict=True)]
    if finer != list(features.shape[2:]):
        features = F.interpolate(features, finer, mode="bilinear")
    return F.adaptive_avg_pool2d(features, (size[0], size[1]))
