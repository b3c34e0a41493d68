"""List the image files of a folder tree and what is left out; the listing of a large tree is cached in an index.

A file is an image if its suffix is one of `IMAGE_FORMATS`, in upper or lower case. Hidden files and folders, and
those that operating systems and file servers add, hold copies and thumbnails, and are never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from simmim_bench.data.names import FileNames, PathList
from simmim_bench.display import first_names
from simmim_bench.errors import DataError
from simmim_bench.files import write_text

# File suffixes, and the formats of Pillow that they stand for: those of torchvision's IMG_EXTENSIONS
# (datasets/folder.py) and the others of photographs and scans that Pillow decodes without external programs.
IMAGE_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".dib": "DIB",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".jpx": "JPEG2000",
    ".avif": "AVIF",
}
# Of macOS archives, Synology servers, ext4, Windows. Names that begin with a dot are hidden as well.
SYSTEM_NAMES = {
    "__macosx",
    "@eadir",
    "lost+found",
    "$recycle.bin",
    "system volume information",
    "thumbs.db",
    "desktop.ini",
}
SUFFIXES = ", ".join(IMAGE_FORMATS)
# A change so soon after another one may leave the modification time as it was: FAT counts in steps of 2 s, and file
# servers in steps of 1 s.
SETTLED_NS = 2 * 10**9
INDEX_MIN_FILES = 50_000  # smaller trees are not indexed: listing them takes a second


def is_image(name: str) -> bool:
    """Return whether a file is read as an image, by its name: not hidden, and of a known suffix."""
    return suffix_of(name) in IMAGE_FORMATS and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden or the operating system's, by its name without folders."""
    base = PurePath(name).name if "/" in name else name  # a PurePath takes longer than the rest
    return base.startswith(".") or base.lower() in SYSTEM_NAMES


def suffix_of(name: str) -> str:
    """Return a file's suffix in lower case, with its dot; empty if it has none."""
    return os.path.splitext(name)[1].lower()


@dataclass(frozen=True)
class LeftOut:
    """Files and folders that are not read.

    Attributes:
        files: files that are no images that can be read, by their paths below the listed folder, sorted.
        hidden: hidden files and folders, and links to a folder that contains them, likewise.
        outside: images that are not where the layout has its images, likewise.
    """

    files: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files or self.hidden or self.outside)

    def describe(self) -> str:
        """Return their number and some names, by suffix, in one line; empty if there are none."""
        parts = []
        if self.files:
            verb = "files are not images" if len(self.files) > 1 else "file is not an image"
            parts.append(
                f"{len(self.files):,} {verb} that can be read: {_count_suffixes(self.files)}"
            )
        if self.hidden:
            verb = "entries are" if len(self.hidden) > 1 else "entry is"
            parts.append(f"{len(self.hidden):,} hidden {verb} not read: {first_names(self.hidden)}")
        if self.outside:
            verb = "images are" if len(self.outside) > 1 else "image is"
            parts.append(
                f"{len(self.outside):,} {verb} outside of the class folders or shards and not used: "
                f"{first_names(self.outside)}"
            )
        return "; ".join(parts)

    def only(self) -> str:
        """Return what a message says of a place that has nothing else."""
        return f", only this: {self.describe()}" if self else ""


def _count_suffixes(names: Iterable[str]) -> str:
    by_suffix = defaultdict(list)
    for name in names:
        by_suffix[suffix_of(name) or "no suffix"].append(PurePath(name).name)
    ordered = sorted(by_suffix.items(), key=lambda item: (-len(item[1]), item[0]))
    return ", ".join(f"{suffix} {len(found):,} ({first_names(found)})" for suffix, found in ordered)


