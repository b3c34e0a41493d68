"""What a reader of a layout returns: objects of images, or images with masks, by split of the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfer.layouts.class_table import ClassTable


@dataclass(frozen=True, kw_only=True)
class ObjectSplit:
    """The objects of one split as the content of a COCO instances file, and where its images are.

    Attributes:
        content: `images`, `categories` and `annotations`; a `file_name` is the image's path in the result.
        files: the images by `file_name`.
    """

    content: dict[str, Any]
    files: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class MaskPair:
    """An image, its mask, and the image's path in the result, below the folder of its split."""

    image: Path
    mask: Path
    name: str


@dataclass(frozen=True, kw_only=True)
class MaskData:
    """Images with masks by split of the source, and what the labels of the masks mean.

    Attributes:
        table: the classes; None where the source does not name them.
        background: see `class_table.map_labels`.
        void: labels that the format ignores.
        notes: what a user should know.
    """

    splits: Mapping[str, Sequence[MaskPair]]
    table: ClassTable | None
    background: str = "unknown"
    void: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ObjectData:
    """Objects of images by split of the source, and what a user should know of them."""

    splits: Mapping[str, ObjectSplit]
    notes: list[str] = field(default_factory=list)
