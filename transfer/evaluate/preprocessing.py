"""Resize, crop and normalise validation images as a classifier was published with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from simmim_bench.data.datasets import LoadImage, covering_size, decode_then
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.data.pixel_transforms import decode_pixels_then, last_steps, resize_pixels
from transfer.evaluate.recipes import CropMode, EvaluateRecipe, Interpolation


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a model's publisher evaluates it; the fields of `EvaluateRecipe`.

    Attributes:
        source: where the numbers are from, for the record.
        warning: what the file leaves open, and how to settle it; else empty.
        pixel_format: of the images that the model takes.
    """

    img_size: tuple[int, int]
    test_crop_ratio: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"
    warning: str = ""
    pixel_format: PixelFormat = RGB


def build_transform(
    recipe: EvaluateRecipe,
    mean: Sequence[float],
    std: Sequence[float],
    pixel_format: PixelFormat = RGB,
) -> LoadImage:
    """Build the transform of a recipe.

    For a square `img_size`, "center" has the pixels of torchvision's `Resize` and `CenterCrop` on a PIL image, which
    timm's evaluation, torchvision's weights and the official codes use.

    Args:
        mean, std: the model's, where the recipe has none.
        pixel_format: of the images that the model takes.
    """
    mode = T.InterpolationMode(recipe.interpolation)
    mean, std = recipe.mean or mean, recipe.std or std

    def resized_size(height: int, width: int) -> tuple[int, int]:
        if recipe.crop_mode == "center":
            return covering_size((height, width), recipe.img_size, recipe.test_crop_ratio)
        rows, columns = (int(side / recipe.test_crop_ratio) for side in recipe.img_size)
        return rows, columns

    def resize(image: Image.Image) -> Image.Image:
        size = resized_size(image.height, image.width)
        resized: Image.Image = T.functional.resize(image, list(size), mode)
        return resized

    def resize_tensor(pixels: Tensor) -> Tensor:
        size = resized_size(pixels.shape[1], pixels.shape[2])
        return resize_pixels(pixels, size, pixel_format, mode)

    if not pixel_format.is_rgb:
        steps = [resize_tensor, T.CenterCrop(recipe.img_size)]
        return decode_pixels_then(pixel_format, [*steps, *last_steps(mean, std, as_bytes=False)])

    return decode_then(
        T.Compose(
            [
                resize,
                T.CenterCrop(recipe.img_size),
                T.ToTensor(),
                T.Normalize(mean, std),
            ]
        )
    )
