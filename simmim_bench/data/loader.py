"""Load batches that depend only on the seed, the epoch and the images, not on processes or workers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from simmim_bench.data.workers import WorkerLoader, end_workers
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


# Batches between two crops of one decoding, and so about the number of batches that a process keeps for later.
BATCHES_BETWEEN_CROPS = 4

# (image, seed, epoch, item of `SeededDataset`) -> a tensor of the same shape for every image, such as its mask
PerImage = Callable[[Tensor, int, int, int], Tensor]


class SeededDataset(Dataset[tuple[Any, ...]]):
    """Images of one epoch as (image, label, index), each augmented with a seed for that image and epoch.

    The item `index + copy * len(self)` is another augmentation of the image `index`.

    Args:
        per_image: computes a fourth element of every item; None for none.
    """

    def __init__(
        self,
        dataset: Dataset[tuple[Tensor, int]],
        seed: int,
        epoch: int,
        per_image: PerImage | None = None,
    ) -> None:
        self.dataset, self.key, self.per_image = dataset, (seed, epoch), per_image

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, item: int) -> tuple[Any, ...]:
        copy, index = divmod(item, len(self))
        seed_everything(*self.key, index, *([copy] if copy else []))
        image, label = self.dataset[index]
        if self.per_image is None:
            return image, label, index
        return image, label, index, self.per_image(image, *self.key, item)


class EpochsDataset(Dataset[list[tuple[Any, ...]]]):
    """Images of all epochs: the item (epoch, i, j, ...) is the list of items i, j, ... of that epoch's `SeededDataset`.

    The worker processes of an `EpochLoader` learn from the items which epoch they load.
    """

    def __init__(
        self, dataset: Dataset[tuple[Tensor, int]], seed: int, per_image: PerImage | None
    ) -> None:
        self.dataset, self.seed, self.per_image = dataset, seed, per_image

    def __getitem__(self, key: tuple[int, ...]) -> list[tuple[Any, ...]]:
        epoch, *items = key
        images = SeededDataset(self.dataset, self.seed, epoch, self.per_image)
        return [images[item] for item in items]


class EpochSampler(Sampler[list[tuple[int, ...]]]):
    """What the worker processes load in one epoch at a time, as items of `EpochsDataset`.

    Attributes:
        epoch: number of the epoch.
        loads: items of the epoch's data set, (images, crops) each; a load of several crops is as many batches.
    """

    def __init__(self) -> None:
        self.epoch, self.loads = 0, list[Tensor]()

    def __len__(self) -> int:
        return len(self.loads)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        return _with_epoch(self.epoch, self.loads)  # those of now, whatever is set later


def _with_epoch(epoch: int, loads: Sequence[Tensor]) -> Iterator[list[tuple[int, ...]]]:
    for load in loads:
        yield [(epoch, *items) for items in load.tolist()]


@dataclass(frozen=True)
class Step:
    """What a step trains on: one crop of each image of a group, whose images are decoded together.

    Attributes:
        group: number of the group in its cycle of epochs.
        crop: number of the crop of every image.
    """

    group: int
    crop: int


def steps_of_epoch(steps: int, crops_per_decode: int, number: int) -> list[Step]:
    """Order the steps of an epoch, so that the crops of a group are in different ones.

    A cycle of `crops_per_decode` epochs has a group for each step of an epoch, and a step for each crop of each group.
    An epoch has the next groups of its cycle with all their crops; a group at the border of two epochs has some in
    each. Crops of one group are `BATCHES_BETWEEN_CROPS` groups apart, or fewer in a shorter epoch.

    Args:
        steps: steps of an epoch.
        number: of the epoch in its cycle, from 0.
    """
    of_epoch = range(number * steps, (number + 1) * steps)
    found = [Step(*divmod(place, crops_per_decode)) for place in of_epoch]
    between = min(BATCHES_BETWEEN_CROPS, 1 + found[-1].group - found[0].group)
    return sorted(found, key=lambda step: (step.group + step.crop * between, step.crop))


class EpochLoader:
    """Shuffled batches (images, labels, indices) that depend only on seed, epoch and image.

    The number of processes and workers does not change the augmentation of an image. A run that resumes in
    the middle of an epoch gets the batches that it would have had without interruption. The worker processes stay
    from epoch to epoch, until `close` ends them.

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
        crops_per_decode: augmentations of an image for each time that it is decoded, in different batches. An epoch
            has as many batches as with one, and shows one image in `crops_per_decode`, each that often; as many epochs
            in succession show every image equally often. A process keeps about `BATCHES_BETWEEN_CROPS` batches for
            each further crop. `dataset` has to keep the decoded image for the next crop.
        per_image: computes a fourth element of the batches, in the worker processes; None for none.

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
        crops_per_decode: int = 1,
        per_image: PerImage | None = None,
    ) -> None:
        assert repeats == 1 or crops_per_decode == 1  # both number the copies of an image
        self.dataset, self._seed, self._repeats = dataset, seed, repeats
        self._crops = crops_per_decode
        self._rank, self._world_size = rank, world_size
        self._images = len(dataset)  # type: ignore[arg-type]
        # A last incomplete batch is dropped, unless it is the only one.
        self._batch_size = min(batch_size, self._images)
        per_process_batch(self._batch_size, world_size)
        self._sampler = EpochSampler()
        self._loader = WorkerLoader(
            EpochsDataset(dataset, seed, per_image),
            batch_sampler=self._sampler,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
        )

    def __len__(self) -> int:
        return self._images // self._batch_size

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Any]:
        """Start to load the batches of an epoch from `first_step` on; with workers, an earlier epoch ends."""
        place_in_cycle = number % self._crops
        steps = steps_of_epoch(len(self), self._crops, place_in_cycle)[first_step:]
        crops_of_group: dict[int, list[int]] = {}
        for step in steps:
            crops_of_group.setdefault(step.group, []).append(step.crop)
        groups = self._groups(number - place_in_cycle)
        self._sampler.epoch = number
        self._sampler.loads = [
            groups[group][:, None] + self._images * torch.tensor(crops)
            for group, crops in crops_of_group.items()
        ]
        return _in_order(steps, crops_of_group, iter(self._loader))

    def _groups(self, number: int) -> Tensor:
        """Return the items of this process in the groups of a cycle whose first epoch has a number."""
        generator = torch.Generator()
        generator.manual_seed(
            int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        )
        order = torch.randperm(self._images, generator=generator)
        copies = torch.arange(self._repeats) * self._images
        order = (order[:, None] + copies).flatten()  # the copies of an image follow each other
        order = order[: len(self) * self._batch_size].view(-1, self._batch_size)
        return order[:, self._rank :: self._world_size]

    def close(self) -> None:
        """End the worker processes; a later epoch starts others."""
        end_workers(self._loader)


