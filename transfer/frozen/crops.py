"""The crops of frozen features: the centre crop, and random crops by torchvision's rule or MAE's.

MAE's rule samples once where torchvision tries up to ten times.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.datasets import LoadImage, decode_then, eval_transform, train_transform
from simmim_bench.data.fast_resize import crop_fast, decode_bytes_then
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.data.pixel_transforms import decode_pixels_then, last_steps, random_crop_steps
from simmim_bench.recipe import Resizing
from transfer.frozen.recipes import CropRule


class Cropping(Protocol):
    """A recipe that determines a centre crop."""

    @property
    def img_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""

    @property
    def test_crop_ratio(self) -> float:
        """The fraction of the shorter side that the crop covers."""

    @property
    def resizing(self) -> Resizing:
        """How images are resized."""


def centre_crop(recipe: Cropping, checkpoint: Checkpoint) -> LoadImage:
    """Build a recipe's centre crop, as decoded, which the device normalises as in the checkpoint's pretraining."""
    return eval_transform(
        recipe.img_size,
        crop_ratio=recipe.test_crop_ratio,
        mean=checkpoint.mean,
        std=checkpoint.std,
        as_bytes=True,
        pixel_format=checkpoint.pixel_format,
        resizing=recipe.resizing,
    )


def random_crop_flip(
    img_size: tuple[int, int],
    checkpoint: Checkpoint,
    *,
    rule: CropRule,
    scale: tuple[float, float],
    hflip: float,
    resizing: Resizing = "pil",
) -> LoadImage:
    """Build a random crop and flip, as decoded, which the device normalises as in the checkpoint's pretraining.

    Args:
        img_size: (H, W) in pixels.
        rule, scale, hflip: see `features.RandomCrop`.
        resizing: see `simmim_bench/data/fast_resize.py`.
    """
    transform = train_transform if rule == "torchvision" else single_draw_transform
    return transform(
        img_size,
        mean=checkpoint.mean,
        std=checkpoint.std,
        crop_scale=scale,
        hflip=hflip,
        as_bytes=True,
        pixel_format=checkpoint.pixel_format,
        resizing=resizing,
    )


def sample_crop(
    size: tuple[int, int], scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int, int, int]:
    """Sample a crop as MAE's util/crop.py (lines 23 to 42) does: top, left, height, width.

    A side that is longer than the image's is cut to it, whereas torchvision samples again and takes a centre
    crop after ten failures. The numbers come from torch's global generator, in MAE's order.

    Args:
        size: (H, W) of the image.
        scale: range of the fraction of the image's area.
        ratio: range of width divided by height, of whose logarithm the distribution is uniform.
    """
    rows, columns = size
    area = rows * columns * torch.empty(1).uniform_(*scale).item()
    low, high = torch.tensor(ratio).log().tolist()
    aspect = torch.empty(1).uniform_(low, high).exp().item()
    width = min(round(math.sqrt(area * aspect)), columns)
    height = min(round(math.sqrt(area / aspect)), rows)
    top = int(torch.randint(0, rows - height + 1, (1,)))
    left = int(torch.randint(0, columns - width + 1, (1,)))
    return top, left, height, width


class SingleDrawCrop(T.RandomResizedCrop):
    """torchvision's `RandomResizedCrop` with the crops of `sample_crop`."""

    @staticmethod
    def get_params(
        img: Image.Image | Tensor, scale: Sequence[float], ratio: Sequence[float]
    ) -> tuple[int, int, int, int]:
        """Return top, left, height and width of a crop."""
        _, height, width = T.functional.get_dimensions(img)
        return sample_crop((height, width), scale, ratio)


def single_draw_transform(
    img_size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop_scale: tuple[float, float],
    hflip: float,
    as_bytes: bool = False,
    pixel_format: PixelFormat = RGB,
    resizing: Resizing = "pil",
) -> LoadImage:
    """Build the training transform of MAE's main_linprobe.py (lines 132 to 136).

    The arguments are those of `simmim_bench.data.datasets.train_transform`.
    """
    crop = SingleDrawCrop(img_size, crop_scale, interpolation=T.InterpolationMode.BICUBIC)
    if not pixel_format.is_rgb:
        steps = random_crop_steps(crop, hflip, pixel_format)
        return decode_pixels_then(pixel_format, [*steps, *last_steps(mean, std, as_bytes=as_bytes)])
    flip = T.RandomHorizontalFlip(hflip)
    last = [T.PILToTensor()] if as_bytes else [T.ToTensor(), T.Normalize(mean, std)]
    if resizing == "fast":
        return decode_bytes_then(T.Compose([functools.partial(crop_fast, crop), flip, *last]))
    return decode_then(T.Compose([crop, flip, *last]))
