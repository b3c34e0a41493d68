"""Open the images that `--data` names: class folders, flat folders, tar shards, Hugging Face datasets.

An `ImageSource` returns the encoded bytes of any image by its index, in any process, and a fingerprint of all
images. It does not decode images.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from simmim_bench.data.listing import IMAGE_FORMATS, list_folder, list_images
from simmim_bench.errors import DataError, MissingFrameworkError

HUB_PREFIX = "hfds:"  # followed by the name or folder of a Hugging Face dataset
SUFFIXES = ", ".join(IMAGE_FORMATS)


class ImageSource(Protocol):
    """An indexed list of encoded images."""

    @property
    def labels(self) -> Sequence[int]:
        """The class of every image."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Return the content of an image file."""

    def name(self, index: int) -> str:
        """Return the name of an image, for error messages."""

    def subset(self, indices: Sequence[int]) -> ImageSource:
        """Return a source of some images, in the order of `indices`, with the same classes."""

    def fingerprint(self) -> str:
        """Hash the names and sizes of all images: SHA-256 in hexadecimal."""


def _hash_names_and_sizes(named_sizes: Iterator[tuple[str, int]]) -> str:
    digest = hashlib.sha256()
    for name, size in named_sizes:
        digest.update(f"{name} {size}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class ImageList:
    """Images in separate files, sorted."""

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """Return the content of an image file."""
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise DataError(
                f"image {self.paths[index]} cannot be read: {error.strerror}; replace it or remove it."
            ) from error

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
        )

    def fingerprint(self) -> str:
        """Hash every image's path relative to the root and its size in bytes: SHA-256 in hexadecimal."""
        return _hash_names_and_sizes(
            (path.relative_to(self.root).as_posix(), self._size(path)) for path in self.paths
        )

    def _size(self, path: Path) -> int:
        try:
            return path.stat().st_size
        except OSError as error:
            raise DataError(
                f"image {path} cannot be read: {error.strerror}; fix the link or remove it."
            ) from error


@dataclass(frozen=True)
class TarMember:
    """Position of an image in a shard, in bytes."""

    shard: int
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarShards:
    """Images in uncompressed tar files, as WebDataset writes them, read at their offsets.

    Files are not kept open and nothing is unpacked, so that any process can read any image in any order.
    """

    shards: tuple[Path, ...]
    members: tuple[TarMember, ...]
    classes: tuple[str, ...] = ("image",)

    @property
    def labels(self) -> tuple[int, ...]:
        """One class for all images: pretraining does not use labels."""
        return (0,) * len(self)

    def __len__(self) -> int:
        return len(self.members)

    def read(self, index: int) -> bytes:
        """Return the content of an image file."""
        member = self.members[index]
        try:
            with open(self.shards[member.shard], "rb") as file:
                file.seek(member.offset)
                return file.read(member.size)
        except OSError as error:
            raise DataError(
                f"image {self.name(index)} cannot be read: {error.strerror}; use another copy of the shard."
            ) from error

    def name(self, index: int) -> str:
        """Return the shard and the name of an image."""
        member = self.members[index]
        return f"{self.shards[member.shard]}:{member.name}"

    def subset(self, indices: Sequence[int]) -> TarShards:
        """Return a source of some images, in the order of `indices`."""
        return replace(self, members=tuple(self.members[i] for i in indices))

    def fingerprint(self) -> str:
        """Hash every image's shard, name and size in bytes: SHA-256 in hexadecimal."""
        shards = [shard.name for shard in self.shards]
        return _hash_names_and_sizes((f"{shards[m.shard]}/{m.name}", m.size) for m in self.members)


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
        """One class for all images: pretraining does not use labels."""
        return (0,) * len(self)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes:
        """Return the content of an image file."""
        image = self.dataset[self.indices[index]][self.column]
        content: bytes | None = image["bytes"]
        return Path(image["path"]).read_bytes() if content is None else content

    def name(self, index: int) -> str:
        """Return the dataset and the row of an image."""
        return f"{self.what}[{self.indices[index]}]"

    def subset(self, indices: Sequence[int]) -> HubImages:
        """Return a source of some images, in the order of `indices`."""
        return replace(self, indices=[self.indices[i] for i in indices])

    def fingerprint(self) -> str:
        """Hash the dataset's own fingerprint, which depends on its content and every transformation."""
        return _hash_names_and_sizes(
            iter([(f"{self.what} {self.dataset._fingerprint}", len(self))])
        )


