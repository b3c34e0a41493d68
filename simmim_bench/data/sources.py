"""Open the images that `--data` names: class folders, flat folders, tar shards, Hugging Face datasets.

An `ImageSource` returns the encoded bytes of any image by its index, in any process, and a fingerprint of all
images. It does not decode images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from simmim_bench.data.decode import unreadable
from simmim_bench.data.hub import HUB_PREFIX, hub_images
from simmim_bench.data.listing import (
    SUFFIXES,
    LeftOut,
    hash_names_and_sizes,
    is_hidden,
    list_folder,
    list_tree,
)
from simmim_bench.data.shards import tar_shards
from simmim_bench.errors import DataError

# Names of the splits' folders, the first one preferred: Roboflow exports valid/, and timm reads all of them
# (timm/data/dataset_factory.py, _TRAIN_SYNONYM and _EVAL_SYNONYM).
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}


class ImageSource(Protocol):
    """An indexed list of encoded images."""

    @property
    def labels(self) -> Sequence[int]:
        """The class of every image."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes."""

    @property
    def left_out(self) -> LeftOut:
        """What lies with the images and is not read."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Return the content of an image file."""

    def name(self, index: int) -> str:
        """Return the name of an image, for error messages."""

    def subset(self, indices: Sequence[int]) -> ImageSource:
        """Return a source of some images, in the order of `indices`, with the same classes."""

    def fingerprint(self) -> str:
        """Hash the names and sizes of all images: SHA-256 in hexadecimal."""


