"""The targets by name: what `-o target=...` chooses from.

In: a design, a backbone, and what is known of the teacher or tokenizer where the target comes from one.
Out: a `Target`.
"""

from __future__ import annotations

from collections.abc import Callable

from pretrain.design import Design, TargetModel
from pretrain.targets.base import Target
from pretrain.targets.classes import Bins, Clusters
from pretrain.targets.pixels import PatchNorm, Pixels
from pretrain.targets.teacher import TeacherFeatures, TeacherPixels
from pretrain.targets.tokens import tokens
from simmim_bench.models.archs import BackboneSpec

TARGETS: dict[str, Callable[[Design, BackboneSpec, TargetModel | None], Target]] = {
    "pixels": Pixels,
    "patch_norm": PatchNorm,
    "bins": Bins,
    "clusters": Clusters,
    "tokens": tokens,
    "teacher_features": TeacherFeatures,
    "teacher_pixels": TeacherPixels,
}
