"""Choose the levels of a detector's pyramid by its backbone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from simmim_bench.errors import UsageError
from simmim_bench.models.spec import BackboneSpec

FINEST = (
    4  # pixels; the finest stride of ViTDet's pyramid and of FPN, arXiv 1612.03144, section 4.1
)
ANCHOR_CELLS = 8  # side of an anchor in cells of its level: 32 pixels at stride 4 (ibid.)
PYRAMID_SCALES = (1, 2, 4, 8)  # quarters of a patch: strides of ViTDet's simple feature pyramid


def available_strides(spec: BackboneSpec) -> list[int]:
    """Return the strides of the maps that a pyramid's levels are built from.

    Raises:
        UsageError: one is not a power of two, which Detectron2's pyramids and poolers need.
    """
    strides = [level.stride for level in spec.feature_levels]
    if spec.is_plain:
        patch = strides[-1]
        strides = [patch * scale // 4 for scale in PYRAMID_SCALES if patch * scale % 4 == 0]
    if any(stride & (stride - 1) for stride in strides):
        has_patches = spec.is_plain and spec.family in ("vit", "timm")
        fix = "-o patch_size=16, which resizes the patches" if has_patches else "another backbone"
        raise UsageError(
            f"{spec.arch} has maps of strides {strides}, but a detector's pyramid needs powers of two; use {fix}."
        )
    return strides


def default_strides(spec: BackboneSpec) -> tuple[int, ...]:
    """Return the strides that double up to the coarsest available one, from 4 on, and one more, which is pooled."""
    found = sorted(set(available_strides(spec)), reverse=True)
    chosen = found[:1]
    for coarse, fine in pairwise(found):
        if 2 * fine != coarse or fine < FINEST:
            break
        chosen.append(fine)
    return (*reversed(chosen), 2 * chosen[0])


def anchor_sizes(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return the side of the anchors of every level in pixels."""
    return tuple(ANCHOR_CELLS * stride for stride in strides)


def joined(numbers: Sequence[int]) -> str:
    """Return numbers as an override's value."""
    return ",".join(map(str, numbers))
