"""Find the files of Pascal VOC's layout: the annotations that its lists name, and the image of an annotation.

An image list has one name per line, without a suffix; names may have folders and spaces, as CVAT's have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from simmim_bench.data.listing import list_tree
from simmim_bench.errors import DataError
from simmim_bench.untrusted.paths import join_below
from simmim_bench.untrusted.tables import read_text_lines
from simmim_bench.untrusted.text import shorten, visible

LISTS = ("Main", "Segmentation", "Layout", "Action")  # folders of ImageSets
WHOLE = (
    "train",
    "val",
    "trainval",
    "test",
)  # splits of the devkit, which has lists of single classes for each
FLAGS = (
    "-1",
    "0",
    "1",
)  # of an image in a list of a class: without an object of it, difficult ones only, with one


def list_voc(
    root: Path, folder: str = "Annotations", suffix: str = ".xml", *, all_exist: bool = True
) -> dict[str, list[str]]:
    """Return the names of annotated images by split, from the lists in `ImageSets`; of all files where it has none.

    Args:
        folder: the folder of the annotations.
        suffix: that of an annotation.
        all_exist: whether to refuse a list that names an annotation which does not exist; otherwise it is returned.

    Raises:
        DataError: a list names a file that does not exist, twice, or outside of the folder.
    """
    kinds = LISTS if suffix == ".xml" else ("Segmentation", *LISTS)
    files = next((found for kind in kinds if (found := _lists(root / "ImageSets" / kind))), {})
    if not files:
        paths = sorted((root / folder).rglob(f"*{suffix}"))
        return {"all": [stem_below(path, root / folder) for path in paths]}
    return {
        path.stem: list(_listed(path, root / folder, suffix, all_exist)) for path in files.values()
    }


def _lists(folder: Path) -> dict[str, Path]:
    """Return the lists of images in a folder by split, without the devkit's lists of single classes."""
    paths = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    return {name: path for name, path in paths.items() if not _is_per_class(path, paths)}


def _is_per_class(path: Path, others: Collection[str]) -> bool:
    """Return whether a list says which images of another list have a class, as the devkit's `car_train.txt` does.

    A split may be called `city_train`: a list of a class ends in a flag on every line, next to the list of its split.
    """
    split = path.stem.rpartition("_")[2]
    if split == path.stem or split not in WHOLE or split not in others:
        return False
    lines = [line for line in read_text_lines(path, "image list") if line]
    return all(line.split()[-1] in FLAGS for line in lines)


def _listed(path: Path, folder: Path, suffix: str, all_exist: bool) -> Iterator[str]:
    """Yield the names in a list of images."""
    seen = set()
    for number, line in enumerate(read_text_lines(path, "image list"), 1):
        if not line:
            continue
        name = line.replace("\\", "/")
        file = join_below(folder, f"{name}{suffix}", f"line {number} of image list {path}")
        # Lists of the devkit may have a second column, of -1, 0 and 1.
        first, _, flag = name.rpartition(" ")
        first = first.strip()
        if flag in FLAGS and (folder / f"{first}{suffix}").is_file():
            name = first
        elif all_exist and not file.is_file():
            raise DataError(
                f"line {number} of image list {path} names {visible(shorten(line, 80))}, but {file} does not exist; "
                "add it or remove the line."
            )
        if name in seen:
            raise DataError(
                f"line {number} of image list {path} names {visible(shorten(name, 80))} for the second time; remove it."
            )
        seen.add(name)
        yield name


def stem_below(path: Path, folder: Path) -> str:
    """Return a file's path below a folder, without its suffix."""
    return path.relative_to(folder).with_suffix("").as_posix()


class ImageFinder:
    """Finds the images of a folder by their path without a suffix, or with one of any case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_stem: dict[str, list[Path]] = {}
        self.images = list_tree(folder).images
        for path in self.images:
            self.by_stem.setdefault(stem_below(path, folder), []).append(path)

    def find(self, stem: str, filename: str, xml: Path) -> Path:
        """Return the image of an XML file.

        Args:
            stem: the XML file's path without a suffix.
            filename: that in the XML file; empty if it has none.

        Raises:
            DataError: the image does not exist, is ambiguous, or is named outside of the folder.
        """
        named = filename.replace("\\", "/")
        found = self.by_stem.get(stem, [])
        if len(found) > 1:
            found = [path for path in found if path.name == named.rpartition("/")[2]]
        if not found and named:
            path = join_below(self.folder, named, f"filename in {xml}")
            found = [path] if path.is_file() else []
        if len(found) != 1:
            raise DataError(
                f"annotation {xml} has no image {self.folder / stem}.jpg, .png or another suffix"
                + (f", and no {visible(shorten(named, 80))}" if named else "")
                + "; add it or remove the annotation."
            )
        return found[0]
