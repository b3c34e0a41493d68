"""Features of a frozen backbone, computed once and kept on disk, memory-mapped."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.datasets import ImageDataset, eval_transform, train_transform
from simmim_bench.data.loader import Seeded
from simmim_bench.data.sources import ImageList
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DataError
from simmim_bench.files import read_json, sha256_json, write_json
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.precision import default_precision
from transfer.frozen.features import Crop, FeatureSet, block_width
from transfer.frozen.recipes import FrozenRecipe
from transfer.inference import forward_batches

LAYOUT = 2  # of the files; another layout is another file


LARGEST = float(np.finfo(np.float16).max)


class Features:
    """Pooled tokens of N images after some blocks, on disk as float16: (blocks, poolings, N, D).

    Args:
        identity: what they follow from; see `FeatureStore`.
        widths: channels after each block; the file has zeros in the others.
    """

    def __init__(self, array: np.ndarray, identity: dict[str, Any], widths: Sequence[int]) -> None:
        self._array, self._widths = array, list(widths)
        self._blocks, self._poolings = identity["blocks"], identity["poolings"]
        self.sha256 = sha256_json(identity)

    def __len__(self) -> int:
        return self._array.shape[2]

    def read(self, wanted: FeatureSet, rows: Sequence[int] | None = None) -> Tensor:
        """Read a set's features of all images, or of some: (N, D), or (N, 2 D) of two tokens; float16."""
        number = self._blocks.index(wanted.block)
        block = self._array[number, ..., : self._widths[number]]
        parts = [block[self._poolings.index(part)] for part in wanted.parts]
        return torch.from_numpy(
            np.concatenate([p if rows is None else p[list(rows)] for p in parts], axis=1)
        )


@dataclass
class FeatureStore:
    """A folder of kept features, and what is needed to add to it.

    Attributes:
        folder: the processes of a team share it.
        seed: draws the weights that a checkpoint does not hold, and random crops.
        passed: images that have gone through the backbone for it; those that were kept have not.
    """

    folder: Path
    checkpoint: Checkpoint
    recipe: FrozenRecipe
    sets: tuple[FeatureSet, ...]
    seed: int
    run: RunDir
    dist: DistContext
    passed: int = 0

    def has(self, images: ImageList) -> bool:
        """Say whether `of` would find the features of the centre crops."""
        return _is_whole(self._place(self._identify(images, None)))

    def of(self, images: ImageList, crop: Crop | None = None) -> Features:
        """Give the features of a list of images, computed where they are not there.

        Args:
            crop: of random crops; None for the centre crop.

        Raises:
            DataError: the store holds other features under this name, or cannot be written.
        """
        identity = self._identify(images, crop)
        place = self._place(identity)
        if self.dist.all_max(not _is_whole(place)):
            self._write(place, identity, images, crop)
            self.passed += len(images)
        else:
            self.run.log(f"features of {len(images)} images are there: {place}")
        spec = self.checkpoint.spec
        widths = [block_width(spec, block) for block in identity["blocks"]]
        return Features(_read(place, identity), identity, widths)

    def drop(self, images: ImageList, crop: Crop) -> None:
        """Remove the features of random crops that nobody will ask for again."""
        self.dist.barrier()
        if self.dist.is_main:
            _remove(self._place(self._identify(images, crop)))

    def _identify(self, images: ImageList, crop: Crop | None) -> dict[str, Any]:
        """Name everything that the features follow from."""
        recipe, parts = self.recipe, {part for one in self.sets for part in one.parts}
        how: dict[str, Any] = {"test_crop_ratio": recipe.test_crop_ratio}
        if crop is not None:
            how = {"number": crop.number, "scale": list(crop.scale), "hflip": crop.hflip}
            how["seed"] = self.seed
        return {
            "layout": LAYOUT,
            "checkpoint": self.checkpoint.sha256,
            "seed": self.seed if self.checkpoint.is_random else None,
            "images": images.fingerprint(),
            "count": len(images),
            "img_size": list(recipe.img_size),
            "window_size": recipe.window_size,
            "crop": how,
            "mean": list(self.checkpoint.mean),
            "std": list(self.checkpoint.std),
            "precision": default_precision(recipe.precision, self.dist.device),
            "blocks": sorted({one.block for one in self.sets}),
            "poolings": [p for p in self.checkpoint.spec.poolings if p in parts],
        }

    def _place(self, identity: dict[str, Any]) -> Path:
        return self.folder / sha256_json(identity)[:24]

    def _dataset(self, images: ImageList, crop: Crop | None) -> Dataset[Any]:
        recipe, checkpoint = self.recipe, self.checkpoint
        if crop is None:
            centre = eval_transform(
                recipe.img_size,
                crop_ratio=recipe.test_crop_ratio,
                mean=checkpoint.mean,
                std=checkpoint.std,
            )
            return ImageDataset(images, centre)
        drawn = train_transform(
            recipe.img_size,
            mean=checkpoint.mean,
            std=checkpoint.std,
            crop_scale=crop.scale,
            hflip=crop.hflip,
        )
        return Seeded(ImageDataset(images, drawn), self.seed, crop.number)

    def _write(
        self, place: Path, identity: dict[str, Any], images: ImageList, crop: Crop | None
    ) -> None:
        """Make one pass over the images; each process writes its rows, the main one gives it its name."""
        recipe, dist, spec = self.recipe, self.dist, self.checkpoint.spec
        blocks = [number - 1 for number in identity["blocks"]]
        poolings = [spec.poolings.index(name) for name in identity["poolings"]]
        shape = (len(blocks), len(poolings), len(images), spec.num_features)
        # Its own, for another run may be writing the same features: the main process draws, all hear it.
        drawn = dist.all_max(secrets.randbits(62) if dist.is_main else 0)
        temporary = place.with_name(f".{place.name}.{drawn:x}.tmp")
        file = temporary / "features.npy"
        try:
            if dist.is_main:
                for other in place.parent.glob(f".{place.name}.*.tmp"):
                    self.run.log(
                        f"{other} is being written by another run, or was left by a killed one; then remove it"
                    )
                temporary.mkdir(parents=True)
            dist.barrier()
            _check_space(temporary, shape)
            model = load_backbone(
                self.checkpoint, recipe.img_size, window_size=recipe.window_size, seed=self.seed
            )
            if crop is None:
                self.run.log(str(model.load_report))
            model.to(dist.device).eval()
            dist.barrier()  # all have looked at the free space before it is taken
            if dist.is_main:
                _reserve(file, shape)
            dist.barrier()
            batches = forward_batches(
                lambda pixels: model.forward_pooled(pixels)[:, blocks][:, :, poolings],
                self._dataset(images, crop),
                batch_size=recipe.forward_batch_size,
                num_workers=recipe.num_workers,
                precision=recipe.precision,
                run=self.run,
                dist=dist,
                description="features" if crop is None else f"features of crop {crop.number + 1}",
            )
            _write_rows(file, batches)
            dist.barrier()
            if dist.is_main:
                write_json(temporary / "features.json", identity)
                _settle(temporary, place)
            dist.barrier()
        except OSError as error:
            raise DataError(
                f"cannot write features to {place}: {error.strerror or error}; free some space or choose "
                "another --features."
            ) from error
        finally:
            if dist.is_main:
                shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(place: Path) -> bool:
    """Say whether features are there; their description is written last."""
    return (place / "features.json").is_file()


