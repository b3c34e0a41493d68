"""Find the images and label maps of a data set in ADE20K's layout, and the names of its classes.

The folder has `images/{training,validation}`, `annotations/{training,validation}` and optionally `classes.txt`, which
names one class per line. The label map of an image has its path and name, with the suffix `.png`. An error names the
file or folder and the remedy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from simmim_bench.data.listing import LeftOut, list_tree
from simmim_bench.data.sources import image_list
from simmim_bench.data.subsets import limited_indices
from simmim_bench.display import first_names
from simmim_bench.errors import DataError

MAX_CLASSES = 255  # the labels of 8 bits, without the ignored one
SPLITS = ("training", "validation")
MAP_SUFFIX = ".png"
NOTHING = LeftOut()


@dataclass(frozen=True, kw_only=True)
class SegmentationSplit:
    """The images of one split, sorted, and their label maps in the same order.

    Attributes:
        left_out: files in the images' folder that are not read.
        found: all files in the folder of the label maps.
    """

    root: Path
    name: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    left_out: LeftOut = NOTHING
    found: frozenset[Path] = frozenset()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def folder(self) -> Path:
        """The folder of the images."""
        return self.root / "images" / self.name

    @property
    def annotations(self) -> Path:
        """The folder of the label maps."""
        return self.root / "annotations" / self.name

    @cached_property
    def missing(self) -> list[Path]:
        """The label maps that do not exist."""
        return [mask for mask in self.masks if not mask.is_file()]

    def limited(self, limit: int | None) -> SegmentationSplit:
        """Return the split with `limit` of its images, the same in every run; with all for None or a larger limit."""
        if limit is None or limit >= len(self):
            return self
        chosen = limited_indices((0,) * len(self), limit)  # an image shows several classes
        return replace(
            self,
            images=tuple(self.images[i] for i in chosen),
            masks=tuple(self.masks[i] for i in chosen),
        )

    def fingerprint(self) -> str:
        """Hash the path below the root and the size in bytes of every image and label map."""
        paths = self.images + self.masks
        return image_list(self.root, paths, (0,) * len(paths), ()).fingerprint()

    def describe_missing(self) -> str:
        """Return that label maps are missing, and a file that could be one of them, in one line."""
        mask = self.missing[0]
        message = (
            f"annotation {mask} does not exist ({len(self.missing)} of {len(self)} images of {self.folder} have "
            "none); add it or remove the image."
        )
        similar = _most_similar(mask, self.found - set(self.masks))
        if similar is None:
            return message
        return (
            f"{message} {similar} has a similar name; a label map has the path and name of its image, and is a "
            f"{MAP_SUFFIX} file."
        )

    def remarks(self) -> list[str]:
        """Return what of the split's files is not used, one line each."""
        found = []
        if self.left_out:
            found.append(f"{self.folder}: {self.left_out.describe()}")
        unused = sorted(self.found - set(self.masks))
        if unused:
            verb = (
                "label maps have no image and are"
                if len(unused) > 1
                else "label map has no image and is"
            )
            found.append(
                f"{self.annotations}: {len(unused):,} {verb} not used: {first_names(unused)}"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class SegmentationData:
    """Both splits of a data set; see `label_maps.LabelScheme` for the labels of the class names."""

    training: SegmentationSplit
    validation: SegmentationSplit
    class_names: list[str]


def find_split(root: Path, name: str) -> SegmentationSplit:
    """List a split.

    Args:
        name: `training` or `validation`.

    Raises:
        DataError: a folder is missing or empty, or an image has no label map of its own.
    """
    split = list_split(root, name)
    if split.missing:
        raise DataError(split.describe_missing())
    return split


def list_split(root: Path, name: str) -> SegmentationSplit:
    """List a split without checking that its label maps exist.

    Raises:
        DataError: a folder is missing or empty, or two images have the same label map.
    """
    folder, annotations = root / "images" / name, root / "annotations" / name
    for directory in (folder, annotations):
        if not directory.is_dir():
            raise DataError(_describe_layout(directory, root))
    images, left_out = list_tree(folder)
    if not images:
        raise DataError(
            f"data folder {folder} has no images; add them."
            + (f" {left_out.describe()}." if left_out else "")
        )
    found = list_tree(annotations).images
    # Suffixes in upper case count; `.png` is chosen where both exist.
    by_name = {path.with_suffix(""): path for path in found if path.suffix.lower() == MAP_SUFFIX}
    by_name |= {path.with_suffix(""): path for path in found if path.suffix == MAP_SUFFIX}
    names = [annotations / path.relative_to(folder).with_suffix("") for path in images]
    masks = tuple(by_name.get(name, name.with_name(name.name + MAP_SUFFIX)) for name in names)
    _check_one_to_one(images, masks)
    return SegmentationSplit(
        root=root,
        name=name,
        images=tuple(images),
        masks=masks,
        left_out=left_out,
        found=frozenset(found),
    )


def _describe_layout(directory: Path, root: Path) -> str:
    """Return that a folder does not exist, and what does, in one line."""
    above = directory.parent
    while above != root and not above.is_dir():
        above = above.parent
    message = (
        f"data folder {directory} does not exist; --data takes a folder in ADE20K's layout: "
        f"images/{{training,validation}}/NAME.jpg, annotations/{{training,validation}}/NAME{MAP_SUFFIX}"
    )
    inside = sorted(path for path in above.iterdir() if path.is_dir()) if above.is_dir() else []
    if inside:
        message += f"; {above} has the folders {first_names(inside)}"
    return f"{message}; `simmim-bench data convert DIR OUT` converts exports of CVAT, Roboflow and others."


def _check_one_to_one(images: Sequence[Path], masks: Sequence[Path]) -> None:
    """Check that no two images have the same label map."""
    owner: dict[Path, Path] = {}
    for image, mask in zip(images, masks, strict=True):
        if mask in owner:
            raise DataError(
                f"images {owner[mask]} and {image} have the same label map, {mask}; remove or rename one of them."
            )
        owner[mask] = image


def _most_similar(mask: Path, candidates: frozenset[Path]) -> Path | None:
    """Return the file whose name begins most like that of a label map, if any does for more than a third."""

    def shared(path: Path) -> int:
        equal = (a == b for a, b in zip(path.stem, mask.stem, strict=False))
        return sum(itertools.takewhile(bool, equal))

    best = max(sorted(candidates), key=shared, default=None)
    return best if best is not None and 3 * shared(best) > len(mask.stem) else None


def read_class_names(root: Path) -> list[str] | None:
    """Read the class names, first class first, from `classes.txt`; None if the file does not exist.

    Raises:
        DataError: the file cannot be read, or does not have 2 to 255 different names.
    """
    path = root / "classes.txt"
    if not path.exists():
        return None
    try:
        # Editors of Windows write a byte order mark.
        names = [line.strip() for line in path.read_text("utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}; write one class name per line."
        ) from error
    if not 2 <= len(names) <= MAX_CLASSES:
        one = ""
        if len(names) == 1:
            one = (
                " With one class every prediction is right: if label 0 is the background, name it on the first line "
                "and use -o reduce_zero_label=false."
            )
        raise DataError(
            f"{path} names {len(names)} classes; 2 to {MAX_CLASSES} are allowed, line i naming label i.{one}"
        )
    for line, name in enumerate(names, 1):
        if not name:
            raise DataError(f"line {line} of {path} is empty; write one class name per line.")
        if name in names[: line - 1]:
            raise DataError(
                f"lines {names.index(name) + 1} and {line} of {path} are both '{name}'; give each class its own name."
            )
    return names
