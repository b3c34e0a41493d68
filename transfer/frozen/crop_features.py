"""Features of random crops, one crop of every image after another, in main memory where they fit.

A protocol that takes a new random crop each epoch never needs the features of an epoch again. One pass of the
backbone serves all feature sets and all classifiers of an epoch, and nothing is written: each process keeps the
features of its own feature sets. Only where these do not fit in memory are they stored on disk, and removed after
their last epoch.

Legend: N images, D channels.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.sources import ImageSource
from simmim_bench.distributed import DistContext
from simmim_bench.training.memory import GIB, available_memory
from transfer.frozen.feature_store import FeatureStore, StoredFeatures
from transfer.frozen.features import FeatureSet, RandomCrop, block_width
from transfer.frozen.recipes import LinearRecipe

USABLE = 0.5  # ours: of the free memory; loader workers and the page cache need the rest
CPU = torch.device("cpu")


def crops_forwarded(recipe: LinearRecipe) -> int:
    """Return the number of passes of the backbone over a random crop of every training image."""
    return min(recipe.crops, recipe.epochs)


def crops_kept(recipe: LinearRecipe) -> int:
    """Return the number of crops of every image whose features are needed at a time."""
    return recipe.crops if recipe.crops < recipe.epochs else min(recipe.crops, 1)


def memory_needed(feature_sets: Sequence[FeatureSet], checkpoint: Checkpoint, images: int) -> int:
    """Return the bytes of the float16 features of one crop of every image, of some feature sets."""
    blocks, poolings = _planes(feature_sets, checkpoint)
    return 2 * len(blocks) * len(poolings) * images * checkpoint.spec.probed_width


def needed_on_machine(machines: Sequence[str], rank: int, needed: Sequence[int]) -> int:
    """Return the bytes that the processes of one machine, which share its memory, need together.

    Args:
        machines: the name of every process's machine, in order of rank.
        rank: a process of the machine.
        needed: bytes of every process.
    """
    return sum(n for name, n in zip(machines, needed, strict=True) if name == machines[rank])


def fit_in_memory(needed: int) -> bool:
    """Return whether the memory that is free now holds some features."""
    available = available_memory(CPU)
    return available is not None and needed <= USABLE * available


class CropFeatures:
    """Features of random crops of a list of images, epoch by epoch.

    Args:
        store: computes the features, and stores those that do not fit in memory.
        images: the images; crops are seeded by an image's index among them.
        by_process: the feature sets that each process reads, in order of rank.
    """

    def __init__(
        self,
        store: FeatureStore,
        images: ImageSource,
        recipe: LinearRecipe,
        by_process: Sequence[Sequence[FeatureSet]],
    ) -> None:
        self._store, self._images, self._recipe = store, images, recipe
        self._own = by_process[store.dist.rank]
        self._kept: dict[int, StoredFeatures] = {}
        machines = store.dist.gather_everywhere(socket.gethostname())
        needed = needed_on_machine(
            machines,
            store.dist.rank,
            [
                crops_kept(recipe) * memory_needed(sets, store.checkpoint, len(images))
                for sets in by_process
            ],
        )
        self._in_memory = not store.dist.all_max(not fit_in_memory(needed))
        decoded = crops_forwarded(recipe) * len(images)
        where = "memory" if self._in_memory else f"disk directory={store.folder}"
        store.run.log(
            f"linear: random crops={crops_forwarded(recipe)} images to decode={decoded:,} "
            f"features of crops={crops_kept(recipe)} at a time size={needed / GIB:.2f} GiB per machine "
            f"kept in {where}"
        )

    def of_epoch(self, epoch: int) -> StoredFeatures:
        """Return the features of an epoch's crops; every process must call."""
        crop = self._crop(epoch)
        if not self._in_memory:
            return self._store.load_or_compute(self._images, crop)
        if crop.number not in self._kept:
            if len(self._kept) == crops_kept(self._recipe):
                self._kept.clear()
            self._kept[crop.number] = self._hold(crop)
        return self._kept[crop.number]

    def release(self, epoch: int) -> None:
        """Remove the stored features of an epoch's crops if no later epoch uses them; every process must call."""
        if not self._in_memory and epoch + self._recipe.crops >= self._recipe.epochs:
            self._store.discard(self._images, self._crop(epoch))

    def _crop(self, epoch: int) -> RandomCrop:
        recipe = self._recipe
        return RandomCrop(epoch % recipe.crops, recipe.crop_scale, recipe.hflip, recipe.crop_rule)

    def _hold(self, crop: RandomCrop) -> StoredFeatures:
        """Forward a crop of every image by all processes; keep what this process reads."""
        store, spec = self._store, self._store.checkpoint.spec
        every = store.identify(self._images, crop)
        blocks, poolings = _planes(self._own, store.checkpoint)
        rows = torch.tensor([every["blocks"].index(block) for block in blocks])
        columns = torch.tensor([every["poolings"].index(name) for name in poolings])
        shape = (len(blocks), len(poolings), len(self._images), spec.probed_width)
        array = np.empty(shape, np.float16)
        into = torch.from_numpy(array)
        for numbers, features in exchange(store.forward(self._images, crop), store.dist):
            if blocks:
                own = features[:, rows][:, :, columns]
                into[:, :, numbers.start : numbers.stop] = own.permute(1, 2, 0, 3)
        store.images_forwarded += len(self._images)
        identity = {**every, "blocks": blocks, "poolings": poolings}
        return StoredFeatures(array, identity, partial(block_width, spec))


def exchange(
    batches: Iterator[tuple[range, Tensor]], dist: DistContext
) -> Iterator[tuple[range, Tensor]]:
    """Yield the batches of every process on every process; see `forward_batches`."""
    if dist.size == 1:
        yield from batches
        return
    ended = False
    while not ended:
        batch = next(batches, None)
        gathered = dist.gather_everywhere(batch)
        yield from (found for found in gathered if found is not None)
        ended = all(found is None for found in gathered)


def _planes(
    feature_sets: Sequence[FeatureSet], checkpoint: Checkpoint
) -> tuple[list[int], list[str]]:
    """Return the blocks and the single poolings that some feature sets are made of, in order."""
    blocks = set().union(*(feature_set.blocks for feature_set in feature_sets))
    names = {name for feature_set in feature_sets for name in feature_set.poolings}
    return sorted(blocks), [name for name in checkpoint.spec.poolings if name in names]
