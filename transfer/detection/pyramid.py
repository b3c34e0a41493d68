"""Choose the levels of a detector's pyramid by the backbone, where the recipe leaves them open.

Does not import Detectron2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from simmim_bench.errors import UsageError
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.spec import BackboneSpec
from transfer.detection.recipes import CocoRecipe

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


def padded_size(recipe: CocoRecipe, spec: BackboneSpec) -> tuple[int, int]:
    """Return the (H, W) for which a backbone is built: the recipe's, or the square that all images are padded to.

    Raises:
        UsageError: the network takes one size alone, and the recipe does not pad to it.
    """
    if not isinstance(spec, ExternalSpec) or spec.sizing != "fixed":
        return recipe.img_size
    side = max(recipe.img_size)
    if not recipe.square_pad or (recipe.test_size is not None and recipe.test_size[1] > side):
        raise UsageError(
            f"{spec.arch} takes images of one size alone; use -o square_pad=true -o test_size=none, or "
            "--recipe coco_any, which pad all images to a square."
        )
    return side, side


def fit_to_backbone(recipe: CocoRecipe, spec: BackboneSpec) -> CocoRecipe:
    """Return a recipe with the image size, strides and anchor sizes of its backbone, where they are open.

    Raises:
        UsageError: the backbone cannot have the recipe's patches, or a pyramid.
    """
    img_size = padded_size(recipe, spec)
    if recipe.strides and recipe.anchor_sizes:
        return replace(recipe, img_size=img_size)
    used = spec.at(img_size, patch_size=recipe.patch_size)
    used = used.with_maps(recipe.maps, trained=spec)
    strides = recipe.strides or default_strides(used)
    return replace(
        recipe,
        img_size=img_size,
        strides=strides,
        anchor_sizes=recipe.anchor_sizes or anchor_sizes(strides),
    )
