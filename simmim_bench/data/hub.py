"""Images of Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from simmim_bench.data.decode import unreadable
from simmim_bench.data.listing import LeftOut, hash_names_and_sizes
from simmim_bench.data.named import HUB_PREFIX
from simmim_bench.errors import DataError, MissingFrameworkError


@dataclass(frozen=True)
class HubImages:
    """Images of a Hugging Face dataset.

    Attributes:
        column: the column of the images.
        what: dataset and split, for messages and the fingerprint.
        indices: rows of the images.
        numbers: the class of every row, int64; None for a single class.
        split: the split's name.
    """

    dataset: Any
    column: str
    what: str
    indices: Sequence[int]
    classes: tuple[str, ...] = ("image",)
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)
    numbers: np.ndarray | None = field(default=None, compare=False)
    split: str = "train"

    @cached_property  # a new array for every image that is read would take longer than reading it
    def labels(self) -> np.ndarray:
        """The class of every image, int64."""
        if self.numbers is None:  # pretraining does not use labels
            return np.zeros(len(self), np.int64)
        return self.numbers[np.asarray(self.indices, np.int64)]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes:
        """Return the content of an image file."""
        image = self.dataset[self.indices[index]][self.column]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise unreadable(self.name(index), "its row has no image")
        content: bytes | None = image["bytes"]
        try:
            return Path(image["path"]).read_bytes() if content is None else content
        except OSError as error:
            raise unreadable(self.name(index), error.strerror) from error

    def name(self, index: int) -> str:
        """Return the dataset and the row of an image."""
        return f"{self.what}[{self.indices[index]}]"

    def subset(self, indices: Sequence[int]) -> HubImages:
        """Return a source of some images, in the order of `indices`."""
        return replace(self, indices=[self.indices[i] for i in indices])

    def fingerprint(self) -> str:
        """Hash the dataset's own fingerprint, which depends on its content and every transformation.

        The rows of a subset are hashed, too.
        """
        return self._fingerprint

    @cached_property  # a task may ask for it before every epoch
    def _fingerprint(self) -> str:
        whole = [(f"{self.what} {self.dataset._fingerprint}", len(self))]
        rows = () if isinstance(self.indices, range) else self.indices
        return hash_names_and_sizes(iter([*whole, *((f"row {row}", 1) for row in rows)]))


def import_datasets(name: str) -> ModuleType:
    """Import the package `datasets`, which a dataset needs."""
    try:
        import datasets
    except ImportError as error:
        raise MissingFrameworkError(
            f"{HUB_PREFIX}{name} needs the package datasets: pip install 'simmim-bench[hub]'."
        ) from error
    module: ModuleType = datasets
    return module


def hub_images(name: str, split: str) -> HubImages:
    """Open a split of a Hugging Face dataset."""
    datasets = import_datasets(name)
    try:
        dataset = datasets.load_dataset(name, split=split)
    except Exception as error:  # raised by datasets, pyarrow, fsspec and the hub's client alike
        raise DataError(f"dataset {name} ({split}) cannot be read: {error}") from error
    columns = [c for c, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise DataError(
            f"dataset {name} ({split}) has no image column, only {', '.join(dataset.features)}; use another dataset."
        )
    encoded = dataset.cast_column(columns[0], datasets.Image(decode=False))
    return HubImages(encoded, columns[0], f"{name} ({split})", range(len(encoded)), split=split)
