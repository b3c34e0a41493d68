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

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
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

VERSION = 1
"""Version of the images; increases whenever the same seed renders other images."""

MIN_SIDE = 32
"""Minimum image side in pixels; below it, an object's pattern is finer than a pixel."""

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
    partial = (out if out.exists() else out.parent) / f".{out.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        try:
            total = sum(asdict(counts).values())
            for done, _ in enumerate(_write_all(partial, seed, img_size, counts), start=1):
                if progress is not None:
                    progress(done, total)
            _move_into_place(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
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


def _move_into_place(partial: Path, out: Path) -> None:
    """Move the finished data set to `out`; `pocket.json` is last, so that it marks a complete data set."""
    if not out.exists():
        partial.rename(out)
        return
    old = partial / "old"
    old.mkdir()
    for name in reversed(OWNED):
        if (out / name).exists():
            (out / name).rename(old / name)
    for name in OWNED:
        (partial / name).rename(out / name)


def _write_all(
    root: Path, seed: int, img_size: tuple[int, int], counts: PocketCounts
) -> Iterator[None]:
    """Write all splits to `root`, then their description; yield after every image."""
    writers = {"imagenet": _write_imagenet, "coco": _write_coco, "ade20k": _write_ade20k}
    for split_id, (name, count) in enumerate(asdict(counts).items()):
        layout, split = name.split("_")
        rngs = [
            np.random.default_rng(np.random.SeedSequence([seed, split_id, index]))
            for index in range(count)
        ]
        yield from writers[layout](root / layout, split, rngs, img_size)
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


def _write_imagenet(
    root: Path, split: str, rngs: list[np.random.Generator], img_size: tuple[int, int]
) -> Iterator[None]:
    """Write one split in ImageNet's layout, cycling through the classes; yield after every image."""
    for index, rng in enumerate(rngs):
        number, label = divmod(index, len(THING_CLASSES))
        kind = THING_CLASSES[label]
        image = render(object_scene(rng, kind, _extent(img_size)), img_size).image
        _write_image(root / split / kind / f"{kind}_{number + 1:05d}.JPEG", image)
        yield


def _write_coco(
    root: Path, split: str, rngs: list[np.random.Generator], img_size: tuple[int, int]
) -> Iterator[None]:
    """Write one split in COCO's layout; yield after every image."""
    height, width = img_size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, rng in enumerate(rngs, start=1):
        scene = _sample_open_scene(rng, image_id, img_size)
        rendering = render(scene, img_size)
        name = f"{image_id:012d}.jpg"
        _write_image(root / f"{split}2017" / name, rendering.image)
        images.append(
            {"id": image_id, "file_name": name, "height": height, "width": width, "license": 1}
        )
        for annotation in coco_annotations(scene, rendering):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
        yield
    instances = {
        "info": {"description": "simmim-bench pocket", "version": str(VERSION)},
        "licenses": [{"id": 1, "name": "MIT", "url": "https://opensource.org/license/mit"}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": category_id, "name": name, "supercategory": "thing"}
            for category_id, name in zip(COCO_CATEGORY_IDS, THING_CLASSES, strict=True)
        ],
    }
    write_json(root / "annotations" / f"instances_{split}2017.json", instances)


def _write_ade20k(
    root: Path, split: str, rngs: list[np.random.Generator], img_size: tuple[int, int]
) -> Iterator[None]:
    """Write one split in ADE20K's layout; yield after every image."""
    folder = {"train": "training", "val": "validation"}[split]
    for number, rng in enumerate(rngs, start=1):
        scene = _sample_open_scene(rng, number, img_size)
        rendering = render(scene, img_size)
        name = f"ADE_{split}_{number:08d}"
        _write_image(root / "images" / folder / f"{name}.jpg", rendering.image)
        labels = ade20k_labels(scene, rendering)
        _write_image(root / "annotations" / folder / f"{name}.png", labels)
        yield


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
