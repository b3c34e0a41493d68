"""Load batches that depend only on the seed, the epoch and the images, not on processes or workers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simmim_bench.distributed import per_process_batch


def seed_everything(*key: int) -> None:
    """Seed the global generators of torch, numpy and Python, which augmentations use, from a key."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    # Without initialised CUDA, torch.manual_seed stores a stack trace per call: milliseconds per image.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed)
    random.seed(seed)


class SeededDataset(Dataset[tuple[Tensor, int, int]]):
    """Images of one epoch as (image, label, index), each augmented with a seed for that image and epoch.

    The item `index + copy * len(self)` is another augmentation of the image `index`.
    """

    def __init__(self, dataset: Dataset[tuple[Tensor, int]], seed: int, epoch: int) -> None:
        self.dataset, self.key = dataset, (seed, epoch)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, item: int) -> tuple[Tensor, int, int]:
        copy, index = divmod(item, len(self))
        seed_everything(*self.key, index, *([copy] if copy else []))
        return *self.dataset[index], index


class EpochLoader:
    """Shuffled batches (images, labels, indices) that depend only on seed, epoch and image.

    The number of processes and workers does not change the augmentation of an image. A run that resumes in
    the middle of an epoch gets the batches that it would have had without interruption.

    Args:
        dataset: images and labels.
        batch_size: total batch of all processes; each process loads every `world_size`-th image.
        num_workers: worker processes per training process.
        seed: of order and augmentation.
        rank: of this process.
        world_size: number of processes.
        repeats: augmentations of an image in an epoch, which follow each other in its order. An epoch has as
            many batches as without repeats, so that it shows one image in `repeats` (arXiv 1902.05509; the order is
            that of timm's RepeatAugSampler, whose epoch is a multiple of 256 images).

    Raises:
        UsageError: The number of processes does not divide the batch.
    """

    def __init__(
        self,
        dataset: Dataset[tuple[Tensor, int]],
        *,
        batch_size: int,
        num_workers: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
    ) -> None:
        self._dataset, self._num_workers, self._seed = dataset, num_workers, seed
        self._repeats = repeats
        self._rank, self._world_size = rank, world_size
        self._images = len(dataset)  # type: ignore[arg-type]
        # A last incomplete batch is dropped, unless it is the only one.
        self._batch_size = min(batch_size, self._images)
        per_process_batch(self._batch_size, world_size)

    def __len__(self) -> int:
        return self._images // self._batch_size

    def epoch(self, number: int, first_step: int = 0) -> DataLoader[Any]:
        """Return the batches of an epoch, starting at `first_step`."""
        generator = torch.Generator()
        generator.manual_seed(
            int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        )
        order = torch.randperm(self._images, generator=generator)
        copies = torch.arange(self._repeats) * self._images
        order = (order[:, None] + copies).flatten()  # the copies of an image follow each other
        order = order[: len(self) * self._batch_size].view(-1, self._batch_size)
        batches = order[first_step:, self._rank :: self._world_size]
        return DataLoader(
            SeededDataset(self._dataset, self._seed, number),
            batch_sampler=batches.tolist(),
            num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(),
        )


def eval_loader(dataset: Dataset[Any], *, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Return a loader of every image once, in order."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
