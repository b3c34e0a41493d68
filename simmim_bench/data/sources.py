"""Where images come from: class folders, flat folders, tar shards, Hugging Face datasets.

In: what `--data` names. Out: an `ImageSource`, which gives the bytes of any image by its number, from any
process, and a fingerprint of all. Nothing is decoded here.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from simmim_bench.errors import DataError, MissingFrameworkError
from simmim_bench.files import write_text

FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".ppm": "PPM",
}
HUB = "hfds:"  # then the name or folder of a Hugging Face dataset
INDEXED = 50_000  # files of a tree from which on its index is kept: listing fewer takes a second


class ImageSource(Protocol):
    """A numbered list of images, as bytes."""

    @property
    def labels(self) -> Sequence[int]:
        """The class of every image."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Give an image's file content."""

    def name(self, index: int) -> str:
        """Say which image it is, in an error message."""

    def subset(self, indices: Sequence[int]) -> ImageSource:
        """Keep some images, in the order of `indices`; the classes stay."""

    def fingerprint(self) -> str:
        """Hash all images' names and sizes: SHA-256 in hexadecimal."""


def _digest(named_sizes: Iterator[tuple[str, int]]) -> str:
    digest = hashlib.sha256()
    for name, size in named_sizes:
        digest.update(f"{name} {size}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class ImageList:
    """Images in files of their own, sorted."""

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """Give an image's file content."""
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise DataError(
                f"image {self.paths[index]} cannot be read: {error.strerror}; replace it or remove it."
            ) from error

    def name(self, index: int) -> str:
        """Say which image it is."""
        return str(self.paths[index])

    def subset(self, indices: Sequence[int]) -> ImageList:
        """Keep some images, in the order of `indices`; the classes stay."""
        return ImageList(
            self.root,
            tuple(self.paths[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            self.classes,
        )

    def fingerprint(self) -> str:
        """Hash every image's path below the root and its size in bytes: SHA-256 in hexadecimal."""
        return _digest((p.relative_to(self.root).as_posix(), self._size(p)) for p in self.paths)

    def _size(self, path: Path) -> int:
        try:
            return path.stat().st_size
        except OSError as error:
            raise DataError(
                f"image {path} cannot be read: {error.strerror}; mend the link or remove it."
            ) from error


@dataclass(frozen=True)
class TarMember:
    """One image's place in a shard."""

    shard: int
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarShards:
    """Images in uncompressed tar files, as WebDataset writes them, read at their offsets.

    No file stays open and nothing is unpacked, so that any process may read any image in any order.
    """

    shards: tuple[Path, ...]
    members: tuple[TarMember, ...]
    classes: tuple[str, ...] = ("image",)

    @property
    def labels(self) -> tuple[int, ...]:
        """One class for all: pretraining asks for none."""
        return (0,) * len(self)

    def __len__(self) -> int:
        return len(self.members)

    def read(self, index: int) -> bytes:
        """Give an image's file content."""
        member = self.members[index]
        try:
            with open(self.shards[member.shard], "rb") as file:
                file.seek(member.offset)
                return file.read(member.size)
        except OSError as error:
            raise DataError(
                f"image {self.name(index)} cannot be read: {error.strerror}."
            ) from error

    def name(self, index: int) -> str:
        """Say which image it is."""
        member = self.members[index]
        return f"{self.shards[member.shard]}:{member.name}"

    def subset(self, indices: Sequence[int]) -> TarShards:
        """Keep some images, in the order of `indices`."""
        return replace(self, members=tuple(self.members[i] for i in indices))

    def fingerprint(self) -> str:
        """Hash every image's shard, name and size in bytes: SHA-256 in hexadecimal."""
        shards = [shard.name for shard in self.shards]
        return _digest((f"{shards[m.shard]}/{m.name}", m.size) for m in self.members)


@dataclass(frozen=True)
class HubImages:
    """Images of a Hugging Face dataset."""

    dataset: Any
    column: str
    what: str
    indices: Sequence[int]
    classes: tuple[str, ...] = ("image",)

    @property
    def labels(self) -> tuple[int, ...]:
        """One class for all: pretraining asks for none."""
        return (0,) * len(self)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes:
        """Give an image's file content."""
        image = self.dataset[self.indices[index]][self.column]
        content: bytes | None = image["bytes"]
        return Path(image["path"]).read_bytes() if content is None else content

    def name(self, index: int) -> str:
        """Say which image it is."""
        return f"{self.what}[{self.indices[index]}]"

    def subset(self, indices: Sequence[int]) -> HubImages:
        """Keep some images, in the order of `indices`."""
        return replace(self, indices=[self.indices[i] for i in indices])

    def fingerprint(self) -> str:
        """Hash the dataset's own fingerprint, which follows its content and every change to it."""
        return _digest(iter([(f"{self.what} {self.dataset._fingerprint}", len(self))]))


def class_folders(root: Path, split: str) -> ImageList:
    """List a split in ImageNet's layout, `root/split/class/image`.

    Raises:
        DataError: a folder is missing or empty, or a class folder has no images.
    """
    found, _ = list_classes(root, split)
    paths: list[Path] = []
    labels: list[int] = []
    for label, (name, images) in enumerate(found.items()):
        if not images:
            raise DataError(empty_class(root / split / name))
        paths += images
        labels += [label] * len(images)
    return ImageList(root, tuple(paths), tuple(labels), tuple(found))


def empty_class(folder: Path) -> str:
    """Say that a class folder has no images."""
    return f"class folder {folder} has no images ({', '.join(FORMATS)}); fill it or remove it."


def list_classes(root: Path, split: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """List the images of every class of a split, which may be none, and those that lie outside of all.

    Raises:
        DataError: a folder is missing or has no class folders.
    """
    folder = root / split
    if not folder.is_dir():
        raise DataError(
            f"data folder {folder} is not there; --data takes a folder with train/ and val/, a folder a class."
        )
    names = sorted(_list_folder(str(folder))[0])
    if not names:
        raise DataError(
            f"data folder {folder} has no class folders; put the images into {folder}/CLASS/."
        )
    found: dict[str, list[Path]] = {name: [] for name in names}
    outside: list[Path] = []
    for path in list_images(folder):
        found.get(path.parts[len(folder.parts)], outside).append(path)
    return found, outside


def any_images(data: Path) -> ImageSource:
    """List images of any layout for pretraining, all of one class.

    Args:
        data: a folder (its `train/` where it has one) of images or of tar shards, a tar file, or
            `hfds:NAME`, a Hugging Face dataset by name or folder (its split "train").

    Raises:
        DataError: it is missing or has no images.
        MissingEngineError: the package `datasets` is not installed.
    """
    if str(data).startswith(HUB):
        return _hub_images(str(data).removeprefix(HUB), "train")
    if data.is_file() and data.suffix == ".tar":
        return _tar_shards([data])
    folder = data / "train" if (data / "train").is_dir() else data
    if not folder.is_dir():
        raise DataError(
            f"data folder {folder} is not there; --data takes a folder of images or of tar shards, a tar "
            f"file, or {HUB}NAME."
        )
    shards = sorted(folder.glob("*.tar"))
    if shards:
        return _tar_shards(shards)
    paths = list_images(folder)
    if not paths:
        raise DataError(f"data folder {folder} has no images ({', '.join(FORMATS)}) and no *.tar.")
    return ImageList(data, tuple(paths), (0,) * len(paths), ("image",))


def held_out_images(data: Path) -> ImageSource | None:
    """List the images kept apart from training: `val/`, or a Hugging Face dataset's split "validation"."""
    if str(data).startswith(HUB):
        name = str(data).removeprefix(HUB)
        try:
            return _hub_images(name, "validation")
        except DataError:
            return None
    return any_images(data / "val") if (data / "val").is_dir() else None


def check_same_classes(train: ImageList, val: ImageList) -> None:
    """Refuse splits whose class folders differ.

    Raises:
        DataError: naming the classes that one of them lacks.
    """
    odd = sorted(set(train.classes) ^ set(val.classes))
    if odd:
        raise DataError(
            f"train/ and val/ of {train.root} have different classes: {', '.join(odd[:5])} "
            "is in one of them only; give both the same class folders."
        )


def list_images(folder: Path) -> list[Path]:
    """List all images below a folder, sorted; links are followed.

    The index of a large tree is kept, and only folders that changed since are listed again: a folder's
    time changes with every file that comes or goes.

    Raises:
        DataError: a folder that cannot be listed.
    """
    index = _index_path(folder)
    known = _read_index(index)
    seen: dict[str, list[Any]] = {}
    waiting = [""]
    while waiting:
        place = waiting.pop()
        here = os.path.join(folder, place)
        changed = _changed(here)
        entry = known.get(place)
        if entry is None or entry[0] != changed:
            entry = [changed, *_list_folder(here)]
        seen[place] = entry
        waiting += [os.path.join(place, name) for name in entry[1]]
    count = sum(len(files) for _, _, files in seen.values())
    if count >= INDEXED and seen != known:
        with suppress(DataError):  # a home that cannot be written: the tree is listed each time
            write_text(index, json.dumps(seen, separators=(",", ":")))
    return sorted(
        Path(folder, place, file) for place, (_, _, files) in seen.items() for file in files
    )


def _changed(folder: str) -> int:
    """Give the time at which a folder was last changed."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError as error:
        raise _not_listed(folder, error) from error


def _list_folder(folder: str) -> tuple[list[str], list[str]]:
    """Give the names of a folder's folders and of its images."""
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in FORMATS:
                    images.append(entry.name)
    except OSError as error:
        raise _not_listed(folder, error) from error
    return folders, images


def _not_listed(folder: str, error: OSError) -> DataError:
    return DataError(
        f"data folder {folder} cannot be listed: {error.strerror}; let this user read it, or remove it."
    )


def _index_path(folder: Path) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return Path(home, "simmim-bench", f"index-{key}.json")


def _read_index(path: Path) -> dict[str, list[Any]]:
    """Read a kept index: of every folder its time, its folders and its images; nothing where it is damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {
            place: [time, [*folders], [*files]] for place, (time, folders, files) in known.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _tar_shards(shards: Sequence[Path]) -> TarShards:
    """List the images in tar files.

    Raises:
        DataError: a shard cannot be read, is compressed, or none has images.
    """
    members = []
    for number, shard in enumerate(shards):
        try:
            with tarfile.open(shard, "r:") as archive:
                members += [
                    TarMember(number, m.name, m.offset_data, m.size)
                    for m in archive
                    if m.isfile() and PurePosixPath(m.name).suffix.lower() in FORMATS
                ]
        except (OSError, tarfile.TarError) as error:
            raise DataError(
                f"shard {shard} cannot be read as an uncompressed tar file: {error}."
            ) from error
    if not members:
        raise DataError(
            f"the shards {shards[0]}, ... ({len(shards)}) have no images ({', '.join(FORMATS)})."
        )
    return TarShards(tuple(shards), tuple(members))


def _hub_images(name: str, split: str) -> HubImages:
    try:
        import datasets
    except ImportError as error:
        raise MissingFrameworkError(
            f"{HUB}{name} needs the package datasets: pip install 'simmim-bench[hub]'."
        ) from error
    try:
        dataset = datasets.load_dataset(name, split=split)
    except Exception as error:  # its own, pyarrow's, fsspec's and the hub's: all say what is wrong
        raise DataError(f"dataset {name} ({split}) cannot be read: {error}") from error
    columns = [c for c, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise DataError(
            f"dataset {name} ({split}) has no column of images, only {', '.join(dataset.features)}."
        )
    encoded = dataset.cast_column(columns[0], datasets.Image(decode=False))
    return HubImages(encoded, columns[0], f"{name} ({split})", range(len(encoded)))
