"""Claims about several crops of one decoding: where they are, what they are, and how often images are decoded."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.jpeg import decode_jpeg
from simmim_bench.data.listing import LeftOut
from simmim_bench.data.loader import BATCHES_BETWEEN_CROPS, EpochLoader, seed_everything
from simmim_bench.data.random_crop import RandomCropFlip, random_crop_flip

SIZE, SCALE = (16, 16), (0.3, 1.0)


@dataclass
class Photographs:
    """Generated JPEGs in memory, some of them large enough to be decoded at a half for small crops alone."""

    count: int
    reads: list[int] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    classes: Sequence[str] = ("image",)

    def __post_init__(self) -> None:
        self.labels = [0] * self.count
        generator = np.random.default_rng(0)
        self.files = []
        for number in range(self.count):
            side = 80 if number % 3 else 40
            small = generator.integers(0, 256, (5, 5, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(small).resize((side, side)).save(buffer, "JPEG")
            self.files.append(buffer.getvalue())

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> bytes:
        self.reads.append(index)
        return bytes(bytearray(self.files[index]))  # another object at every call, as from a file

    def name(self, index: int) -> str:
        return str(index)

    def subset(self, indices: Sequence[int]) -> Any:
        raise NotImplementedError

    def fingerprint(self) -> str:
        return ""


def key_of_item(image: Tensor, seed: int, epoch: int, item: int) -> Tensor:
    return torch.tensor([seed, epoch, item])


def loader_of(images: Any, crops: int = 2, **options: Any) -> EpochLoader:
    dataset = ImageDataset(
        images, RandomCropFlip(SIZE, SCALE, crops_per_decode=crops), keep_last=True
    )
    options = {"batch_size": 4, "num_workers": 0, "seed": 3, **options}
    return EpochLoader(dataset, crops_per_decode=crops, per_image=key_of_item, **options)


def assert_equal(found: list[list[Tensor]], wanted: list[list[Tensor]]) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize(("count", "crops"), [(41, 2), (36, 2), (8, 2), (5, 2), (29, 3)])
def test_epochs_in_succession_show_every_image_equally_often(count: int, crops: int) -> None:
    images = Photographs(count)
    loader = loader_of(images, crops)
    steps, orders = count // 4, []
    for cycle in range(2):
        epochs = [list(loader.epoch(cycle * crops + i)) for i in range(crops)]
        assert [len(epoch) for epoch in epochs] == [steps] * crops
        shown = [int(i) for epoch in epochs for batch in epoch for i in batch[2]]
        assert set(Counter(shown).values()) == {crops}
        assert len(set(shown)) == steps * 4  # of the rest, no batch is full
        keys = {tuple(key.tolist()) for epoch in epochs for batch in epoch for key in batch[3]}
        assert len(keys) == len(shown)  # each crop has its own random numbers
        for epoch in epochs:
            assert all(len(set(batch[2].tolist())) == 4 for batch in epoch)
        orders.append(shown)
    assert orders[0] != orders[1]  # every cycle shuffles anew


def test_an_image_is_read_and_decoded_once_for_its_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []

    def count(content: bytes, at_least: tuple[int, int]) -> Any:
        decoded.append(content)
        return decode_jpeg(content, at_least)

    monkeypatch.setattr("simmim_bench.data.random_crop.decode_jpeg", count)
    monkeypatch.setattr("simmim_bench.data.random_crop.REDUCTIONS", ())
    images = Photographs(80)
    batches = list(loader_of(images).epoch(0))
    assert len(batches) == 20
    assert len(images.reads) == len(decoded) == len(set(images.reads)) == 40
    groups = [tuple(batch[2].tolist()) for batch in batches]
    places = {group: [i for i, other in enumerate(groups) if other == group] for group in groups}
    apart = [later - earlier for earlier, later in places.values()]
    assert min(apart) >= BATCHES_BETWEEN_CROPS
    unfinished = [
        sum(earlier <= step < later for earlier, later in places.values())
        for step in range(len(batches))
    ]
    assert max(unfinished) <= BATCHES_BETWEEN_CROPS + 1


def test_every_crop_is_the_one_that_is_decoded_alone() -> None:
    images = Photographs(40)
    for pixels, _, indices, keys in loader_of(images).epoch(1):
        for image, index, key in zip(pixels, indices.tolist(), keys, strict=True):
            seed, epoch, item = key.tolist()
            copy = item // len(images)
            seed_everything(seed, epoch, index, *([copy] if copy else []))
            assert torch.equal(image, random_crop_flip(images.files[index], "", SIZE, SCALE))


def test_resumed_epochs_workers_and_processes_have_the_same_batches() -> None:
    images = Photographs(36)  # nine steps: a group at the border of two epochs
    for number in (0, 1):
        whole = list(loader_of(images).epoch(number))
        for first in range(1, len(whole)):
            assert_equal(list(loader_of(images).epoch(number, first)), whole[first:])
        parts = [list(loader_of(images, rank=r, world_size=2).epoch(number)) for r in (0, 1)]
        for batch, *split in zip(whole, *parts, strict=True):
            merged = torch.stack([part[0] for part in split], dim=1).flatten(0, 1)
            assert torch.equal(merged, batch[0])
    loader = loader_of(images, num_workers=2)
    assert_equal(list(loader.epoch(1, 3)), whole[3:])
    loader.close()
