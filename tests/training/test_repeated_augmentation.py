"""Repeated augmentation: the images of every batch are timm's, and every copy is augmented by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import Dataset

from simmim_bench.data.loader import EpochLoader


class Noise(Dataset[tuple[Tensor, int]]):
    """Images of random pixels, sampled anew at every read, as an augmentation does."""

    def __init__(self, images: int) -> None:
        self.images = images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.cat([torch.tensor([float(index)]), torch.rand(3)]), index


def loader(images: int, batch_size: int, **options: Any) -> EpochLoader:
    return EpochLoader(
        Noise(images), batch_size=batch_size, seed=5, **{"num_workers": 0, **options}
    )


def indices(batches: Any) -> list[int]:
    return [int(index) for batch in batches for index in batch[2]]


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("repeats", [1, 3])
def test_the_order_is_timms_in_every_process(processes: int, repeats: int) -> None:
    images, batch_size = 600, 256  # timm's epoch is a multiple of 256 images
    shuffled = indices(loader(images, 1).epoch(2))  # a batch of one drops no image
    for rank in range(processes):
        sampler = RepeatAugSampler(
            shuffled, num_replicas=processes, rank=rank, shuffle=False, num_repeats=repeats
        )
        theirs = [shuffled[position] for position in sampler]
        mine = loader(images, batch_size, repeats=repeats, rank=rank, world_size=processes)
        ours = indices(mine.epoch(2))
        assert len(mine) == images // batch_size == 2  # as long as without repeats
        assert ours == theirs[: len(ours)]
        assert len(ours) == len(theirs) == len(mine) * batch_size // processes


def test_the_copies_of_an_image_are_augmented_by_themselves() -> None:
    (batch,) = loader(6, 6, repeats=3).epoch(0)
    assert batch[2].tolist() == [batch[2][0]] * 3 + [batch[2][3]] * 3
    assert torch.equal(batch[0][:, 0].long(), batch[2])  # another copy of the same image
    assert len({tuple(row) for row in batch[0].tolist()}) == 6


def test_the_first_copy_is_the_one_without_repeats() -> None:
    once = {
        int(i): x
        for images, _, index in loader(6, 6).epoch(0)
        for i, x in zip(index, images, strict=True)
    }
    (batch,) = loader(6, 6, repeats=3).epoch(0)
    for row in (0, 3):
        assert torch.equal(batch[0][row], once[int(batch[2][row])])


def test_batches_do_not_depend_on_workers_processes_and_interruptions() -> None:
    whole = list(loader(600, 64, repeats=3).epoch(1))
    for batch, same in zip(whole, loader(600, 64, repeats=3, num_workers=2).epoch(1), strict=True):
        assert torch.equal(batch[0], same[0])
    resumed = list(loader(600, 64, repeats=3).epoch(1, first_step=4))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[4:], resumed, strict=True))
    parts = [loader(600, 64, repeats=3, rank=r, world_size=2).epoch(1) for r in (0, 1)]
    for batch, *halves in zip(whole, *parts, strict=True):
        assert torch.equal(torch.stack([half[0] for half in halves], 1).flatten(0, 1), batch[0])
