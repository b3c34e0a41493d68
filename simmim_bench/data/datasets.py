"""Build datasets of decoded, transformed images from an `ImageSource`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from timm.data import AutoAugment, create_transform
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms as T

from simmim_bench.data.decode import decode_image
from simmim_bench.data.fast_resize import crop_fast, decode_bytes_then, resize_bytes
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.data.pixel_transforms import (
    decode_pixels_then,
    last_steps,
    random_crop_steps,
    resize_pixels,
)
from simmim_bench.data.sources import ImageSource
from simmim_bench.errors import DataError, UsageError
from simmim_bench.recipe import Resizing

LoadImage = Callable[[bytes, str], Tensor]  # from the content and name of an image file


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Transformed images of a source and their labels.

    Args:
        images: the source.
        load: maps the content and name of an image file to a tensor.
        skip_unreadable: allowed number of unreadable images; the next image of the source replaces each of
            them. One more raises a `DataError`.
        keep_last: keep the content of the last file, for its next augmentation by `RandomCropFlip`.
    """

    def __init__(
        self,
        images: ImageSource,
        load: LoadImage,
        *,
        skip_unreadable: int = 0,
        keep_last: bool = False,
    ) -> None:
        self.images, self.load, self.limit = images, load, skip_unreadable
        self._keep_last, self._last = keep_last, (-1, b"")
        # In shared memory, because the worker processes of a loader update it.
        self._unreadable = torch.zeros(len(images), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def skipped(self) -> int:
        """Number of distinct images that could not be read so far."""
        return int(self._unreadable.sum())

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        for offset in range(len(self)):
            candidate = (index + offset) % len(self)
            try:
                image = self.load(self._read(candidate), self.images.name(candidate))
            except DataError as error:
                self._unreadable[candidate] = True
                if self.skipped <= self.limit:
                    continue
                if not self.limit:
                    raise
                raise DataError(
                    f"{error} It is unreadable image number {self.skipped}; --skip-unreadable allows {self.limit}."
                ) from error
            return image, int(self.images.labels[candidate])
        raise DataError(f"none of the {len(self)} images can be read; check --data.")

    def _read(self, index: int) -> bytes:
        """Return the content of a file."""
        if not self._keep_last:
            return self.images.read(index)
        if self._last[0] != index:
            self._last = index, self.images.read(index)
        return self._last[1]


def decode_then(transform: Callable[[Image.Image], Tensor]) -> LoadImage:
    """Return a function that decodes a whole image and applies a transform of PIL images."""
    return functools.partial(_decode_and_transform, transform)


def _decode_and_transform(
    transform: Callable[[Image.Image], Tensor], content: bytes, name: str
) -> Tensor:
    return transform(decode_image(content, name))


def train_transform(
    img_size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop_scale: tuple[float, float],
    hflip: float,
    color_jitter: float = 0.0,
    auto_augment: str | None = None,
    random_erasing: float = 0.0,
    as_bytes: bool = False,
    pixel_format: PixelFormat = RGB,
    resizing: Resizing = "pil",
) -> LoadImage:
    """Build timm's training augmentation; by default, a random crop and flip only.

    Args:
        img_size: (H, W) of the result, in pixels.
        mean, std: normalisation, for pixels in [0, 1].
        crop_scale: range of the crop's area as a fraction of the image's.
        hflip: probability of a horizontal flip, in [0, 1].
        color_jitter: strength of timm's colour jitter; 0 for none.
        auto_augment: name of a policy in timm, or "trivial" for torchvision's TrivialAugmentWide; None for none.
        random_erasing: probability of random erasing, in [0, 1].
        as_bytes: return images as decoded, neither normalised nor erased: of uint8, a quarter of the memory traffic.
        pixel_format: of the images; photometric augmentations are for RGB alone.
        resizing: of images of RGB; see `fast_resize.py`.

    Raises:
        UsageError: a photometric augmentation of images that are not RGB.
    """
    if not pixel_format.is_rgb:
        check_photometric(auto_augment, color_jitter, pixel_format)
        crop = T.RandomResizedCrop(
            img_size, crop_scale, interpolation=T.InterpolationMode.BICUBIC, antialias=True
        )
        return decode_pixels_then(
            pixel_format,
            [
                *random_crop_steps(crop, hflip, pixel_format),
                *last_steps(mean, std, as_bytes=as_bytes, random_erasing=random_erasing),
            ],
        )
    trivial = auto_augment == "trivial"
    transform: T.Compose = create_transform(
        (3, *img_size),
        is_training=True,
        scale=crop_scale,
        hflip=hflip,
        color_jitter=color_jitter or None,
        auto_augment="v0" if trivial else auto_augment,
        re_prob=random_erasing,
        re_mode="pixel",
        interpolation="bicubic",
        mean=tuple(mean),
        std=tuple(std),
        normalize=not as_bytes,
    )
    if trivial:  # timm does not know it: in the place of another policy, as SparK's downstream_imagenet/data.py:42-46
        (place,) = (i for i, step in enumerate(transform.transforms) if type(step) is AutoAugment)
        transform.transforms[place] = T.TrivialAugmentWide(
            interpolation=T.InterpolationMode.BICUBIC
        )
    if resizing == "fast":
        crop, *others = transform.transforms
        return decode_bytes_then(T.Compose([functools.partial(crop_fast, crop), *others]))
    return decode_then(transform)


def check_photometric(
    auto_augment: str | None, color_jitter: float, pixel_format: PixelFormat
) -> None:
    """Check that a recipe augments colours of RGB images of 8 bits alone.

    Raises:
        UsageError: it does for others; the message has the overrides that remove it.
    """
    given = {"auto_augment": auto_augment, "color_jitter": color_jitter or None}
    used = [f"{key}={value}" for key, value in given.items() if value is not None]
    if used and not pixel_format.is_rgb:
        remove = {"auto_augment": "none", "color_jitter": "0"}
        options = " ".join(f"-o {key}={remove[key]}" for key in given if given[key] is not None)
        raise UsageError(
            f"{' and '.join(used)} changes colours of RGB images of 8 bits, but the model takes {pixel_format}; use "
            f"{options}."
        )


def covering_size(
    size: tuple[int, int], img_size: tuple[int, int], crop_ratio: float
) -> tuple[int, int]:
    """Compute the (H, W) to resize an image to, so that a crop covers a fraction of its shorter side.

    Both divisions are truncated, as in the published evaluations: the side of the resized image in SimMIM's
    data/data_finetune.py (line 100, `int((256 / 224) * IMG_SIZE)`) and MAE's util/datasets.py (line 57), its
    longer side in torchvision's `Resize` (transforms/functional.py, `_compute_resized_output_size`). For a
    square `img_size` the result is that of `Resize(int(side / crop_ratio))`.

    Args:
        size: (H, W) of the image.
        img_size: (H, W) of the crop.
        crop_ratio: covered fraction of the shorter side, in (0, 1].
    """
    height, width = size
    rows, columns = (int(side / crop_ratio) for side in img_size)
    if rows * width >= columns * height:  # the image is wider than the crop
        return rows, rows * width // height
    return columns * height // width, columns


def eval_transform(
    img_size: tuple[int, int],
    *,
    crop_ratio: float,
    mean: Sequence[float],
    std: Sequence[float],
    as_bytes: bool = False,
    pixel_format: PixelFormat = RGB,
    resizing: Resizing = "pil",
) -> LoadImage:
    """Build the evaluation transform: resize as in `covering_size`, centre crop, normalise.

    For a square `img_size` the pixels are those of torchvision's `Resize` and `CenterCrop` on a PIL image.

    Args:
        as_bytes: return images as decoded, not normalised.
        pixel_format: of the images.
        resizing: of images of RGB; see `fast_resize.py`.
    """
    if not pixel_format.is_rgb:
        cover = functools.partial(_resize_pixels_to_cover, img_size, crop_ratio, pixel_format)
        steps = [cover, T.CenterCrop(img_size), *last_steps(mean, std, as_bytes=as_bytes)]
        return decode_pixels_then(pixel_format, steps)
    if resizing == "fast":
        fast_cover = functools.partial(_resize_bytes_to_cover, img_size, crop_ratio)
        steps = [T.CenterCrop(img_size), *last_steps(mean, std, as_bytes=as_bytes)]
        return decode_bytes_then(T.Compose([fast_cover, *steps]))
    resize = functools.partial(_resize_to_cover, img_size, crop_ratio)
    last = [T.PILToTensor()] if as_bytes else [T.ToTensor(), T.Normalize(mean, std)]
    return decode_then(T.Compose([resize, T.CenterCrop(img_size), *last]))


def _resize_to_cover(
    img_size: tuple[int, int], crop_ratio: float, image: Image.Image
) -> Image.Image:
    size = covering_size((image.height, image.width), img_size, crop_ratio)
    resized: Image.Image = T.functional.resize(image, list(size), T.InterpolationMode.BICUBIC)
    return resized


def _resize_bytes_to_cover(
    img_size: tuple[int, int], crop_ratio: float, pixels: np.ndarray
) -> Tensor:
    return resize_bytes(pixels, covering_size(pixels.shape[:2], img_size, crop_ratio))


def _resize_pixels_to_cover(
    img_size: tuple[int, int], crop_ratio: float, pixel_format: PixelFormat, pixels: Tensor
) -> Tensor:
    size = covering_size((pixels.shape[1], pixels.shape[2]), img_size, crop_ratio)
    return resize_pixels(pixels, size, pixel_format)
