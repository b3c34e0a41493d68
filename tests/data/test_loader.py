"""Test that worker processes stay from epoch to epoch and load what fresh ones would."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from simmim_bench.data.loader import EpochLoader


class Noisy(Dataset[tuple[Tensor, int]]):
    """Ten numbers, each with random noise, as augmentations sample it."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return index + torch.rand(3), index


def process_id(image: Tensor, seed: int, epoch: int, index: int) -> Tensor:
    return torch.tensor(os.getpid())


def loader_of(workers: int, **options: Any) -> EpochLoader:
    return EpochLoader(
        Noisy(), batch_size=2, num_workers=workers, seed=1, per_image=process_id, **options
    )


def assert_equal(found: list[list[Tensor]], wanted: list[list[Tensor]]) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(map(torch.equal, ours[:3], theirs[:3]))


def test_workers_stay_over_epochs_and_load_what_fresh_ones_load() -> None:
    loader = loader_of(2, repeats=2)
    workers = set()
    # An epoch is abandoned after a batch, as by the trial of what fits in memory, and one is resumed in its middle.
    for epoch, first, taken in ((0, 0, 1), (0, 0, 5), (1, 0, 5), (3, 2, 3)):
        batches = loader.epoch(epoch, first)
        found = [next(batches) for _ in range(taken)]
        wanted = list(loader_of(0, repeats=2).epoch(epoch, first))
        assert_equal(found, wanted[:taken])
        workers |= {int(number) for batch in found for number in batch[3]}
    assert len(workers) == 2
    assert os.getpid() not in workers
    loader.close()
    waited = time.monotonic()
    while any(os.path.exists(f"/proc/{number}") for number in workers):
        assert time.monotonic() - waited < 5
        time.sleep(0.01)
    again = list(loader.epoch(1))
    assert_equal(again, list(loader_of(0, repeats=2).epoch(1)))
    assert not workers & {int(number) for batch in again for number in batch[3]}
    loader.close()


def test_epochs_of_one_process_can_be_read_in_turns() -> None:
    loader = loader_of(0)
    first, second = loader.epoch(0), loader.epoch(1)
    pairs = list(zip(first, second, strict=True))
    assert_equal([pair[0] for pair in pairs], list(loader_of(0).epoch(0)))
    assert_equal([pair[1] for pair in pairs], list(loader_of(0).epoch(1)))
