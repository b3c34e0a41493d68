"""What `data_loading.py` and `loader_workers.py` load: the official chains, and images that were made smaller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.loader import EpochLoader
from simmim_bench.data.packed import Packing
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.random_crop import RandomCropFlip
from simmim_bench.data.reencode import reencode
from simmim_bench.data.sources import ImageSource

CROP_SCALE = (0.67, 1.0)
PACKING = Packing(short_side=320, quality=90)  # the defaults of `simmim-bench pack`


def official_loader(data: Path, size: tuple[int, int], batch_size: int) -> DataLoader[Any]:
    """Return a loader with the transforms of SimMIM's data/data_simmim.py."""
    transforms = [
        T.RandomResizedCrop(size, scale=CROP_SCALE, ratio=(3 / 4, 4 / 3)),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    return DataLoader(
        ImageFolder(str(data / "train"), T.Compose(transforms)),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
    )


def official_evaluation(data: Path, size: tuple[int, int], batch_size: int) -> DataLoader[Any]:
    """Return a loader with the evaluation of SimMIM's data/data_finetune.py, lines 97 to 114."""
    transforms = [
        T.Resize(int(256 / 224 * size[0]), interpolation=T.InterpolationMode.BICUBIC),
        T.CenterCrop(size),
        T.ToTensor(),
        T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    images = ImageFolder(str(data / "train"), T.Compose(transforms))
    return DataLoader(images, batch_size=batch_size)


def our_loader(
    images: ImageSource, size: tuple[int, int], batch_size: int, crops: int = 1, workers: int = 0
) -> EpochLoader:
    """Return the loader of a pretraining run, without its masks.

    Args:
        crops: of one decoding.
    """
    load = RandomCropFlip(size, CROP_SCALE, crops_per_decode=crops)
    return EpochLoader(
        ImageDataset(images, load, keep_last=crops > 1),
        batch_size=batch_size,
        num_workers=workers,
        seed=0,
        crops_per_decode=crops,
    )


@contextmanager
def packed_images(images: ImageSource, packed: Path | None) -> Iterator[ImageSource]:
    """Open images that `simmim-bench pack` has written, or write its images to a temporary folder.

    Args:
        packed: the folder that `pack` has written; None to write one.
    """
    if packed is not None:
        yield any_images(packed)
        return
    with TemporaryDirectory() as folder:
        for index in range(len(images)):
            stored = reencode(images.read(index), images.name(index), PACKING)
            Path(folder, f"{index:06d}{stored.suffix}").write_bytes(stored.content)
        yield any_images(Path(folder))
