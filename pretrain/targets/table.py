"""All targets by name: the values of `-o target=...`."""

from __future__ import annotations

from collections.abc import Callable

from pretrain.design import Design, TargetModelInfo
from pretrain.targets.base import Target
from pretrain.targets.classes import BinTarget, ClusterTarget
from pretrain.targets.pixels import PatchNormTarget, PixelTarget
from pretrain.targets.teacher import TeacherFeatureTarget, TeacherPixelTarget
from pretrain.targets.tokens import build_token_target
from simmim_bench.models.spec import BackboneSpec

TARGETS: dict[str, Callable[[Design, BackboneSpec, TargetModelInfo | None], Target]] = {
    "pixels": PixelTarget,
    "patch_norm": PatchNormTarget,
    "bins": BinTarget,
    "clusters": ClusterTarget,
    "tokens": build_token_target,
    "teacher_features": TeacherFeatureTarget,
    "teacher_pixels": TeacherPixelTarget,
}
