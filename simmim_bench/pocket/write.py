"""Write a synthetic data set in the three layouts that the tasks read: ImageNet's, COCO's and ADE20K's.

All images are rendered from the scenes of `simmim_bench.pocket.scenes`:

    imagenet/{train,val}/CLASS/CLASS_00001.JPEG
    coco/{train2017,val2017}/000000000001.jpg, coco/annotations/instances_{train,val}2017.json
    ade20k/{images,annotations}/{training,validation}/ADE_{train,val}_00000001.{jpg,png}
    ade20k/classes.txt      line i names label i; label 0 is clutter, without a class, and is ignored
    pocket.json             the seed, sizes, counts and classes

An image depends only on the seed, its split and its number. So equal seeds produce equal bytes (with equal versions
of numpy and Pillow), and a larger count does not change the earlier images.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import write_json, write_text
from simmim_bench.pocket.annotations import COCO_CATEGORY_IDS, ade20k_labels, coco_annotations
from simmim_bench.pocket.classes import STUFF_CLASSES, THING_CLASSES
from simmim_bench.pocket.render import render
from simmim_bench.pocket.scenes import Scene, object_scene, open_scene
from simmim_bench.processors import usable_cores
from simmim_bench.signals import SIGNALS, blocked_signals, end_with_parent

_Annotations = list[dict[str, Any]]
_Map = Callable[..., Iterator[_Annotations]]

VERSION = 1
"""Version of the images; increases whenever the same seed renders other images."""

MIN_SIDE = 32
"""Minimum image side in pixels; below it, an object's pattern is finer than a pixel."""

IN_PROCESSES = 1000
"""Number of images from which on several processes render them; their start takes longer than fewer images."""

CHUNK = 100
"""Number of images that a process takes at a time."""

OWNED = ("ade20k", "coco", "imagenet", "pocket.json")
"""Content of a synthetic data set; a directory with other content is never written to."""


@dataclass(frozen=True, kw_only=True)
class PocketCounts:
    """Number of images of every split; in ImageNet's layout, the classes have equal numbers.

    A split's position in this order is part of the seed of its images.
    """

    imagenet_train: int = 4000
    imagenet_val: int = 500
    coco_train: int = 300
    coco_val: int = 100
    ade20k_train: int = 300
    ade20k_val: int = 100