def _in_order(
    steps: Sequence[Step], crops_of_group: Mapping[int, Sequence[int]], loaded: Iterator[list[Any]]
) -> Iterator[Any]:
    """Yield a batch for each step; keep those of other crops of the same images until their steps.

    Args:
        crops_of_group: the crops that a load of each group has, in the order of loading.
        loaded: the batches of each load.
    """
    kept: dict[Step, Any] = {}
    for step in steps:
        if step not in kept:
            of_group = crops_of_group[step.group]
            kept |= {
                Step(step.group, crop): batch
                for crop, batch in zip(of_group, next(loaded), strict=True)
            }
        yield kept.pop(step)


def batches_on_device(batches: Iterable[Any], device: torch.device) -> Iterator[list[Tensor]]:
    """Yield batches on a device; a GPU copies the next batch while it computes with this one.

    Args:
        batches: of tensors, in pinned memory for a GPU.
    """
    if device.type != "cuda":
        yield from batches
        return
    copying, ahead = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(copying):
            copied = [x.to(device, non_blocking=True) for x in batch], copying.record_event()
        if ahead is not None:
            yield _wait_for_copy(*ahead, device)
        ahead = copied
    if ahead is not None:
        yield _wait_for_copy(*ahead, device)


def _wait_for_copy(
    batch: list[Tensor], copied: torch.cuda.Event, device: torch.device
) -> list[Tensor]:
    """Make the device's current stream, not the host, wait for a copied batch."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    for tensor in batch:
        tensor.record_stream(stream)  # its memory is not reused before this stream is done with it
    return batch


def eval_loader(dataset: Dataset[Any], *, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Return a loader of every image once, in order."""
    return WorkerLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
