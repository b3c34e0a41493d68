"""Images of Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from simmim_bench.data.decode import unreadable
from simmim_bench.data.listing import LeftOut, hash_names_and_sizes
from simmim_bench.data.named import HUB_PREFIX
from simmim_bench.errors import DataError, MissingFrameworkError


@dataclass(frozen=True)
class HubImages:
    """Images of a Hugging Face dataset."""

    dataset: Any
    column: str
    what: str
    indices: Sequence[int]
    classes: tuple[str, ...] = ("image",)
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    @cached_property  # a new tuple for every image that is read would take longer than reading it
    def labels(self) -> tuple[int, ...]:
        """One class for all images: pretraining does not use labels."""
        return (0,) * len(self)

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
        """Hash the dataset's own fingerprint, which depends on its content and every transformation."""
        return hash_names_and_sizes(iter([(f"{self.what} {self.dataset._fingerprint}", len(self))]))


def hub_images(name: str, split: str) -> HubImages:
    """Open a split of a Hugging Face dataset."""
    try:
        import datasets
    except ImportError as error:
        raise MissingFrameworkError(
            f"{HUB_PREFIX}{name} needs the package datasets: pip install 'simmim-bench[hub]'."
        ) from error
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
    return HubImages(encoded, columns[0], f"{name} ({split})", range(len(encoded)))