def write_pocket(
    out: Path,
    *,
    seed: int = 0,
    img_size: tuple[int, int] = (64, 64),
    counts: PocketCounts = PocketCounts(),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Write the synthetic data set in all three layouts; `out` changes only after everything is written.

    Args:
        out: directory of the data set; absent, empty, or with `overwrite` an earlier synthetic data set.
        seed: 0 or more.
        img_size: (H, W) in pixels, both at least 32.
        counts: number of images of every split.
        overwrite: replace an earlier synthetic data set in `out`.
        progress: called after every image with the number of written images and their total.

    Returns:
        The number of images of every split.

    Raises:
        UsageError: A value is out of range, or `out` holds other files.
        DataError: `out` cannot be written.
    """
    _check_values(seed, img_size, counts)
    out = Path(out).resolve()
    _check_target(out, overwrite)
    # Inside of `out` if it exists: it may be a mount point, which cannot be renamed.
    unfinished = (out if out.exists() else out.parent) / f".{out.name}.partial-{os.getpid()}"
    try:
        unfinished.mkdir(parents=True)
        try:
            total = sum(asdict(counts).values())
            for done, _ in enumerate(_write_all(unfinished, seed, img_size, counts), start=1):
                if progress is not None:
                    progress(done, total)
            _move_into_place(unfinished, out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot write synthetic images to {out}: {error}; "
            "choose a writable directory on a disk with free space."
        ) from error
    return asdict(counts)


def _check_values(seed: int, img_size: tuple[int, int], counts: PocketCounts) -> None:
    """Raise `UsageError` if a value is out of range."""
    height, width = img_size
    if min(height, width) < MIN_SIDE:
        raise UsageError(
            f"img_size {height}x{width} is below {MIN_SIDE}x{MIN_SIDE} pixels, "
            "too small to show an object's pattern; use 64x64 or more."
        )
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; use 0 or more.")
    for split, count in asdict(counts).items():
        least = len(THING_CLASSES) if split.startswith("imagenet") else 1
        if count < least:
            raise UsageError(f"{split} {count} is below {least}; use {least} images or more.")


def _check_target(out: Path, overwrite: bool) -> None:
    """Raise an error if `out` holds files, unless they are only a synthetic data set and may be replaced."""
    try:
        names = set(os.listdir(out))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"cannot use {out} as a directory: {error}; choose another.") from error
    if names and not overwrite:
        raise UsageError(f"{out} is not empty; pass --overwrite or choose another directory.")
    # Without pocket.json, `imagenet` or `coco` may be the real data set.
    foreign = sorted(names if "pocket.json" not in names else names.difference(OWNED))
    if foreign:
        raise UsageError(
            f"{out} holds '{foreign[0]}', which pocket did not write, and was not changed; "
            "choose another directory."
        )


def _move_into_place(unfinished: Path, out: Path) -> None:
    """Move the finished data set to `out`; `pocket.json` is last, so that it marks a complete data set."""
    if not out.exists():
        unfinished.rename(out)
        return
    old = unfinished / "old"
    old.mkdir()
    for name in reversed(OWNED):
        if (out / name).exists():
            (out / name).rename(old / name)
    for name in OWNED:
        (unfinished / name).rename(out / name)


def _write_all(
    root: Path, seed: int, img_size: tuple[int, int], counts: PocketCounts
) -> Iterator[None]:
    """Write all splits to `root`, then their description; yield after every image."""
    numbers = [
        (name, split_id, index)
        for split_id, (name, count) in enumerate(asdict(counts).items())
        for index in range(count)
    ]
    found: dict[str, list[_Annotations]] = {name: [] for name in asdict(counts)}
    with _map_function(len(numbers)) as map_function:
        written = map_function(partial(_write_one, root, seed, img_size), numbers)
        for (name, _, _), annotations in zip(numbers, written, strict=True):
            found[name].append(annotations)
            yield
    for split in ("train", "val"):
        _write_instances(root / "coco" / "annotations", split, img_size, found[f"coco_{split}"])
    names = "".join(f"{name}\n" for name in (*STUFF_CLASSES, *THING_CLASSES))
    write_text(root / "ade20k" / "classes.txt", names)
    about = {
        "generator": "simmim-bench pocket",
        "version": VERSION,
        "seed": seed,
        "img_size": list(img_size),
        "counts": asdict(counts),
        "thing_classes": THING_CLASSES,
        "stuff_classes": STUFF_CLASSES,
    }
    write_json(root / "pocket.json", about)


@contextmanager
def _map_function(images: int) -> Iterator[_Map]:
    """Yield a `map` that calls its function in one process per usable core, or in this one for few images.

    Raises:
        DataError: a process has ended.
    """
    processes = min(math.floor(usable_cores()), math.ceil(images / CHUNK))
    if processes <= 1 or images < IN_PROCESSES:
        yield map
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _start_process) as pool:

        def map_function(*arguments: Any) -> Iterator[_Annotations]:
            # New processes inherit the mask, so that no signal interrupts their imports.
            with blocked_signals():
                return pool.map(*arguments, chunksize=CHUNK)

        try:
            yield map_function
        except BrokenProcessPool as error:
            raise DataError(
                "a process that renders images has ended, as one does that is out of memory; free some memory, and run "
                "the same command again."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    """Ignore Ctrl-C, which a terminal sends to every process: the parent ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    Thread(target=end_with_parent, daemon=True).start()


def _write_one(
    root: Path, seed: int, img_size: tuple[int, int], number: tuple[str, int, int]
) -> _Annotations:
    """Write an image and its label map, if it has one; return its COCO annotations, without ids.

    Args:
        number: the split's name, its position in `PocketCounts`, and the image's index, from 0.
    """
    name, split_id, index = number
    rng = np.random.default_rng(np.random.SeedSequence([seed, split_id, index]))
    layout, split = name.split("_")
    return _WRITERS[layout](root / layout, split, rng, index, img_size)


def _write_imagenet(
    root: Path, split: str, rng: np.random.Generator, index: int, img_size: tuple[int, int]
) -> _Annotations:
    """Write an image in ImageNet's layout, whose classes take turns."""
    number, label = divmod(index, len(THING_CLASSES))
    kind = THING_CLASSES[label]
    image = render(object_scene(rng, kind, _extent(img_size)), img_size).image
    _write_image(root / split / kind / f"{kind}_{number + 1:05d}.JPEG", image)
    return []


def _write_coco(
    root: Path, split: str, rng: np.random.Generator, index: int, img_size: tuple[int, int]
) -> _Annotations:
    """Write an image in COCO's layout and return its annotations."""
    scene = _sample_open_scene(rng, index + 1, img_size)
    rendering = render(scene, img_size)
    _write_image(root / f"{split}2017" / _coco_name(index), rendering.image)
    return list(coco_annotations(scene, rendering))


def _write_ade20k(
    root: Path, split: str, rng: np.random.Generator, index: int, img_size: tuple[int, int]
) -> _Annotations:
    """Write an image and its label map in ADE20K's layout."""
    folder = {"train": "training", "val": "validation"}[split]
    scene = _sample_open_scene(rng, index + 1, img_size)
    rendering = render(scene, img_size)
    name = f"ADE_{split}_{index + 1:08d}"
    _write_image(root / "images" / folder / f"{name}.jpg", rendering.image)
    labels = ade20k_labels(scene, rendering)
    _write_image(root / "annotations" / folder / f"{name}.png", labels)
    return []


_WRITERS = {"imagenet": _write_imagenet, "coco": _write_coco, "ade20k": _write_ade20k}


def _coco_name(index: int) -> str:
    return f"{index + 1:012d}.jpg"


def _write_instances(
    folder: Path, split: str, img_size: tuple[int, int], found: list[_Annotations]
) -> None:
    """Write the annotations of a split, of one image after the other, in COCO's layout."""
    height, width = img_size
    numbered = [(i, one) for i, of_image in enumerate(found, start=1) for one in of_image]
    instances = {
        "info": {"description": "simmim-bench pocket", "version": str(VERSION)},
        "licenses": [{"id": 1, "name": "MIT", "url": "https://opensource.org/license/mit"}],
        "images": [
            {
                "id": index + 1,
                "file_name": _coco_name(index),
                "height": height,
                "width": width,
                "license": 1,
            }
            for index in range(len(found))
        ],
        "annotations": [
            {"id": number, "image_id": image_id, **annotation}
            for number, (image_id, annotation) in enumerate(numbered, start=1)
        ],
        "categories": [
            {"id": category_id, "name": name, "supercategory": "thing"}
            for category_id, name in zip(COCO_CATEGORY_IDS, THING_CLASSES, strict=True)
        ],
    }
    write_json(folder / f"instances_{split}2017.json", instances)


def _sample_open_scene(rng: np.random.Generator, number: int, img_size: tuple[int, int]) -> Scene:
    """Sample the scene of an image; some have no object, and some have a crowd.

    The image's number determines which, so that small splits have both.
    """
    things = 0 if number % 32 == 8 else int(rng.integers(1, 6))
    return open_scene(rng, _extent(img_size), things=things, crowd=number % 16 == 4)


def _extent(img_size: tuple[int, int]) -> tuple[float, float]:
    """Return an image's (height, width) in short sides."""
    return img_size[0] / min(img_size), img_size[1] / min(img_size)


def _write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image (H, W, 3) or a label map (H, W) in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=92, subsampling=0)
