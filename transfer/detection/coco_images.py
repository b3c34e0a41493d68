"""Find the image files of a COCO instances file, and their faults.

Exporters write other paths than those of the files: with a folder, absolute, as a URL, with Windows' separators. The
longest end of such a path that is a file in the image folder is taken. A path such as `../val2017/1.jpg` may name a
file of another folder of the data set, but none outside of the data folder. Symbolic links in the data folder are
followed: storage is often mounted that way. Images are turned upright by their EXIF orientation, as Detectron2 and
image viewers do; width and height of an entry are those of the upright image.
"""

from __future__ import annotations

import filecmp
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from simmim_bench.data.decode import SIDEWAYS, read_header
from simmim_bench.data.listing import is_image
from simmim_bench.errors import DataError
from simmim_bench.untrusted.text import visible


def resolve_names(content: dict[str, Any], images: Path) -> int:
    """Replace the `file_name`s by the paths of the files relative to the image folder, where they are found.

    Args:
        content: of the annotation file; changed in place.
        images: the image folder.

    Returns:
        The number of names that were replaced.
    """
    present = set(os.listdir(images))  # one listing: 118,000 single checks are slow on a network
    lower = {"": {name.lower(): name for name in present}}
    replaced = 0
    for entry in content["images"]:
        name = entry["file_name"]
        if name in present:
            continue
        found = _find(name, images, lower)
        if found is not None:
            entry["file_name"] = found
            replaced += found != os.path.normpath(name)
    return replaced


def _find(name: str, images: Path, lower: dict[str, dict[str, str]]) -> str | None:
    """Return the longest end of a path that is a file in the image folder, in any case of its last part.

    Args:
        lower: names by their lower case, of each folder below `images` that was listed before.
    """
    if _is_file(images, name):
        return os.path.normpath(name)
    if "://" in name:
        name = unquote(urlsplit(name).path)
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for first in range(len(parts)):
        end = "/".join(parts[first:])
        if _is_file(images, end):
            return end
    for first in range(len(parts)):
        folder = "/".join(parts[first:-1])
        if folder not in lower:
            lower[folder] = _lower_names(images, folder)
        found = lower[folder].get(parts[-1].lower())
        if found is not None:
            return f"{folder}/{found}" if folder else found
    return None


def _lower_names(images: Path, folder: str) -> dict[str, str]:
    """Return the names of the files in a folder below the image folder by their lower case."""
    try:
        names = os.listdir(images / folder)
    except (OSError, ValueError):  # it does not exist, or no folder can have this name
        return {}
    return {name.lower(): name for name in names if _is_file(images, f"{folder}/{name}")}


def image_faults(path: Path, content: dict[str, Any], images: Path) -> Iterator[str]:
    """Yield a message if images of an annotation file are not on disk, or belong to several entries.

    Args:
        content: with the names that `resolve_names` found.
        images: the image folder.
    """
    if not images.is_dir():
        yield f"image folder {images} does not exist; {path} refers to the images in it."
        return
    missing = missing_images(content, images)
    outside = [name for name in missing if os.path.isfile(os.path.join(images, name))]
    if outside:
        yield (
            f"{path}: image {visible(outside[0])} is outside of the data folder {images.parent} ({len(outside)} such "
            "images); copy it there."
        )
    elif missing:
        yield (
            f"image {images / missing[0]} does not exist ({len(missing)} of the {len(content['images'])} images of "
            f"{path} are missing); add them or remove their entries."
        )
    shared = [
        n for n, count in Counter(e["file_name"] for e in content["images"]).items() if count > 1
    ]
    if shared:
        ids = [entry["id"] for entry in content["images"] if entry["file_name"] == shared[0]]
        yield (
            f"{path}: image {shared[0]} has {len(ids)} entries, with ids {ids[0]} and {ids[1]} ({len(shared)} images "
            "have several), so that objects of one are background of the other; merge them."
        )


def missing_images(content: dict[str, Any], images: Path) -> list[str]:
    """Return the names of the images that are not on disk."""
    present = set(os.listdir(images))
    names = [image["file_name"] for image in content["images"]]
    return [n for n in names if n not in present and not _is_file(images, n)]


def _is_file(images: Path, name: str) -> bool:
    """Return whether a file exists in the data folder; False for names that no file can have."""
    path = os.path.abspath(os.path.join(images, name))
    return Path(path).is_relative_to(os.path.abspath(images.parent)) and os.path.isfile(path)


def unused_images(content: Mapping[str, Any], images: Path) -> list[str]:
    """Return the names of the images that have no entry, sorted; those in subfolders are not listed."""
    used = {entry["file_name"] for entry in content["images"]}
    names = sorted(os.listdir(images))
    return [n for n in names if n not in used and is_image(n)]


def shared_images(
    train: Mapping[str, Any], val: Mapping[str, Any], folders: tuple[Path, Path]
) -> list[str]:
    """Return the names of the validation images that are also training images, with the same content."""
    names = {entry["file_name"] for entry in train["images"]}
    found = []
    for entry in val["images"]:
        name = entry["file_name"]
        if name in names:
            one, other = (folder / name for folder in folders)
            if one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False):
                found.append(name)
    return found


def check_size(entry: Mapping[str, Any], images: Path) -> int:
    """Compare the size in an image's header with its entry.

    Returns:
        The image's EXIF orientation; 1 if it is upright.

    Raises:
        DataError: the sizes differ.
    """
    path = images / entry["file_name"]
    try:
        stored, orientation = read_header(path)
    except DataError:  # reported where the image is decoded
        return 1
    upright = stored[::-1] if orientation in SIDEWAYS else stored
    if (entry["width"], entry["height"]) != upright:
        raise size_error(path, upright, stored, entry)
    return orientation


def check_decoded_size(entry: Mapping[str, Any], images: Path, size: tuple[int, int]) -> None:
    """Compare the size (H, W) of a decoded, upright image with its entry.

    Raises:
        DataError: the sizes differ.
    """
    if size == (entry["height"], entry["width"]):
        return
    check_size(entry, images)  # whose message tells of an EXIF orientation
    upright = size[::-1]
    raise size_error(images / entry["file_name"], upright, upright, entry)


def size_error(
    path: Path, upright: tuple[int, int], stored: tuple[int, int], entry: Mapping[str, Any]
) -> DataError:
    """Return the error for an image whose size is not that of its entry.

    Args:
        upright, stored: (width, height) of the image turned upright, and of its stored pixels.
    """
    wanted = (entry["width"], entry["height"])
    size = f"{upright[0]} x {upright[1]} pixels"
    if wanted == stored:
        return DataError(
            f"image {path} is {size} once it is turned upright by its EXIF orientation, but its entry in the "
            f"annotations has the size before, {wanted[0]} x {wanted[1]}. If its objects were annotated upright, "
            "correct the entry; if they were annotated on the stored pixels, remove the orientation from the file."
        )
    return DataError(
        f"image {path} is {size}, but its entry in the annotations is {wanted[0]} x {wanted[1]}; correct one of them."
    )


def describe_turned(count: int, images: Path) -> str:
    """Return what is reported of images with an EXIF orientation."""
    return (
        f"{count:,} images of {images} have an EXIF orientation: they are turned upright, as Detectron2 and image "
        "viewers do, and their annotations must have been made upright"
    )
