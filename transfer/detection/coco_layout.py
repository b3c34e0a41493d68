"""Read a folder in COCO's layout and check it before training.

The folder has `annotations/instances_{train,val}2017.json` and the images in `{train,val}2017/`. Category ids may
have gaps: classes are numbered 0, 1, ... in the order of the ids, and results carry the ids of the file.
Annotations that training cannot use are refused, or skipped if the recipe allows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from simmim_bench.errors import DataError
from simmim_bench.files import read_json, sha256_file
from simmim_bench.results.coco import check_annotations
from transfer.detection.coco_faults import (
    MISREAD,
    category_faults,
    entry_faults,
    find_bad,
    image_faults,
    reference_faults,
)

BadAnnotations = Literal["refuse", "skip"]


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

    def dataset_dicts(self) -> list[dict[str, Any]]:
        """Load the split as Detectron2's dataset dicts, with classes for category ids, without skipped objects."""
        from detectron2.data.datasets import load_coco_json

        # Without a dataset name, Detectron2 changes neither its global catalogs nor the category ids.
        dicts: list[dict[str, Any]] = load_coco_json(
            str(self.annotations), str(self.images), extra_annotation_keys=["id"]
        )
        class_of = {category_id: i for i, category_id in enumerate(self.category_ids)}
        skipped = {number for numbers in self.skipped.values() for number in numbers}
        for image in dicts:
            image["annotations"] = [a for a in image["annotations"] if a.pop("id") not in skipped]
            for annotation in image["annotations"]:
                annotation["category_id"] = class_of[annotation["category_id"]]
        return dicts


def read_splits(data: Path, bad_annotations: BadAnnotations) -> tuple[CocoSplit, CocoSplit]:
    """Read and check both splits.

    Args:
        bad_annotations: "refuse" objects that cannot be trained on (`find_bad`), or "skip" them in
            training. In the val split such objects are scored as pycocotools scores them; masks that
            pycocotools would misread (`MISREAD`) are refused there in either case.

    Returns:
        The train and the val split.

    Raises:
        DataError: a file or folder is missing, the JSON is damaged, refers to entries that it does not have,
            or has no object to train on or to score; or the splits have different categories.
    """
    train, val = (read_split(data, split, bad_annotations) for split in ("train", "val"))
    paths = (train.annotations, val.annotations)
    _refuse(category_faults(paths, train.category_ids, val.category_ids))
    if train.has_masks and val.without_mask:
        raise DataError(
            f"{val.annotations}: annotation {val.without_mask[0]} has no mask ({len(val.without_mask)} "
            "annotations have none, crowds included), but the training objects have masks: mask AP cannot be "
            "computed. Add the masks, or remove 'segmentation' from both files to score boxes only."
        )
    return train, val


def read_split(
    data: Path, split: Literal["train", "val"], bad_annotations: BadAnnotations
) -> CocoSplit:
    """Read and check one split; see `read_splits`."""
    path, images = split_paths(data, split)
    content = read_json(path, "annotation file")
    _refuse(entry_faults(path, content))
    _refuse(reference_faults(path, content))
    _refuse(image_faults(path, content, images))
    bad = find_bad(content)
    _refuse_bad(path, bad if bad_annotations == "refuse" else {})
    if split == "val":
        _refuse_bad(path, {kind: bad[kind] for kind in MISREAD if kind in bad})
        check_annotations(path)
    unusable = {number for numbers in bad.values() for number in numbers}
    objects = [a for a in content["annotations"] if not a["iscrowd"] and a["id"] not in unusable]
    if not objects:
        raise DataError(
            f"{path} has no usable annotation: all are crowds or bad annotations; annotate some objects."
        )
    categories = sorted(content["categories"], key=lambda c: c["id"])
    return CocoSplit(
        annotations=path,
        images=images,
        category_ids=tuple(c["id"] for c in categories),
        class_names=tuple(c["name"] for c in categories),
        has_masks=bool(objects[0].get("segmentation")),
        has_run_lengths=any(isinstance(a.get("segmentation"), dict) for a in objects),
        without_mask=tuple(a["id"] for a in content["annotations"] if not a.get("segmentation")),
        count=len(content["images"]),
        skipped={kind: tuple(numbers) for kind, numbers in bad.items()} if split == "train" else {},
    )


def split_paths(data: Path, split: str) -> tuple[Path, Path]:
    """Return the annotation file and the image folder of a split, "train" or "val".

    Raises:
        DataError: the data folder does not exist.
    """
    if not data.is_dir():
        raise DataError(
            f"data folder {data} does not exist; --data takes a folder in COCO's layout."
        )
    return data / "annotations" / f"instances_{split}2017.json", data / f"{split}2017"


def _refuse(faults: Iterable[str]) -> None:
    """Raise DataError with the first fault, if any."""
    for fault in faults:
        raise DataError(fault)


def _refuse_bad(path: Path, bad: Mapping[str, list[int]]) -> None:
    """Raise DataError with the number of bad annotations of each kind, if any."""
    if not bad:
        return
    counted = [
        f"{len(numbers)} with {kind} (the first is annotation {numbers[0]})"
        for kind, numbers in bad.items()
    ]
    raise DataError(
        f"{path} has annotations that cannot be used: {'; '.join(counted)}. Correct them"
        + (", or train without them with -o bad_annotations=skip." if "train" in path.name else ".")
    )


def data_identity(data: Path, train: CocoSplit, val: CocoSplit) -> dict[str, str]:
    """Return the paths and fingerprints by which a record identifies the data."""
    return {
        "root": str(data),
        "annotations": str(val.annotations),
        "fingerprint": sha256_file(val.annotations),
        "train_fingerprint": sha256_file(train.annotations),
    }
