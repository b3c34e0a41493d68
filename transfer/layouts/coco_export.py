"""Read COCO exports: of Roboflow, of CVAT, and other folders with COCO instances files.

    Roboflow       {train,valid,test}/_annotations.coco.json, the images next to it
    CVAT COCO 1.0  annotations/instances_{default,SUBSET}.json, images/[SUBSET/]
    others         [annotations/]NAME.json, the images in SPLIT/, images/[SPLIT/] or next to it

Annotations are kept as they are. Damaged files and those that a run would misread are refused, by the functions and in
the words of a run (`transfer/detection`); what a run can skip is left for it to report.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simmim_bench.display import Display, plural
from simmim_bench.errors import DataError, UsageError
from simmim_bench.untrusted.text import visible
from transfer.detection.coco_faults import category_faults, crowd_faults
from transfer.detection.coco_images import check_size
from transfer.detection.coco_layout import ROBOFLOW_FILE, read_split_file, refuse
from transfer.layouts.source import ObjectData, ObjectSplit

INSTANCES = re.compile(r"instances_(.+)\.json")


def roboflow_files(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the annotation file and the image folder of each split of a Roboflow export; empty where it is none."""
    return {
        path.parent.name: (path, path.parent) for path in sorted(root.glob(f"*/{ROBOFLOW_FILE}"))
    }


def cvat_files(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the annotation file and the image folder of each split of a CVAT export; empty where it is none."""
    images = root / "images"
    if not images.is_dir():
        return {}
    return {
        name: (path, images / name if (images / name).is_dir() else images)
        for name, path in _instances(root / "annotations")
    }


def coco_files(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the annotation file and the image folder of each split of another folder; empty where it has none."""
    found = dict(_instances(root / "annotations"))
    if not found:
        paths = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])
        found = {path.stem: path for path in paths if not path.name.startswith(".")}
    split_of = {name: re.sub(r"^(_?annotations?|instances)[._]", "", name) for name in found}
    return {name: (path, _image_folder(root, split_of[name])) for name, path in found.items()}


def _instances(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.glob("instances_*.json")):
        match = INSTANCES.fullmatch(path.name)
        if match:
            yield match[1], path


def _image_folder(root: Path, split: str) -> Path:
    """Return the first folder that usually has the images of a split and exists, or the source itself."""
    for folder in (root / "images" / split, root / split, root / "images"):
        if folder.is_dir() and folder != root / "annotations":
            return folder
    return root


def read_coco(
    root: Path,
    files: Mapping[str, tuple[Path, Path]],
    crowds: str | None,
    *,
    roboflow: bool,
    display: Display,
) -> ObjectData:
    """Read the annotation files of a source.

    Args:
        root: the source.
        files: annotation file and image folder by split.
        crowds: what crowds are: "keep" them, make them single "objects", or None to refuse a file with
            more crowds than a run accepts (`crowd_faults`).
        roboflow: whether category 0 without annotations is Roboflow's placeholder, which is left out.

    Raises:
        DataError: a file is damaged, an image is missing, or splits have different categories.
        UsageError: crowds are many, and `crowds` is None.
    """
    splits: dict[str, ObjectSplit] = {}
    contents, notes = [], []
    for split, (path, images) in files.items():
        instances, replaced = read_split_file(path, images)
        content = instances.content
        notes += [f"{path.name}: {line}" for line in instances.describe()]
        if replaced:
            notes.append(
                f"{path.name}: {replaced:,} file names were replaced by those of the files"
            )
        notes += _use_crowds(path, content, crowds)
        with display.task(f"check images of {split}", len(content["images"])) as task:
            for image in content["images"]:
                check_size(image, images)
                task.advance()
        splits[split] = ObjectSplit(content=content, files=_place(root, content, images))
        contents.append(content)
    paths = [path for path, _ in files.values()]
    refuse(category_faults(paths, contents))
    if roboflow:
        notes += _drop_placeholder(contents)
    return ObjectData(splits=splits, notes=notes)


def _use_crowds(path: Path, content: Mapping[str, Any], crowds: str | None) -> list[str]:
    """Make crowds single objects if asked to, and return what was done."""
    count = sum(annotation["iscrowd"] for annotation in content["annotations"])
    if crowds == "objects" and count:
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 0
        return [f"{path.name}: {plural(count, 'crowd')} became single objects (--crowds objects)"]
    if crowds is None and any(crowd_faults(path, content)):
        raise UsageError(
            f"{path}: {count:,} of {len(content['annotations']):,} annotations are crowds (iscrowd 1), which are not "
            "trained on and not scored; CVAT exports objects painted with its brush as crowds. Use --crowds objects if "
            "they are single objects, or --crowds keep."
        )
    return []


def _place(root: Path, content: Mapping[str, Any], images: Path) -> dict[str, Path]:
    """Replace every `file_name` by the image's path in the result; return the files by that path.

    An image of another folder of the source keeps its path below the source.
    """
    files: dict[str, Path] = {}
    for image in content["images"]:
        path = images / image["file_name"]
        name = os.path.normpath(image["file_name"])
        if name.startswith("..") or os.path.isabs(name):
            name = os.path.relpath(path, root)
        if name.startswith(".."):
            raise DataError(
                f"image {visible(str(path))} is outside of the data folder {root}; copy it there."
            )
        if name in files:
            raise DataError(
                f"images {files[name]} and {path} would both become {visible(name)}; rename one."
            )
        image["file_name"], files[name] = name, path
    return files


def _drop_placeholder(contents: Sequence[dict[str, Any]]) -> list[str]:
    """Remove category 0 where no annotation has it: Roboflow adds the project's name as the parent of all others."""
    used = {a["category_id"] for content in contents for a in content["annotations"]}
    first = {c["id"]: c["name"] for c in contents[0]["categories"]}
    if 0 in used or 0 not in first or len(first) < 2:
        return []
    for content in contents:
        content["categories"] = [c for c in content["categories"] if c["id"] != 0]
    return [
        f"category 0, '{first[0]}', is Roboflow's parent of the others and has no object: left out"
    ]
