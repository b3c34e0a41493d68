"""Write generated data in the three layouts that the tasks read: ImageNet's, COCO's and ADE20K's.

In: a directory, a seed, an image size and the number of images a split.
Out, all from the scenes of `simmim_bench.pocket.scenes`:

    imagenet/{train,val}/CLASS/CLASS_00001.JPEG
    coco/{train2017,val2017}/000000000001.jpg, coco/annotations/instances_{train,val}2017.json
    ade20k/{images,annotations}/{training,validation}/ADE_{train,val}_00000001.{jpg,png}
    ade20k/classes.txt      line i names label i; label 0 is clutter, of no class, to be ignored
    pocket.json             the seed, sizes, counts and classes

An image depends on the seed, its split and its number alone, so the same seed gives the same bytes
(with the same numpy and Pillow) and more images leave the earlier ones as they are.
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
from pycocotools import mask as coco_mask

from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import write_json, write_text
from simmim_bench.pocket.classes import STUFF_CLASSES, THING_CLASSES
from simmim_bench.pocket.scenes import Rendering, Scene, object_scene, open_scene, render

__all__ = ["COCO_CATEGORY_IDS", "STUFF_CLASSES", "THING_CLASSES", "PocketCounts", "write_pocket"]

VERSION = 1
"""Raised whenever the same seed no longer gives the same pictures."""

MIN_SIDE = 32
"""Pixels; below it a thing's pattern is finer than a pixel."""

COCO_CATEGORY_IDS = (1, 2, 3, 5, 6, 8, 9, 11, 13, 14)
"""With gaps, as in COCO, so that code that takes an id for an index shows it."""

OWNED = ("ade20k", "coco", "imagenet", "pocket.json")
"""What a pocket directory holds; one with anything else is never written to."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class PocketCounts:
    """Count the images of each split; those of ImageNet are shared evenly by the classes.

    A split's place in this order is part of the seed of its images.
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
    """Write the three data sets under `out` and return the number of images of each split.

    `img_size` is (H, W) in pixels, both at least 32; `seed` is 0 or more. `progress` is called with
    the images done and their total after each image. Nothing is seen in `out` before all is
    written. With `overwrite`, earlier generated data in `out` is replaced.

    Raises `UsageError` for a value out of its range or an `out` that is in use, and `DataError`
    where it cannot be written.
    """
    _check_values(seed, img_size, counts)
    out = Path(out).resolve()
    _check_target(out, overwrite)
    # Beside `out`, or within it where it exists: it may be a mount point, which cannot be renamed.
    partial = (out if out.exists() else out.parent) / f".{out.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        try:
            total = sum(asdict(counts).values())
            for done, _ in enumerate(_write_all(partial, seed, img_size, counts), start=1):
                if progress is not None:
                    progress(done, total)
            _put_in_place(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot write generated data to {out}: {error}; "
            "choose a directory that you can write to, on a disk with room."
        ) from error
    return asdict(counts)


def _check_values(seed: int, img_size: tuple[int, int], counts: PocketCounts) -> None:
    """Refuse values out of their range."""
    height, width = img_size
    if min(height, width) < MIN_SIDE:
        raise UsageError(
            f"img_size {height}x{width} is below {MIN_SIDE}x{MIN_SIDE} pixels, "
            "too small to show a thing's pattern; use 64x64 or more."
        )
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; use 0 or more.")
    for split, count in asdict(counts).items():
        least = len(THING_CLASSES) if split.startswith("imagenet") else 1
        if count < least:
            raise UsageError(f"{split} {count} is below {least}; use {least} images or more.")


def _check_target(out: Path, overwrite: bool) -> None:
    """Refuse an `out` that is in use, unless it may be replaced and holds our data and no other."""
    try:
        names = set(os.listdir(out))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"cannot use {out} as a directory: {error}; choose another.") from error
    if names and not overwrite:
        raise UsageError(f"{out} is not empty; pass --overwrite or choose another directory.")
    # Without pocket.json, `imagenet` or `coco` may be the real one.
    foreign = sorted(names if "pocket.json" not in names else names.difference(OWNED))
    if foreign:
        raise UsageError(
            f"{out} holds '{foreign[0]}', which pocket did not write, and is left as it is; "
            "choose another directory."
        )


def _put_in_place(partial: Path, out: Path) -> None:
    """Move finished data to `out`, `pocket.json` last: where it is, all is."""
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
    """Write all splits under `root`, then what describes them; yield after each image."""
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
    """Write one split of classified pictures, the classes taking turns."""
    for index, rng in enumerate(rngs):
        number, label = divmod(index, len(THING_CLASSES))
        kind = THING_CLASSES[label]
        image = render(object_scene(rng, kind, _extent(img_size)), img_size).image
        _write_image(root / split / kind / f"{kind}_{number + 1:05d}.JPEG", image)
        yield


