"""From a source of images to batches: datasets, transforms, seeds, loaders, subsets.

In: an `ImageSource` and what to do with each image. Out: batches whose content follows from a seed, an
epoch and the images, whatever processes make them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms as T

from simmim_bench.data.decode import decode_image
from simmim_bench.data.sources import ImageSource
from simmim_bench.errors import DataError, UsageError

Load = Callable[[bytes, str], Tensor]  # a file's content and name to an image's tensor


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images of a source, loaded, and their labels.

    Args:
        load: maps an image's content and name to a tensor.
        skip_unreadable: so many images that cannot be read are replaced by the next one of the list and
            counted; one more, or by default the first, ends the run.
    """

    def __init__(
        self,
        images: ImageSource,
        load: Load,
        *,
        skip_unreadable: int = 0,
    ) -> None:
        self.images, self.load, self.limit = images, load, skip_unreadable
        # Shared with the processes of a loader.
        self._unreadable = torch.zeros(len(images), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def skipped(self) -> int:
        """How many different images could not be read so far."""
        return int(self._unreadable.sum())

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        for offset in range(len(self)):
            at = (index + offset) % len(self)
            try:
                image = self.load(self.images.read(at), self.images.name(at))
            except DataError as error:
                self._unreadable[at] = True
                if self.skipped <= self.limit:
                    continue
                if not self.limit:
                    raise
                raise DataError(
                    f"{error} It is number {self.skipped}, --skip-unreadable allows {self.limit}."
                ) from error
            return image, self.images.labels[at]
        raise DataError(f"none of the {len(self)} images can be read.")


def through(transform: Callable[[Image.Image], Tensor]) -> Load:
    """Load an image whole, and pass it through a transform of PIL images."""
    return functools.partial(_load_whole, transform)


def _load_whole(transform: Callable[[Image.Image], Tensor], content: bytes, name: str) -> Tensor:
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
) -> Load:
    """Build timm's training augmentation; without the last three, a random crop and flip.

    Args:
        crop_scale: share of the image's area that a crop covers.
        hflip, random_erasing: shares of the images, in [0, 1].
        auto_augment: timm's name of a policy.
    """
    transform: Callable[[Image.Image], Tensor] = create_transform(
        (3, *img_size),
        is_training=True,
        scale=crop_scale,
        hflip=hflip,
        color_jitter=color_jitter or None,
        auto_augment=auto_augment,
        re_prob=random_erasing,
        re_mode="pixel",
        interpolation="bicubic",
        mean=tuple(mean),
        std=tuple(std),
    )
    return through(transform)


def covering_size(
    size: tuple[int, int], img_size: tuple[int, int], crop_ratio: float
) -> tuple[int, int]:
    """Give the (H, W) that an image is resized to, so that a crop covers a share of its shorter side."""
    cover = [round(side / crop_ratio) for side in img_size]
    factor = max(cover[0] / size[0], cover[1] / size[1])
    return max(cover[0], round(size[0] * factor)), max(cover[1], round(size[1] * factor))


def eval_transform(
    img_size: tuple[int, int],
    *,
    crop_ratio: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> Load:
    """Resize so that the crop covers `crop_ratio` of the shorter side, cut the centre, normalise."""

    def resize(image: Image.Image) -> Image.Image:
        size = covering_size((image.height, image.width), img_size, crop_ratio)
        resized: Image.Image = T.functional.resize(image, list(size), T.InterpolationMode.BICUBIC)
        return resized

    return through(
        T.Compose([resize, T.CenterCrop(img_size), T.ToTensor(), T.Normalize(mean, std)])
    )


def balanced_subset(labels: Sequence[int], fraction: float, seed: int) -> list[int]:
    """Choose a share of the images, the same number from every class, at least one.

    Args:
        labels: class of every image.
        fraction: share to keep, in (0, 1]; each class gives round(fraction * n / classes) images.

    Returns:
        Indices, ascending. The same labels, fraction and seed give the same indices on every machine.

    Raises:
        UsageError: the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"fraction {fraction} is not in (0, 1]; use 1% or 10%.")
    array = np.asarray(labels)
    classes = np.unique(array)
    wanted = max(1, round(fraction * len(array) / len(classes)))
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen = [generator.permutation(np.flatnonzero(array == c))[:wanted] for c in classes]
    return sorted(int(i) for i in np.concatenate(chosen))
