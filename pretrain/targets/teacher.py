"""Targets that a teacher provides: its features, as in distillation, or its reconstruction.

`models.py` loads the teacher itself. The student is rebuilt, visualised and transferred without it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.design import Design, TargetModelInfo
from pretrain.targets.base import RegressionTarget, averaging_suffix
from pretrain.targets.pixels import PixelTarget
from simmim_bench.errors import UsageError
from simmim_bench.models.spec import BackboneSpec


class TeacherFeatureTarget(RegressionTarget):
    """The teacher's last feature map of the whole image, at every cell of the student's last feature map.

    The teacher receives the unmasked image, as in data2vec (arXiv 2202.03555, section 3.3) and MVP (arXiv 2203.05175).
    Its features are layer-normalised without weights, as in Feature Distillation (arXiv 2205.14141, section 3.2). A
    teacher's map that is finer than the student's is averaged, a coarser one is interpolated.
    """

    needs_model = True
    can_visualize = False

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModelInfo | None = None
    ) -> None:
        super().__init__(design, spec, model)
        self.label, self.image_channels = _label(design, model), spec.in_chans

    def describe(self) -> str:
        """Return a short description of what is predicted, for logs and messages."""
        return f"{self.channels} features of {self.label}, {self.loss_name}"

    def from_images(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the teacher's features of the unmasked images, (B, K, H/t, W/t)."""
        return resize_features(
            self.query_model(images, None).float(),
            [side // self.stride for side in images.shape[2:]],
        )

    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Return an image of NaN, because features cannot be visualised."""
        count, _, height, width = prediction.shape
        nan = prediction.new_full((), torch.nan)
        return nan.expand(count, self.image_channels, height * self.stride, width * self.stride)


class TeacherPixelTarget(PixelTarget):
    """The reconstruction of the same image under the same mask by a teacher with a SimMIM head.

    If the teacher predicts normalised pixels, `PixelTeacher` denormalises them with the image's statistics.
    """

    needs_model = True

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModelInfo | None = None
    ) -> None:
        super().__init__(design, spec, model)
        self.label = _label(design, model)

    def describe(self) -> str:
        """Return a short description of what is predicted, for logs and messages."""
        what = f"pixels as {self.label} reconstructs them"
        return f"{what}{averaging_suffix(self.stride)}, {self.loss_name}"

    def from_images(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the teacher's reconstruction, (B, C, H/t, W/t)."""
        return self.reduce(self.query_model(images, mask).float())


def _label(design: Design, model: TargetModelInfo | None) -> str:
    if model is None:
        raise UsageError(
            f"target {design.target} needs the metadata of teacher {design.teacher}; load it with load_target_model."
        )
    return model.label


def resize_features(features: Tensor, size: list[int]) -> Tensor:
    """Resize features (B, C, h, w) to (h', w'): averaged where they are finer, interpolated where they are coarser."""
    finer = [max(own, wanted) for own, wanted in zip(features.shape[2:], size, strict=True)]
    if finer != list(features.shape[2:]):
        features = F.interpolate(features, finer, mode="bilinear")
    return F.adaptive_avg_pool2d(features, (size[0], size[1]))