def _settle(temporary: Path, place: Path) -> None:
    """Give finished features their name, unless those of another run have it by now."""
    if not _is_whole(place):
        _remove(place)
    try:
        temporary.rename(place)
    except OSError:
        if not _is_whole(place):
            raise


def _remove(place: Path) -> None:
    """Remove features at once for all who look for them: by another name they are nobody's."""
    with suppress(FileNotFoundError):
        nobodys = place.with_name(f".{place.name}.{secrets.randbits(62):x}.old")
        place.rename(nobodys)
        shutil.rmtree(nobodys, ignore_errors=True)


def _reserve(file: Path, shape: tuple[int, ...]) -> None:
    """Make an array's file with all of its space, so that a full disk is found before the pass."""
    np.lib.format.open_memmap(file, "w+", np.float16, shape).flush()
    if not hasattr(os, "posix_fallocate"):
        return
    with open(file, "r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that cannot
                raise


def _write_rows(file: Path, batches: Iterator[tuple[range, Tensor]]) -> None:
    """Write features (B, blocks, poolings, D) of neighbouring images into their rows of an array's file.

    They are not written through a mapping: of that a network's disk gets whole pages, with what this
    process knows of its neighbours' rows.
    """
    array: np.memmap[Any, Any] = np.load(file, mmap_mode="r")
    offset, (_, _, images, channels) = array.offset, array.shape
    with open(file, "r+b") as opened:
        for numbers, rows in batches:
            bounded = rows.clamp(-LARGEST, LARGEST).to(torch.float16)
            parts = bounded.permute(1, 2, 0, 3).flatten(0, 1).numpy()
            for number, part in enumerate(parts):
                row = number * images + numbers.start
                opened.seek(offset + row * channels * array.itemsize)
                opened.write(part.tobytes())
        opened.flush()
        os.fsync(opened.fileno())


def _check_space(folder: Path, shape: tuple[int, ...]) -> None:
    """Refuse what will not fit before hours are spent on it."""
    needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"features of {shape[2]} images need {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free below "
            f"{folder.parent}; choose another --features, or fewer by -o blocks=... -o pooling=..."
        )


def _read(place: Path, identity: dict[str, Any]) -> np.ndarray:
    found = read_json(place / "features.json", "features' description")
    if found != identity:
        differing = [
            key
            for key in identity
            if not isinstance(found, dict) or found.get(key) != identity[key]
        ]
        raise DataError(
            f"the features in {place} are not those of this checkpoint and data (another "
            f"{', '.join(differing)}); remove the folder."
        )
    try:
        array: np.ndarray = np.load(place / "features.npy", mmap_mode="r")
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"the features in {place} are damaged ({error}); remove it.") from error
    wanted = (len(identity["blocks"]), len(identity["poolings"]), identity["count"])
    if array.shape[:3] != wanted:
        raise DataError(f"the features in {place} are damaged; remove it.")
    return array