def _write_coco(
    root: Path, split: str, rngs: list[np.random.Generator], img_size: tuple[int, int]
) -> Iterator[None]:
    """Write one split of pictures with instances."""
    height, width = img_size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, rng in enumerate(rngs, start=1):
        scene = _open_scene(rng, image_id, img_size)
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
    """Write one split of pictures with label maps."""
    folder = {"train": "training", "val": "validation"}[split]
    for number, rng in enumerate(rngs, start=1):
        scene = _open_scene(rng, number, img_size)
        rendering = render(scene, img_size)
        name = f"ADE_{split}_{number:08d}"
        _write_image(root / "images" / folder / f"{name}.jpg", rendering.image)
        labels = ade20k_labels(scene, rendering)
        _write_image(root / "annotations" / folder / f"{name}.png", labels)
        yield


def coco_annotations(scene: Scene, rendering: Rendering) -> Iterator[dict[str, Any]]:
    """Give a COCO annotation, without ids, for each thing that is seen and for the crowd, if any.

    A thing has a polygon for each visible piece that is not a sliver; holes are filled, as COCO's
    polygons have none. A crowd has run lengths.
    """
    height, width = rendering.item.shape
    sliver = 12 * (min(height, width) / 64) ** 2
    crowd = [index for index, item in enumerate(scene.items) if item.crowd]
    alone = [[i] for i, item in enumerate(scene.items) if item.is_thing and not item.crowd]
    for members in [*alone, crowd] if crowd else alone:
        visible = np.isin(rendering.item, members)
        is_crowd = members is crowd
        segmentation = _run_lengths(visible) if is_crowd else _polygons(visible, sliver)
        if not segmentation:
            continue
        encoded = coco_mask.frPyObjects(segmentation, height, width)
        region = encoded if is_crowd else coco_mask.merge(encoded)
        category = THING_CLASSES.index(scene.items[members[0]].kind)
        yield {
            "category_id": COCO_CATEGORY_IDS[category],
            "segmentation": segmentation,
            "area": float(coco_mask.area(region)),
            "bbox": coco_mask.toBbox(region).tolist(),
            "iscrowd": int(is_crowd),
        }


def ade20k_labels(scene: Scene, rendering: Rendering) -> NDArray[np.uint8]:
    """Give the label map (H, W): 0 for clutter, then the classes of stuff, then those of things."""
    first_thing = len(STUFF_CLASSES) + 1
    of_item = [
        first_thing + THING_CLASSES.index(item.kind) if item.is_thing else 0 for item in scene.items
    ]
    # Where there is no item its index is -1, so that the last place is for stuff.
    labels = np.array([*of_item, 0])[rendering.item]
    return np.where(rendering.item < 0, rendering.stuff + 1, labels).astype(np.uint8)


def _open_scene(rng: np.random.Generator, number: int, img_size: tuple[int, int]) -> Scene:
    """Draw the scene of a picture: some without a thing, some with a crowd.

    Which ones goes by number and not by chance, so that small splits have both.
    """
    things = 0 if number % 32 == 8 else int(rng.integers(1, 6))
    return open_scene(rng, _extent(img_size), things=things, crowd=number % 16 == 4)


def _extent(img_size: tuple[int, int]) -> tuple[float, float]:
    """Give an image's (height, width) in short sides."""
    return img_size[0] / min(img_size), img_size[1] / min(img_size)


def _run_lengths(mask: Mask) -> dict[str, list[int]]:
    """Encode a mask as COCO's uncompressed run lengths, down the columns, from a run of zeros."""
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    return {"counts": np.diff(ends, prepend=0).tolist(), "size": list(mask.shape)}


def _polygons(mask: Mask, min_area: float) -> list[list[int]]:
    """Trace the outlines [x0, y0, x1, y1, ...] of a mask's pieces, along the edges of pixels.

    Only pieces of at least `min_area` pixels are kept. The corners are exact: pycocotools gives
    the piece's own pixels back, and those of its holes.
    """
    steps = ((1, 0), (0, 1), (-1, 0), (0, -1))
    starts = ((0, 0), (1, 0), (1, 1), (0, 1))
    inside = np.pad(mask, 1)
    edges: dict[tuple[int, int, int], None] = {}
    for direction, ((dx, dy), (x0, y0)) in enumerate(zip(steps, starts, strict=True)):
        # Clockwise, the neighbour on the left of an edge is outside.
        rows, columns = np.nonzero(inside & ~np.roll(inside, (dx, -dy), axis=(0, 1)))
        for x, y in zip(columns.tolist(), rows.tolist(), strict=True):
            edges[x + x0 - 1, y + y0 - 1, direction] = None
    polygons = []
    left = dict(edges)
    while left:
        polygon: list[int] = []
        twice_area = 0
        start = edge = next(iter(left))
        while edge in left:
            del left[edge]
            x, y, direction = edge
            dx, dy = steps[direction]
            twice_area += x * dy - y * dx
            # Where four edges meet, a right turn stays with the same pixel.
            turns = ((x + dx, y + dy, (direction + turn) % 4) for turn in (1, 0, 3))
            edge = next(turned for turned in turns if turned in edges)
            if edge[2] != direction:
                polygon += edge[:2]
        assert edge == start
        if twice_area >= 2 * min_area:
            polygons.append(polygon)
    return polygons


def _write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image (H, W, 3) or a label map (H, W) in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=92, subsampling=0)
