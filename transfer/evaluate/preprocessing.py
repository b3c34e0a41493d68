"""Resize, crop and normalise validation images as a classifier was published with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torchvision import transforms as T

from simmim_bench.data.datasets import LoadImage, covering_size, decode_then
from transfer.evaluate.recipes import CropMode, EvaluateRecipe, Interpolation


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a model's publisher evaluates it; the fields of `EvaluateRecipe`.

    Attributes:
        source: where the numbers are from, for the record.
        warning: what the file leaves open, and how to settle it; else empty.
    """

    img_size: tuple[int, int]
    test_crop_ratio: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"
    warning: str = ""


def build_transform(
    recipe: EvaluateRecipe, mean: Sequence[float], std: Sequence[float]
) -> LoadImage:
    """Build the transform of a recipe.

    For a square `img_size`, "center" has the pixels of torchvision's `Resize` and `CenterCrop` on a PIL image, which
    timm's evaluation, torchvision's weights and the official codes use.

    Args:
        mean, std: the model's, where the recipe has none.
    """
    mode = T.InterpolationMode(recipe.interpolation)

    def resize(image: Image.Image) -> Image.Image:
        size = tuple(int(side / recipe.test_crop_ratio) for side in recipe.img_size)
        if recipe.crop_mode == "center":
            size = covering_size(
                (image.height, image.width), recipe.img_size, recipe.test_crop_ratio
            )
        resized: Image.Image = T.functional.resize(image, list(size), mode)
        return resized

    return decode_then(
        T.Compose(
            [
                resize,
                T.CenterCrop(recipe.img_size),
                T.ToTensor(),
                T.Normalize(recipe.mean or mean, recipe.std or std),
            ]
        )
    )
