"""List the image files of a folder tree; the listing of a large tree is cached in an index."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from simmim_bench.errors import DataError
from simmim_bench.files import write_text

# File suffixes, and the formats of Pillow that they stand for.
IMAGE_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".ppm": "PPM",
}
INDEX_MIN_FILES = 50_000  # smaller trees are not indexed: listing them takes a second


def list_images(folder: Path) -> list[Path]:
    """List all images below a folder, sorted; links are followed.

    The index of a large tree is cached. Only folders that changed since are listed again: a folder's
    modification time changes whenever a file is added or removed.

    Raises:
        DataError: A folder cannot be listed.
    """
    index = _index_path(folder)
    known = _read_index(index)
    found: dict[str, list[Any]] = {}
    pending = [""]
    while pending:
        relative = pending.pop()
        path = os.path.join(folder, relative)
        modified = _modification_time(path)
        entry = known.get(relative)
        if entry is None or entry[0] != modified:
            entry = [modified, *list_folder(path)]
        found[relative] = entry
        pending += [os.path.join(relative, name) for name in entry[1]]
    count = sum(len(files) for _, _, files in found.values())
    if count >= INDEX_MIN_FILES and found != known:
        with suppress(DataError):  # without a writable cache, the tree is listed every time
            write_text(index, json.dumps(found, separators=(",", ":")))
    return sorted(
        Path(folder, relative, file) for relative, (_, _, files) in found.items() for file in files
    )


def list_folder(folder: str) -> tuple[list[str], list[str]]:
    """Return the names of a folder's subfolders and of its images.

    Raises:
        DataError: The folder cannot be listed.
    """
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in IMAGE_FORMATS:
                    images.append(entry.name)
    except OSError as error:
        raise _listing_error(folder, error) from error
    return folders, images


def _modification_time(folder: str) -> int:
    """Return a folder's modification time in nanoseconds."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError as error:
        raise _listing_error(folder, error) from error


def _listing_error(folder: str, error: OSError) -> DataError:
    return DataError(
        f"data folder {folder} cannot be listed: {error.strerror}; grant read permission or remove it."
    )


def _index_path(folder: Path) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return Path(cache, "simmim-bench", f"index-{key}.json")


def _read_index(path: Path) -> dict[str, list[Any]]:
    """Read an index: modification time, subfolders and images by folder; empty if missing or damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {
            folder: [time, [*folders], [*files]] for folder, (time, folders, files) in known.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
