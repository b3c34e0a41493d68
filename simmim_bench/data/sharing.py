"""List a run's images on rank 0 alone, and give every process the result.

To list and measure ImageNet's 1.28 million files takes a local disk seconds and a file server minutes, and longer the
more processes ask at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from simmim_bench.data.listing import LeftOut
from simmim_bench.data.names import FileNames, PathList, SharedArray
from simmim_bench.data.sources import ImageList, ImageSource
from simmim_bench.distributed import DistContext

Images = TypeVar("Images", bound=ImageSource | None)

NOTHING = {"nothing": torch.zeros(0)}


def open_once(
    open_images: Callable[[], Images], dist: DistContext, *, measure: bool = True
) -> Images:
    """Open images in separate files on rank 0, and return them on every process.

    Tar shards and Hugging Face datasets, whose readers hold open files, are opened by every process, once rank 0 has
    opened them; shards with an index, without a scan.

    Args:
        open_images: opens the images; called on rank 0, and on the others where they have to open them as well.
        measure: whether the fingerprint of the images, or of some of them, is needed; it takes the size of every file.

    Raises:
        BenchError: as `open_images` raises it on rank 0, on every process.
    """
    opened: list[Images] = []

    def compute() -> dict[str, Tensor]:
        images: ImageSource | None = open_images()
        if isinstance(images, ImageList):
            images = images.measured() if measure else images
        opened.append(cast(Images, images))
        if images is None:
            return NOTHING
        return _to_tensors(images) if dist.size > 1 and isinstance(images, ImageList) else {}

    tensors = dist.compute_once(compute)
    if opened:
        return opened[0]
    if not tensors:
        return open_images()
    return cast(Images, None if tensors.keys() == NOTHING.keys() else _from_tensors(tensors))


def _to_tensors(images: ImageList) -> dict[str, Tensor]:
    """Convert images to named tensors, names to their bytes and offsets."""
    left_out = images.left_out
    names = {
        "paths": images.paths.names,
        "folders": FileNames.pack([str(images.root), str(images.paths.folder)]),
        "classes": FileNames.pack(images.classes),
        "files": FileNames.pack(left_out.files),
        "hidden": FileNames.pack(left_out.hidden),
        "outside": FileNames.pack(left_out.outside),
    }
    arrays = {"numbers": images.numbers, "listed": SharedArray(np.array([images.listed], np.int64))}
    if images.sizes is not None:
        arrays["sizes"] = images.sizes
        names["fingerprint"] = FileNames.pack([images.fingerprint()])
    for name, packed in names.items():
        arrays |= {f"{name}.bytes": packed.buffer, f"{name}.offsets": packed.offsets}
    return {name: torch.from_numpy(array.values) for name, array in arrays.items()}


def _from_tensors(tensors: dict[str, Tensor]) -> ImageList:
    """Convert the tensors of `_to_tensors` back to images."""
    arrays = {name: SharedArray(tensor.numpy()) for name, tensor in tensors.items()}

    def names(name: str) -> FileNames:
        return FileNames(arrays[f"{name}.bytes"], arrays[f"{name}.offsets"])

    root, folder = names("folders")
    sizes = arrays.get("sizes")
    return ImageList(
        Path(root),
        PathList(Path(folder), names("paths")),
        arrays["numbers"],
        tuple(names("classes")),
        LeftOut(tuple(names("files")), tuple(names("hidden")), tuple(names("outside"))),
        sizes,
        None if sizes is None else names("fingerprint")[0],
        listed=bool(arrays["listed"].values[0]),
    )
