"""Features of a frozen backbone, computed once and kept on disk for every task that asks for them.

In: a checkpoint, images, a recipe's preprocessing. Out: the mean patch token of every image after every
block, in a file that is mapped, not read: ImageNet's under a ViT-B are 24 GB. A file belongs to one
combination of weights, images and preprocessing; its folder's name is a hash of them, and `features.json`
beside it says what they are.

Legend: N images, D channels.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simmim_bench.backbones import Backbone, load_backbone
from simmim_bench.checkpoint import Checkpoint
from simmim_bench.errors import DataError
from simmim_bench.files import read_json, sha256_json, write_json
from simmim_bench.rundir import RunDir
from simmim_bench.sources import ImageList
from simmim_bench.team import Team
from transfer.forward import forward_batches
from transfer.recipes import ProbeRecipe

LAYOUT = 1  # of the files; another layout is another file
LARGEST = float(np.finfo(np.float16).max)


class BlockFeatures:
    """Features of N images after every block, on disk as float16."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return self._array.shape[0]

    def __len__(self) -> int:
        return self._array.shape[1]

    def block(self, number: int, rows: Sequence[int] | None = None) -> Tensor:
        """Read a block's features of all images, or of some: (N, D) float32."""
        part = self._array[number] if rows is None else self._array[number, list(rows)]
        return torch.from_numpy(np.asarray(part, dtype=np.float32))


def block_features(
    checkpoint: Checkpoint,
    images: ImageList,
    recipe: ProbeRecipe,
    *,
    store: Path,
    run: RunDir,
    seed: int,
    team: Team,
) -> BlockFeatures:
    """Give the features of a list of images, from the store where they are there.

    Args:
        store: folder of all kept features; the processes of a team share it.
        seed: draws the weights that a checkpoint does not hold.

    Raises:
        DataError: the store holds other features under this name, or cannot be written.
    """
    identity = _identify(checkpoint, images, recipe, seed)
    folder = _place(store, identity)
    if team.largest(not folder.is_dir()):
        _write(folder, identity, checkpoint, images, recipe, run, seed, team)
    else:
        run.log(f"features of {len(images)} images are there: {folder}")
    return _read(folder, identity)


def are_kept(
    checkpoint: Checkpoint, images: ImageList, recipe: ProbeRecipe, *, store: Path, seed: int
) -> bool:
    """Say whether `block_features` would find them."""
    return _place(store, _identify(checkpoint, images, recipe, seed)).is_dir()


def _identify(
    checkpoint: Checkpoint, images: ImageList, recipe: ProbeRecipe, seed: int
) -> dict[str, Any]:
    """Name everything that the features follow from."""
    return {
        "layout": LAYOUT,
        "checkpoint": checkpoint.sha256,
        "seed": seed if checkpoint.is_random else None,
        "images": images.fingerprint(),
        "count": len(images),
        "img_size": list(recipe.img_size),
        "window_size": recipe.window_size,
        "test_crop_ratio": recipe.test_crop_ratio,
        "mean": list(checkpoint.mean),
        "std": list(checkpoint.std),
        "precision": recipe.precision,
    }


def _place(store: Path, identity: dict[str, Any]) -> Path:
    return store / sha256_json(identity)[:24]


def _write(
    folder: Path,
    identity: dict[str, Any],
    checkpoint: Checkpoint,
    images: ImageList,
    recipe: ProbeRecipe,
    run: RunDir,
    seed: int,
    team: Team,
) -> None:
    """Make the one pass over the images; each process writes its rows, the main one gives it its name."""
    model = load_backbone(checkpoint, recipe.img_size, window_size=recipe.window_size, seed=seed)
    run.log(str(model.load_report))
    model.to(team.device).eval()
    temporary = folder.with_name(f".{folder.name}.tmp")
    file = temporary / "features.npy"
    shape = (*_shape_of_one(model, checkpoint, recipe, team), len(images))
    try:
        if team.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            blocks, channels, count = shape
            np.lib.format.open_memmap(file, "w+", np.float16, (blocks, count, channels)).flush()
        team.wait()
        array = np.load(file, mmap_mode="r+")
        batches = forward_batches(
            model.forward_block_means,
            images,
            checkpoint=checkpoint,
            recipe=recipe,
            run=run,
            team=team,
            description="features",
        )
        for numbers, rows in batches:
            bounded = rows.clamp(-LARGEST, LARGEST).to(torch.float16)
            array[:, numbers] = bounded.transpose(0, 1).numpy()
        array.flush()
        del array
        team.wait()
        if team.is_main:
            write_json(temporary / "features.json", identity)
            temporary.rename(folder)
        team.wait()
    except OSError as error:
        raise DataError(
            f"cannot write features to {folder}: {error.strerror or error}; free some space or choose another "
            "--features."
        ) from error
    finally:
        if team.is_main:
            shutil.rmtree(temporary, ignore_errors=True)


@torch.no_grad()
def _shape_of_one(
    model: Backbone, checkpoint: Checkpoint, recipe: ProbeRecipe, team: Team
) -> tuple[int, int]:
    """Give (blocks, D) of an image's features."""
    image = torch.zeros(1, checkpoint.spec.in_chans, *recipe.img_size, device=team.device)
    _, blocks, channels = model.forward_block_means(image).shape
    return blocks, channels


def _read(folder: Path, identity: dict[str, Any]) -> BlockFeatures:
    found = read_json(folder / "features.json", "features' description")
    if found != identity:
        differing = [
            key
            for key in identity
            if not isinstance(found, dict) or found.get(key) != identity[key]
        ]
        raise DataError(
            f"the features in {folder} are not those of this checkpoint and data (another "
            f"{', '.join(differing)}); remove the folder."
        )
    try:
        array = np.load(folder / "features.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"the features in {folder} are damaged ({error}); remove it.") from error
    if array.ndim != 3 or array.shape[1] != identity["count"]:
        raise DataError(f"the features in {folder} are damaged; remove it.")
    return BlockFeatures(array)
