"""Splits of Hugging Face datasets for classification: images with the classes of a ClassLabel column."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from simmim_bench.data.hub import HubImages, hub_images, import_datasets
from simmim_bench.data.named import HUB_PREFIX
from simmim_bench.display import first_names
from simmim_bench.errors import DataError

# Names of the splits, the first that exists is used: datasets' own names, and those that timm knows
# (timm/data/dataset_factory.py, _EVAL_SYNONYM). The test split is scored where no other is held out.
SPLITS = {"train": ("train",), "val": ("validation", "valid", "val", "test")}


def hub_classes(text: str, split: str) -> HubImages:
    """Open a split of a Hugging Face dataset with its classes.

    Args:
        text: `NAME`, or `NAME#COLUMN` for one of several label columns.
        split: `train` or `val`.

    Raises:
        DataError: the dataset, the split or its labels cannot be used.
        MissingFrameworkError: the package `datasets` is not installed.
    """
    name, column = _split_column(text)
    images = hub_images(name, _find_split(name, split))
    column = _label_column(images, name, column)
    label = images.dataset.features[column]
    classes = tuple(label.names)
    numbers = np.array(
        [-1 if number is None else number for number in images.dataset[column][:]], np.int64
    )
    unlabelled = int((numbers < 0).sum())
    if unlabelled:
        raise DataError(
            f"dataset {images.what} has {unlabelled:,} images without a class in column {column}, as test splits whose "
            "labels are withheld have; use a dataset with a labelled split."
        )
    if len(classes) < 2:
        raise DataError(
            f"dataset {images.what} has one class in column {column}, and a classifier needs two or more; use another "
            "dataset."
        )
    return replace(
        images, classes=classes, numbers=numbers, what=f"{name}#{column} ({images.split})"
    )


def describe_empty_classes(images: HubImages) -> str | None:
    """Return a warning of the classes that a split has no image of; None if there are none.

    The names belong to the dataset, so that they cannot be corrected as class folders can.
    """
    present = set(images.labels.tolist())
    empty = [name for number, name in enumerate(images.classes) if number not in present]
    if not empty:
        return None
    return f"{images.what} has no image of {len(empty):,} of {len(images.classes):,} classes: {first_names(empty)}"


def _split_column(text: str) -> tuple[str, str | None]:
    """Split `NAME#COLUMN`; a folder whose name has a "#" is a NAME."""
    name, mark, column = text.rpartition("#")
    return (name, column) if mark and not Path(text).exists() else (text, None)


def has_hub_split(text: str, split: str) -> bool:
    """Return whether a dataset has a split, under any of its names.

    Args:
        text: `NAME` or `NAME#COLUMN`.

    Raises:
        DataError: the dataset cannot be read.
        MissingFrameworkError: the package `datasets` is not installed.
    """
    return bool({*SPLITS[split]} & {*_split_names(_split_column(text)[0])})


def _split_names(name: str) -> list[str]:
    datasets = import_datasets(name)
    try:
        return [*datasets.get_dataset_split_names(name)]
    except Exception as error:  # raised by datasets, pyarrow, fsspec and the hub's client alike
        raise DataError(f"dataset {name} cannot be read: {error}") from error


def _find_split(name: str, split: str) -> str:
    """Return the dataset's name of a split."""
    found = _split_names(name)
    chosen = next((known for known in SPLITS[split] if known in found), None)
    if chosen is None:
        raise DataError(
            f"dataset {name} has no split {' or '.join(SPLITS[split])}, only {', '.join(found)}; use another dataset."
        )
    return chosen


def label_columns(images: HubImages, name: str) -> list[str]:
    """Return the columns of class labels."""
    datasets: Any = import_datasets(name)
    features = images.dataset.features
    return [c for c, kind in features.items() if isinstance(kind, datasets.ClassLabel)]


def _label_column(images: HubImages, name: str, column: str | None) -> str:
    """Return the column of class labels: the given one, or the only one."""
    features, labels = images.dataset.features, label_columns(images, name)
    if column in labels:
        return str(column)
    if labels and column is not None:
        raise DataError(
            f"dataset {images.what} has no column {column} of class labels; its label columns are {', '.join(labels)}."
        )
    if len(labels) > 1:
        raise DataError(
            f"dataset {images.what} has several columns of class labels, {', '.join(labels)}; choose one, such "
            f"as {HUB_PREFIX}{name}#{labels[0]}."
        )
    if not labels:
        kinds = ", ".join(
            f"{c} ({getattr(k, 'dtype', type(k).__name__)})" for c, k in features.items()
        )
        raise DataError(
            f"dataset {images.what} has no column of class labels (ClassLabel), only {kinds}; convert the column of "
            "the classes with datasets' class_encode_column, or use another dataset."
        )
    return labels[0]
