"""Images on disk: class folders, flat folders, transforms, subsets, fingerprints.

In: a folder in ImageNet's layout (`train/` and `val/`, a folder a class), or any folder of images for
pretraining. Out: datasets of tensors (C, H, W), normalised, with their labels.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from simmim_bench.errors import DataError, UsageError

FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".ppm": "PPM",
}
# The one file of ImageNet-1K whose name lies: a PNG among the JPEGs.
MISNAMED_IN_IMAGENET = "n02105855_2933.JPEG"


@dataclass(frozen=True)
class ImageList:
    """The images of one split, sorted: paths, a label each, and the class names."""

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Sequence[int]) -> ImageList:
        """Keep some images, in the order of `indices`; the classes stay."""
        return ImageList(
            self.root,
            tuple(self.paths[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            self.classes,
        )

    def fingerprint(self) -> str:
        """Hash every image's path below the root and its size in bytes: SHA-256 in hexadecimal."""
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(
                    f"image {path} cannot be read: {error.strerror}; mend the link or remove it."
                ) from error
            line = f"{path.relative_to(self.root).as_posix()} {size}\n"
            digest.update(line.encode())
        return digest.hexdigest()


def class_folders(root: Path, split: str) -> ImageList:
    """List a split in ImageNet's layout, `root/split/class/image`.

    Raises:
        DataError: a folder is missing or empty, or a class folder has no images.
    """
    folder = root / split
    if not folder.is_dir():
        raise DataError(
            f"data folder {folder} is not there; --data takes a folder with train/ and val/, a folder a class."
        )
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not names:
        raise DataError(
            f"data folder {folder} has no class folders; put the images into {folder}/CLASS/."
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        images = _images_below(folder / name)
        if not images:
            raise DataError(
                f"class folder {folder / name} has no images ({', '.join(FORMATS)}); fill it or remove it."
            )
        paths += images
        labels += [label] * len(images)
    return ImageList(root, tuple(paths), tuple(labels), tuple(names))


def any_images(root: Path) -> ImageList:
    """List all images below `root/train`, or below `root` where there is no such folder, as one class.

    Raises:
        DataError: the folder is missing or has no images.
    """
    folder = root / "train" if (root / "train").is_dir() else root
    if not folder.is_dir():
        raise DataError(f"data folder {folder} is not there; --data takes a folder of images.")
    paths = _images_below(folder)
    if not paths:
        raise DataError(f"data folder {folder} has no images ({', '.join(FORMATS)}).")
    return ImageList(root, tuple(paths), (0,) * len(paths), ("image",))


def check_same_classes(train: ImageList, val: ImageList) -> None:
    """Refuse splits whose class folders differ.

    Raises:
        DataError: naming the classes that one of them lacks.
    """
    odd = sorted(set(train.classes) ^ set(val.classes))
    if odd:
        raise DataError(
            f"train/ and val/ of {train.root} have different classes: {', '.join(odd[:5])} "
            "is in one of them only; give both the same class folders."
        )


def _images_below(folder: Path) -> list[Path]:
    found = []
    for directory, _, files in os.walk(folder, followlinks=True):
        found += [Path(directory, f) for f in files if os.path.splitext(f)[1].lower() in FORMATS]
    return sorted(found)


def read_image(path: Path) -> Image.Image:
    """Read an image whole, as RGB.

    Raises:
        DataError: it cannot be decoded, or its content is not what its name says.
    """
    try:
        with Image.open(path) as image:
            wanted = FORMATS[path.suffix.lower()]
            if image.format not in (wanted, "MPO") and path.name != MISNAMED_IN_IMAGENET:
                raise DataError(
                    f"image {path} is a {image.format} file by its content, not {wanted}; rename it or convert it."
                )
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(
            f"image {path} cannot be read: {error}; replace it or remove it."
        ) from error


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images and labels of a list, each image passed through a transform.

    Args:
        skip_unreadable: so many images that cannot be read are replaced by the next one of the list and
            counted; one more, or by default the first, ends the run.
    """

    def __init__(
        self,
        images: ImageList,
        transform: Callable[[Image.Image], Tensor],
        *,
        skip_unreadable: int = 0,
    ) -> None:
        self.images, self.transform, self.limit = images, transform, skip_unreadable
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
                image = read_image(self.images.paths[at])
            except DataError as error:
                self._unreadable[at] = True
                if self.skipped <= self.limit:
                    continue
                if not self.limit:
                    raise
                raise DataError(
                    f"{error} It is number {self.skipped}, --skip-unreadable allows {self.limit}."
                ) from error
            return self.transform(image), self.images.labels[at]
        raise DataError(f"none of the {len(self)} images below {self.images.root} can be read.")


def pretrain_transform(
    img_size: tuple[int, int],
    *,
    crop_scale: tuple[float, float],
    mean: Sequence[float],
    std: Sequence[float],
) -> Callable[[Image.Image], Tensor]:
    """Crop at random, flip, normalise: SimMIM's data/data_simmim.py."""
    return T.Compose(
        [
            T.RandomResizedCrop(img_size, scale=crop_scale, ratio=(3 / 4, 4 / 3)),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )


def train_transform(
    img_size: tuple[int, int], recipe: Any, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image], Tensor]:
    """Build timm's training augmentation from a fine-tuning recipe."""
    transform: Callable[[Image.Image], Tensor] = create_transform(
        (3, *img_size),
        is_training=True,
        scale=recipe.crop_scale,
        hflip=recipe.hflip,
        color_jitter=recipe.color_jitter or None,
        auto_augment=recipe.auto_augment,
        re_prob=recipe.random_erasing,
        re_mode="pixel",
        interpolation="bicubic",
        mean=tuple(mean),
        std=tuple(std),
    )
    return transform


def eval_transform(
    img_size: tuple[int, int],
    *,
    crop_ratio: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> Callable[[Image.Image], Tensor]:
    """Resize so that the crop covers `crop_ratio` of the shorter side, cut the centre, normalise."""
    cover = [round(size / crop_ratio) for size in img_size]

    def resize(image: Image.Image) -> Image.Image:
        factor = max(cover[0] / image.height, cover[1] / image.width)
        size = (
            max(cover[0], round(image.height * factor)),
            max(cover[1], round(image.width * factor)),
        )
        resized: Image.Image = T.functional.resize(image, list(size), T.InterpolationMode.BICUBIC)
        return resized

    return T.Compose([resize, T.CenterCrop(img_size), T.ToTensor(), T.Normalize(mean, std)])


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


def seed_everything(*key: int) -> None:
    """Seed torch's, numpy's and Python's global generators, which augmentations draw from, by a key."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    # torch.manual_seed keeps a stack trace a call where CUDA is not initialised: milliseconds an image.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed)
    random.seed(seed)


class Seeded(Dataset[tuple[Tensor, int, int]]):
    """Images of one epoch, each augmented by its own seed; gives (image, label, index)."""

    def __init__(self, dataset: Dataset[tuple[Tensor, int]], seed: int, epoch: int) -> None:
        self.dataset, self.key = dataset, (seed, epoch)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        seed_everything(*self.key, index)
        return *self.dataset[index], index


class EpochLoader:
    """Shuffled batches (images, labels, indices) in which all follows from seed, epoch and image.

    Neither the number of processes nor of workers changes what an image looks like, nor does a restart:
    a run that goes on in the middle of an epoch sees what it would have seen.

    Args:
        batch_size: images a step of all processes together; each takes every `team_size`-th of them.

    Raises:
        UsageError: the batch cannot be shared evenly.
    """

    def __init__(
        self,
        dataset: Dataset[tuple[Tensor, int]],
        *,
        batch_size: int,
        num_workers: int,
        seed: int,
        rank: int = 0,
        team_size: int = 1,
    ) -> None:
        self._dataset, self._num_workers, self._seed = dataset, num_workers, seed
        self._rank, self._team_size = rank, team_size
        self._images = len(dataset)  # type: ignore[arg-type]
        # A last small batch is dropped, unless it is the only one.
        self._batch_size = min(batch_size, self._images)
        if self._batch_size % team_size:
            raise UsageError(
                f"a batch of {self._batch_size} images cannot be shared by {team_size} processes; use "
                f"-o batch_size={max(1, self._batch_size // team_size) * team_size}."
            )

    def __len__(self) -> int:
        return self._images // self._batch_size

    def epoch(self, number: int, first_step: int = 0) -> DataLoader[Any]:
        """Give the batches of an epoch from a step on."""
        generator = torch.Generator()
        generator.manual_seed(
            int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        )
        order = torch.randperm(self._images, generator=generator)
        order = order[: len(self) * self._batch_size].view(-1, self._batch_size)
        share = order[first_step:, self._rank :: self._team_size]
        return DataLoader(
            Seeded(self._dataset, self._seed, number),
            batch_sampler=share.tolist(),
            num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(),
        )


def eval_loader(dataset: Dataset[Any], *, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Give every image once, in order."""
    return DataLoader(dataset, batch_size=batch_size, num_workers=num_workers)