def class_folders(root: Path, split: str) -> ImageList:
    """List a split in ImageNet's layout, `root/split/class/image`.

    Raises:
        DataError: A folder is missing or empty, or a class folder has no images.
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
    """Return the message for a class folder without images."""
    return f"class folder {folder} has no images ({SUFFIXES}); add images or remove it."


def list_classes(root: Path, split: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """List the images of every class of a split, and the images outside of the class folders.

    Raises:
        DataError: A folder is missing or has no class folders.
    """
    folder = root / split
    if not folder.is_dir():
        raise DataError(
            f"data folder {folder} does not exist; use a folder with train/ and val/, each with one folder "
            "per class."
        )
    names = sorted(list_folder(str(folder))[0])
    if not names:
        raise DataError(
            f"data folder {folder} has no class folders; move the images to {folder}/CLASS/."
        )
    found: dict[str, list[Path]] = {name: [] for name in names}
    outside: list[Path] = []
    for path in list_images(folder):
        found.get(path.parts[len(folder.parts)], outside).append(path)
    return found, outside


def any_images(data: Path) -> ImageSource:
    """Open images of any layout for pretraining, all with one class.

    Args:
        data: a folder of images or of tar shards (its `train/` folder, if it has one), a tar file, or
            `hfds:NAME`, the "train" split of a Hugging Face dataset by name or folder.

    Raises:
        DataError: The data are missing or have no images.
        MissingFrameworkError: The package `datasets` is not installed.
    """
    if str(data).startswith(HUB_PREFIX):
        return _hub_images(str(data).removeprefix(HUB_PREFIX), "train")
    if data.is_file() and data.suffix == ".tar":
        return _tar_shards([data])
    folder = data / "train" if (data / "train").is_dir() else data
    if not folder.is_dir():
        raise DataError(
            f"data folder {folder} does not exist; use a folder of images or of tar shards, a tar file, or "
            f"{HUB_PREFIX}NAME."
        )
    shards = sorted(folder.glob("*.tar"))
    if shards:
        return _tar_shards(shards)
    paths = list_images(folder)
    if not paths:
        raise DataError(
            f"data folder {folder} has no images ({SUFFIXES}) and no *.tar; use another folder."
        )
    return ImageList(data, tuple(paths), (0,) * len(paths), ("image",))


def held_out_images(data: Path) -> ImageSource | None:
    """Open the validation images, if any: `val/`, or the "validation" split of a Hugging Face dataset."""
    if str(data).startswith(HUB_PREFIX):
        try:
            return _hub_images(str(data).removeprefix(HUB_PREFIX), "validation")
        except DataError:
            return None
    return any_images(data / "val") if (data / "val").is_dir() else None


def check_same_classes(train: ImageList, val: ImageList) -> None:
    """Check that both splits have the same class folders.

    Raises:
        DataError: Some classes are in one split only; the message names them.
    """
    different = sorted(set(train.classes) ^ set(val.classes))
    if different:
        raise DataError(
            f"train/ and val/ of {train.root} have different classes: {', '.join(different[:5])} "
            "exist in one of them only; use the same class folders in both."
        )


def _tar_shards(shards: Sequence[Path]) -> TarShards:
    """List the images in tar files.

    Raises:
        DataError: A shard cannot be read or is compressed, or no shard has images.
    """
    members = []
    for number, shard in enumerate(shards):
        try:
            with tarfile.open(shard, "r:") as archive:
                members += [
                    TarMember(number, m.name, m.offset_data, m.size)
                    for m in archive
                    if m.isfile() and PurePosixPath(m.name).suffix.lower() in IMAGE_FORMATS
                ]
        except (OSError, tarfile.TarError) as error:
            raise DataError(
                f"shard {shard} cannot be read as an uncompressed tar file: {error}; write it without compression."
            ) from error
    if not members:
        raise DataError(
            f"the {len(shards)} shards {shards[0]}, ... have no images ({SUFFIXES}); use other shards."
        )
    return TarShards(tuple(shards), tuple(members))


def _hub_images(name: str, split: str) -> HubImages:
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
