"""Loaders whose batches follow from a seed, an epoch and the images."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simmim_bench.distributed import per_process_batch


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

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        seed_everything(*self.key, index)
        return *self.dataset[index], index


class EpochLoader:
    """Shuffled batches (images, labels, indices) in which all follows from seed, epoch and image.

    Neither the number of processes nor of workers changes what an image looks like, nor does a restart:
    a run that goes on in the middle of an epoch sees what it would have seen.

    Args:
        batch_size: images a step of all processes together; each takes every `world_size`-th of them.

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
        world_size: int = 1,
    ) -> None:
        self._dataset, self._num_workers, self._seed = dataset, num_workers, seed
        self._rank, self._team_size = rank, world_size
        self._images = len(dataset)  # type: ignore[arg-type]
        # A last small batch is dropped, unless it is the only one.
        self._batch_size = min(batch_size, self._images)
        per_process_batch(self._batch_size, world_size)

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
