"""Fit a recipe to its backbone: the image size, and the levels of the pyramid where the recipe leaves them open.

Does not import Detectron2.
"""

from __future__ import annotations

from dataclasses import replace

from simmim_bench.errors import UsageError
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.spec import BackboneSpec
from transfer.detection.recipes import CocoRecipe
from transfer.pyramid import anchor_sizes, default_strides


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
