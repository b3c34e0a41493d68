"""Read a folder in COCO's layout, or in Roboflow's, and check it before training.

COCO's has `annotations/instances_{train,val}2017.json` and the images in `{train,val}2017/`; Roboflow's has
`train/_annotations.coco.json`, `valid/_annotations.coco.json` and the images next to them. Category ids may have
gaps: classes are numbered 0, 1, ... in the order of the ids, and results carry the ids of the file. Annotations that
training cannot use are refused, or skipped if the recipe allows it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from simmim_bench.diagnostics.data_checks import CHECK_AT_ONCE
from simmim_bench.errors import DataError
from simmim_bench.files import sha256_file
from simmim_bench.results.coco import check_annotations
from simmim_bench.results.coco_file import Instances, read_instances
from transfer.detection.coco_faults import (
    MISREAD,
    box_form_faults,
    boxes_leaving,
    category_faults,
    crowd_faults,
    entry_faults,
    find_bad,
    masks_elsewhere,
    reference_faults,
)
from transfer.detection.coco_images import (
    check_size,
    describe_turned,
    image_faults,
    resolve_names,
    shared_images,
    unused_images,
)

BadAnnotations = Literal["refuse", "skip"]
ManyCrowds = Literal["refuse", "ignore"]
Split = Literal["train", "val"]
ROBOFLOW = {"train": "train", "val": "valid"}  # its folder of a split
ROBOFLOW_FILE = "_annotations.coco.json"


@dataclass(frozen=True, kw_only=True)
class CocoSplit:
    """One split whose annotations have been checked.

    Attributes:
        annotations: the JSON file.
        images: the folder that the `file_name`s are relative to.
        category_ids: as in the file, sorted; a class is an index into them.
        class_names: in the same order.
        has_masks: whether the objects that can be trained on have a segmentation.
        has_run_lengths: whether some object that can be trained on is given as run lengths.
        without_mask: ids of all annotations without a segmentation, crowds included.
        count: number of images in the file.
        skipped: ids of the annotations that are not trained on, by fault.
        crowds: number of crowds.
        warnings: what is used otherwise than its author may expect, or is not used.
    """

    annotations: Path
    images: Path
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    has_masks: bool
    has_run_lengths: bool
    without_mask: tuple[int, ...]
    count: int
    skipped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    crowds: int = 0
    warnings: tuple[str, ...] = ()

    def dataset_dicts(self) -> list[dict[str, Any]]:
        """Load the split as Detectron2's dataset dicts, with classes for category ids, without skipped objects.

        They equal those of Detectron2's `load_coco_json`, which stops at what exporters write.
        """
        from detectron2.structures import BoxMode
        from pycocotools.mask import frPyObjects

        content = read_instances(self.annotations).content
        resolve_names(content, self.images)
        class_of = {category_id: i for i, category_id in enumerate(self.category_ids)}
        skipped = {number for numbers in self.skipped.values() for number in numbers}
        objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation["id"] in skipped:
                continue
            entry = {
                "iscrowd": annotation["iscrowd"],
                "bbox": annotation["bbox"],
                "category_id": class_of[annotation["category_id"]],
                "bbox_mode": BoxMode.XYWH_ABS,
            }
            mask = annotation.get("segmentation")
            if isinstance(mask, dict) and isinstance(mask["counts"], list):
                mask = frPyObjects(mask, *mask["size"])
            objects[annotation["image_id"]].append(
                {**entry, "segmentation": mask} if mask else entry
            )
        return [
            {
                "file_name": os.path.join(self.images, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image["id"],
                "annotations": objects[image["id"]],
            }
            for image in sorted(content["images"], key=lambda image: image["id"])
        ]


def read_splits(
    data: Path, bad_annotations: BadAnnotations, many_crowds: ManyCrowds = "refuse"
) -> tuple[CocoSplit, CocoSplit]:
    """Read and check both splits.

    Args:
        bad_annotations: "refuse" objects that cannot be trained on (`find_bad`), or "skip" them in
            training. In the val split such objects are scored as pycocotools scores them; masks that
            pycocotools would misread (`MISREAD`) are refused there in either case.
        many_crowds: "refuse" a split with too many crowds to be right (`coco_faults.crowd_faults`), or "ignore" these.

    Returns:
        The train and the val split.

    Raises:
        DataError: a file or folder is missing, the JSON is damaged, refers to entries that it does not have,
            or has no object to train on or to score; or the splits have different categories.
    """
    (train, train_content), (val, val_content) = (
        _read_split(data, split, bad_annotations, many_crowds) for split in ("train", "val")
    )
    paths = (train.annotations, val.annotations)
    refuse(category_faults(paths, (train_content, val_content)))
    if train.has_masks and val.without_mask:
        raise DataError(
            f"{val.annotations}: annotation {val.without_mask[0]} has no mask ({len(val.without_mask)} "
            "annotations have none, crowds included), but the training objects have masks: mask AP cannot be "
            "computed. Add the masks, or remove 'segmentation' from both files to score boxes only."
        )
    shared = shared_images(train_content, val_content, (train.images, val.images))
    if shared:
        warning = (
            f"{len(shared):,} of the {val.count:,} validation images are also training images, such as {shared[0]}: "
            "the score is too high"
        )
        val = replace(val, warnings=(*val.warnings, warning))
    return train, val


def read_split(
    data: Path,
    split: Split,
    bad_annotations: BadAnnotations,
    many_crowds: ManyCrowds = "refuse",
) -> CocoSplit:
    """Read and check one split; see `read_splits`."""
    return _read_split(data, split, bad_annotations, many_crowds)[0]


def _read_split(
    data: Path, split: Split, bad_annotations: BadAnnotations, many_crowds: ManyCrowds
) -> tuple[CocoSplit, dict[str, Any]]:
    """Read and check one split; return it with the content of its annotation file."""
    path, images = split_paths(data, split)
    instances, replaced = read_split_file(path, images)
    content = instances.content
    if many_crowds == "refuse":
        refuse(crowd_faults(path, content))
    bad = find_bad(content)
    _refuse_bad(path, split, bad if bad_annotations == "refuse" else {})
    if split == "val":
        _refuse_bad(path, split, {kind: bad[kind] for kind in MISREAD if kind in bad})
        check_annotations(path, content)
    warnings = [
        *(f"{path}: {line}" for line in instances.describe()),
        *split_warnings(path, images, content, replaced),
    ]
    if (
        split == "val" or len(content["images"]) <= CHECK_AT_ONCE
    ):  # others are checked when they are loaded
        turned = sum(check_size(image, images) > 1 for image in content["images"])
        warnings += [describe_turned(turned, images)] if turned else []
    unusable = {number for numbers in bad.values() for number in numbers}
    objects = [a for a in content["annotations"] if not a["iscrowd"] and a["id"] not in unusable]
    if not objects:
        raise DataError(
            f"{path} has no usable annotation: all are crowds or bad annotations; annotate some objects."
        )
    categories = sorted(content["categories"], key=lambda c: c["id"])
    read = CocoSplit(
        annotations=path,
        images=images,
        category_ids=tuple(c["id"] for c in categories),
        class_names=tuple(c["name"] for c in categories),
        has_masks=bool(objects[0].get("segmentation")),
        has_run_lengths=any(isinstance(a.get("segmentation"), dict) for a in objects),
        without_mask=tuple(a["id"] for a in content["annotations"] if not a.get("segmentation")),
        count=len(content["images"]),
        skipped={kind: tuple(numbers) for kind, numbers in bad.items()} if split == "train" else {},
        crowds=sum(a["iscrowd"] for a in content["annotations"]),
        warnings=tuple(warnings),
    )
    return read, content


def split_warnings(path: Path, images: Path, content: dict[str, Any], replaced: int) -> list[str]:
    """Return what of a split is used otherwise than its author may expect, or is not used.

    Args:
        path: the annotation file.
        images: the image folder.
        content: of the file, with the names that `resolve_names` found.
        replaced: number of names that it replaced.
    """
    warnings = []
    if replaced:
        name = content["images"][0]["file_name"]
        warnings.append(
            f"{path}: {replaced:,} of {len(content['images']):,} file names have other paths than their files, such as "
            f"that of {images / name}; the files are found by the ends of their paths"
        )
    leaving = boxes_leaving(content)
    if leaving:
        warnings.append(
            f"{path}: {leaving:,} boxes leave their image by more than a pixel; they are clipped in training and "
            "scored as they are"
        )
    elsewhere = masks_elsewhere(content)
    if elsewhere:
        warnings.append(
            f"{path}: {elsewhere:,} masks do not overlap their boxes; they are used as they are"
        )
    unused = unused_images(content, images)
    if unused:
        warnings.append(
            f"{len(unused):,} images of {images} have no entry in {path.name} and are not used, such as {unused[0]}"
        )
    return warnings


def split_paths(data: Path, split: str) -> tuple[Path, Path]:
    """Return the annotation file and the image folder of a split, "train" or "val".

    Raises:
        DataError: the data folder, or the annotation file, does not exist.
    """
    layouts = "COCO's layout (annotations/instances_train2017.json, train2017/) or Roboflow's (train/, valid/)"
    if not data.is_dir():
        raise DataError(f"data folder {data} does not exist; --data takes a folder in {layouts}.")
    path, images = data / "annotations" / f"instances_{split}2017.json", data / f"{split}2017"
    other = data / ROBOFLOW[split]
    if path.is_file():
        return path, images
    if (other / ROBOFLOW_FILE).is_file():
        return other / ROBOFLOW_FILE, other
    found = sorted(str(p.relative_to(data)) for p in [*data.glob("*.json"), *data.glob("*/*.json")])
    raise DataError(
        f"annotation file {path} does not exist; --data takes a folder in {layouts}"
        + (
            f"; {data} has {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
            if found
            else ""
        )
        + "; `simmim-bench data convert DIR OUT` converts exports of CVAT, Pascal VOC and others."
    )


def read_split_file(path: Path, images: Path) -> tuple[Instances, int]:
    """Read the annotation file of a split, and check what neither a run nor a conversion can use.

    Returns:
        The annotations, with the names of the images' files, and how many names were replaced.

    Raises:
        DataError: the file is damaged, or an image is missing.
    """
    instances = read_instances(path)
    content = instances.content
    refuse(entry_faults(path, content))
    refuse(reference_faults(path, content))
    replaced = resolve_names(content, images) if images.is_dir() else 0
    refuse(image_faults(path, content, images))
    refuse(category_faults((path,), (content,)))
    refuse(box_form_faults(path, content))
    return instances, replaced


def refuse(faults: Iterable[str]) -> None:
    """Raise DataError with the first fault, if any."""
    for fault in faults:
        raise DataError(fault)


def _refuse_bad(path: Path, split: Split, bad: Mapping[str, list[int]]) -> None:
    """Raise DataError with the number of bad annotations of each kind, if any."""
    if not bad:
        return
    counted = [
        f"{len(numbers)} with {kind} (the first is annotation {numbers[0]})"
        for kind, numbers in bad.items()
    ]
    raise DataError(
        f"{path} has annotations that cannot be used: {'; '.join(counted)}. Correct them"
        + (", or train without them with -o bad_annotations=skip." if split == "train" else ".")
    )


def data_identity(data: Path, train: CocoSplit, val: CocoSplit) -> dict[str, str]:
    """Return the paths and fingerprints by which a record identifies the data."""
    return {
        "root": str(data),
        "annotations": str(val.annotations),
        "fingerprint": sha256_file(val.annotations),
        "train_fingerprint": sha256_file(train.annotations),
    }