@dataclass(frozen=True)
class ImageList:
    """Images in separate files, sorted."""

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """Return the content of an image file."""
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise unreadable(str(self.paths[index]), error.strerror) from error

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.paths[index])

    def subset(self, indices: Sequence[int]) -> ImageList:
        """Return a source of some images, in the order of `indices`, with the same classes."""
        return ImageList(
            self.root,
            tuple(self.paths[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            self.classes,
            self.left_out,
        )

    def fingerprint(self) -> str:
        """Hash every image's path relative to the root and its size in bytes: SHA-256 in hexadecimal."""
        return hash_names_and_sizes(
            (path.relative_to(self.root).as_posix(), self._size(path)) for path in self.paths
        )

    def _size(self, path: Path) -> int:
        try:
            return path.stat().st_size
        except OSError as error:
            raise DataError(
                f"image {path} cannot be read: {error.strerror}; fix the link or remove it."
            ) from error


def split_folder(root: Path, split: str) -> Path:
    """Return the folder of a split; if it does not exist under any name, the preferred one.

    Args:
        split: `train` or `val`.
    """
    folders = [root / name for name in SPLIT_FOLDERS[split]]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def class_folders(root: Path, split: str) -> ImageList:
    """List a split in ImageNet's layout, `root/split/class/image`.

    The images of a class are all below its folder, at any depth. Classes are numbered in the order of their
    names, as by torchvision's `ImageFolder`: "10" comes before "2".

    Raises:
        DataError: A folder is missing or empty, a class folder has no images, or there is one class alone.
    """
    found, left_out = list_classes(root, split)
    faults = class_faults(split_folder(root, split), found)
    if faults:
        raise DataError(faults[0])
    paths: list[Path] = []
    labels: list[int] = []
    for label, images in enumerate(found.values()):
        paths += images
        labels += [label] * len(images)
    return ImageList(root, tuple(paths), tuple(labels), tuple(found), left_out)


def class_faults(folder: Path, classes: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return a message for each fault of a split's class folders."""
    faults = [
        f"class folder {folder / name} has no images ({SUFFIXES}); add images or remove it."
        for name, images in classes.items()
        if not images
    ]
    if len(classes) == 1:
        faults.append(
            f"data folder {folder} has one class folder, {next(iter(classes))}, and a classifier needs two or more; "
            "if the classes are below it, move them up."
        )
    return faults


def list_classes(root: Path, split: str) -> tuple[dict[str, list[Path]], LeftOut]:
    """List the images of every class of a split, and what is left out of it.

    Raises:
        DataError: A folder is missing or has no class folders.
    """
    folder = split_folder(root, split)
    if not folder.is_dir():
        raise DataError(
            f"data folder {folder} does not exist; use a folder with train/ and val/, each with one folder "
            "per class."
        )
    names = sorted(list_folder(str(folder)).folders)
    if not names:
        raise DataError(
            f"data folder {folder} has no class folders; move the images to {folder}/CLASS/ (ImageNet's own archives "
            "have none: torchvision.datasets.ImageNet creates them)."
        )
    found: dict[str, list[Path]] = {name: [] for name in names}
    outside: list[Path] = []
    images, left_out = list_tree(folder)
    for path in images:
        found.get(path.parts[len(folder.parts)], outside).append(path)
    stray = tuple(str(path.relative_to(folder)) for path in outside)
    return found, replace(left_out, outside=stray)


def any_images(data: Path) -> ImageSource:
    """Open images of any layout for pretraining, all with one class.

    Args:
        data: a folder of images or of tar shards (its `train/` or `training/` folder, if it has one), a tar file, or
            `hfds:NAME`, the "train" split of a Hugging Face dataset by name or folder.

    Raises:
        DataError: The data are missing, have no images, or are validation images alone.
        MissingFrameworkError: The package `datasets` is not installed.
    """
    if str(data).startswith(HUB_PREFIX):
        return hub_images(str(data).removeprefix(HUB_PREFIX), "train")
    if data.is_file() and data.suffix == ".tar":
        return tar_shards([data])
    train, val = (split_folder(data, split) for split in ("train", "val"))
    if val.is_dir() and not train.is_dir():
        raise DataError(
            f"data folder {data} has {val.name}/ but no train/, so the held-out images would be trained on; add "
            "train/, or name the folder of training images itself."
        )
    return _folder_images(train if train.is_dir() else data, data)


def _folder_images(folder: Path, root: Path) -> ImageSource:
    """Open the tar shards of a folder, or else the images below it.

    Args:
        root: the folder that names in the fingerprint are relative to.
    """
    if not folder.is_dir():
        raise DataError(
            f"data folder {folder} does not exist; use a folder of images or of tar shards, a tar file, or "
            f"{HUB_PREFIX}NAME."
        )
    shards = sorted(path for path in folder.glob("*.tar") if not is_hidden(path.name))
    paths, left_out = list_tree(folder)
    if shards:
        names = {shard.name for shard in shards}
        files = tuple(name for name in left_out.files if name not in names)
        stray = tuple(str(path.relative_to(folder)) for path in paths)
        return tar_shards(shards, replace(left_out, files=files, outside=stray))
    if not paths:
        raise DataError(
            f"data folder {folder} has no images ({SUFFIXES}) and no *.tar{left_out.only()}; use another folder."
        )
    return ImageList(root, tuple(paths), (0,) * len(paths), ("image",), left_out)


def held_out_images(data: Path) -> ImageSource | None:
    """Open the validation images, if any: `val/`, or the "validation" split of a Hugging Face dataset."""
    if str(data).startswith(HUB_PREFIX):
        try:
            return hub_images(str(data).removeprefix(HUB_PREFIX), "validation")
        except DataError:
            return None
    folder = split_folder(data, "val")
    return _folder_images(folder, folder) if folder.is_dir() else None


def check_same_classes(train: ImageList, val: ImageList) -> None:
    """Check that both splits have the same class folders.

    Raises:
        DataError: Some classes are in one split only; the message names them.
    """
    faults = unshared_classes(train.classes, val.classes)
    if faults:
        raise DataError(f"data folder {train.root}: {faults[0]}")


def unshared_classes(train: Sequence[str], val: Sequence[str]) -> list[str]:
    """Return a message for each split that has class folders which the other one lacks."""
    faults = []
    for split, here, other, there in (("train", train, "val", val), ("val", val, "train", train)):
        unshared = sorted(set(here) - set(there))
        if not unshared:
            continue
        missing = f"{len(unshared):,} classes of" if len(unshared) > 1 else "1 class of"
        verb = "are" if len(unshared) > 1 else "is"
        alike = {_plain(name): name for name in there if name not in here}
        similar = [f"{n!r} and {alike[_plain(n)]!r}" for n in unshared if _plain(n) in alike]
        hint = f" ({similar[0]} differ in case or spaces)" if similar else ""
        faults.append(
            f"{missing} {split}/ {verb} missing in {other}/: {', '.join(unshared[:5])}"
            f"{', …' if len(unshared) > 5 else ''}{hint}; use the same class folders in both."
        )
    return faults


def _plain(name: str) -> str:
    return "".join(name.split()).casefold()


def describe_left_out(images: ImageSource, split: str) -> list[str]:
    """Return the log lines of what lies with the images of a split and is not read; mostly none."""
    return [f"data: {split}: {images.left_out.describe()}"] if images.left_out else []
