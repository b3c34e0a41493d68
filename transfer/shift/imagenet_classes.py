"""The classes of ImageNet and of the sets that have some of them, from the lists that timm ships.

A class is named by its WordNet id; the classes of ImageNet-1k are numbered in the order of their ids.
"""

from __future__ import annotations

import functools
from importlib import resources

from timm.data import ImageNetInfo, RealLabelsImagenet

VALIDATION_IMAGES = 50_000  # of ILSVRC 2012: arXiv 1409.0575, table 2


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet-1k in the order of the classes."""
    return tuple(sorted(ImageNetInfo().label_names()))


@functools.cache
def classes_of(name: str) -> tuple[str, ...]:
    """Return the sorted WordNet ids of a set's class folders.

    Args:
        name: "a" or "r" for the 200 classes of ImageNet-A or ImageNet-R; another set has all of ImageNet-1k.
    """
    if name not in ("a", "r"):
        return imagenet_classes()
    # timm has no interface for these lists, which are those of the authors' eval.py.
    file = resources.files("timm.data") / "_info" / f"imagenet_{name}_synsets.txt"
    return tuple(sorted(file.read_text(encoding="utf-8").split()))


@functools.cache
def real_labels() -> dict[str, tuple[int, ...]]:
    """Return the ReaL labels of every validation image by the name of its file; some images have none."""
    labels = RealLabelsImagenet([""] * VALIDATION_IMAGES).real_labels
    return {name: tuple(map(int, numbers)) for name, numbers in labels.items()}
