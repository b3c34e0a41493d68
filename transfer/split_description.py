"""Describe the images of a classification transfer, as its record stores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simmim_bench.data.sources import ImageList
from transfer.fewshot import split_sha256


def describe_data(data: Path, train: ImageList, val: ImageList) -> dict[str, Any]:
    """Describe the data as a record stores it."""
    return {
        "root": str(data),
        "classes": len(val.classes),
        "train_images": len(train),
        "train_fingerprint": train.fingerprint(),
        "fingerprint": val.fingerprint(),
    }


def describe_split(images: ImageList, split: Path | None) -> dict[str, str]:
    """Describe the images that a split file lists; a split sampled from the seed needs no description."""
    if split is None:
        return {}
    return {"listed_split": str(split), "listed_split_sha256": split_sha256(images)}