def hash_names_and_sizes(named_sizes: Iterator[tuple[str, int]]) -> str:
    """Hash names and sizes in bytes, in their order: SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    for name, size in named_sizes:
        # A name that is not UTF-8 is hashed as the bytes that it has on disk.
        digest.update(f"{name} {size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class Listing(NamedTuple):
    """The images below a folder, sorted, and what is left out there."""

    images: PathList
    left_out: LeftOut


class Folder(NamedTuple):
    """The names of what a folder holds: its subfolders, images, other files, and hidden entries."""

    folders: list[str]
    images: list[str]
    others: list[str]
    hidden: list[str]


def list_tree(folder: Path) -> Listing:
    """List all images below a folder and what is left out; links are followed.

    The index of a large tree is cached. Only folders that changed since are listed again: a folder's
    modification time changes whenever a file is added or removed. Sizes of files, which change without it, are not
    in the index.

    Raises:
        DataError: A folder cannot be listed.
    """
    index, now = _index_path(folder), time.time_ns()
    known = _read_index(index)
    found: dict[str, tuple[int, Folder]] = {}
    loops: list[str] = []
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        relative, parents = pending.pop()
        path = os.path.join(folder, relative)
        status = _stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in parents:  # a link to a folder that contains it
            loops.append(relative)
            continue
        entry = known.get(relative)
        if entry is None or entry[0] != status.st_mtime_ns:
            entry = (status.st_mtime_ns, list_folder(path))
        found[relative] = entry
        inside = parents | {identity}
        pending += [(os.path.join(relative, name), inside) for name in entry[1].folders]
    count = sum(len(content.images) for _, content in found.values())
    settled = {name: entry for name, entry in found.items() if entry[0] < now - SETTLED_NS}
    if count >= INDEX_MIN_FILES and settled != known:
        with suppress(DataError):  # without a writable cache, the tree is listed every time
            write_text(index, json.dumps(settled, separators=(",", ":")))

    def below(names: dict[str, list[str]]) -> tuple[str, ...]:
        return tuple(
            sorted(os.path.join(r, name) for r, inside in names.items() for name in inside)
        )

    others = below({relative: content.others for relative, (_, content) in found.items()})
    hidden = below({relative: content.hidden for relative, (_, content) in found.items()})
    images = sorted(
        (
            os.path.join(relative, name)
            for relative, (_, content) in found.items()
            for name in content.images
        ),
        key=_path_order,
    )
    left_out = LeftOut(others, tuple(sorted((*hidden, *loops))))
    return Listing(PathList(folder, FileNames.pack(images)), left_out)


def _path_order(name: str) -> str:
    """Return a key that sorts as `Path` does, by the folders of a path: "a/z" comes before "a-b/c"."""
    return name.replace("/", "\0")  # the one character that no name has and that sorts before all


def list_folder(folder: str) -> Folder:
    """List what a folder holds, by name.

    Raises:
        DataError: The folder cannot be listed.
    """
    found = Folder([], [], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    found.hidden.append(entry.name)
                elif entry.is_dir():
                    found.folders.append(entry.name)
                elif is_image(entry.name):
                    found.images.append(entry.name)
                else:
                    found.others.append(entry.name)
    except OSError as error:
        raise _listing_error(folder, error) from error
    return found


def _stat(folder: str) -> os.stat_result:
    """Return a folder's modification time and identity."""
    try:
        return os.stat(folder)
    except OSError as error:
        raise _listing_error(folder, error) from error


def _listing_error(folder: str, error: OSError) -> DataError:
    return DataError(
        f"data folder {folder} cannot be listed: {error.strerror}; grant read permission or remove it."
    )


def _index_path(folder: Path) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # An index of other suffixes is another one.
    key = os.fsencode(folder.resolve()) + "".join(IMAGE_FORMATS).encode()
    return Path(cache, "simmim-bench", f"index-{hashlib.sha256(key).hexdigest()[:16]}.json")


def _read_index(path: Path) -> dict[str, tuple[int, Folder]]:
    """Read an index: modification time and content by folder; empty if missing or damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {
            folder: (time, Folder(*([*names] for names in content)))
            for folder, (time, content) in known.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
