"""COCO's layout on disk, checked before anything is trained, and Detectron2's mappers and loaders on it.

In: DATA with `annotations/instances_{train,val}2017.json` and the images in `{train,val}2017/`.
Out: a `CocoSplit`, and loaders of mapped images. Category ids may have gaps: inside they are
0, 1, ... in the order of the ids, results carry the ids of the file. Crowd regions are not trained on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from simmim_bench.errors import DataError
from simmim_bench.files import read_json, sha256_file
from transfer.dense_recipes import CocoRecipe

REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
}


@dataclass(frozen=True, kw_only=True)
class CocoSplit:
    """One split whose annotations have been checked.

    Attributes:
        annotations: the JSON file.
        images: the folder that the `file_name`s are in.
        category_ids: as in the file, sorted; a class is an index into them.
        class_names: in the same order.
        has_masks: whether every object that is not a crowd has a segmentation.
        count: images in the file.
    """

    annotations: Path
    images: Path
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    has_masks: bool
    count: int

    def dataset_dicts(self) -> list[dict[str, Any]]:
        """Read the split in Detectron2's own form, with classes for category ids."""
        from detectron2.data.datasets import load_coco_json

        # Without a dataset name Detectron2 leaves its global catalogs, and the category ids, alone.
        dicts: list[dict[str, Any]] = load_coco_json(str(self.annotations), str(self.images))
        class_of = {category_id: i for i, category_id in enumerate(self.category_ids)}
        for annotation in (a for d in dicts for a in d["annotations"]):
            annotation["category_id"] = class_of[annotation["category_id"]]
        return dicts


def read_splits(data: Path) -> tuple[CocoSplit, CocoSplit]:
    """Check both splits and give (train, val).

    Raises:
        DataError: a file or folder is missing, the JSON is broken, names what it does not have, or has
            nothing to train on or to score; or the splits have different categories.
    """
    train, val = read_split(data, "train"), read_split(data, "val")
    if train.category_ids != val.category_ids:
        odd = sorted(set(train.category_ids) ^ set(val.category_ids))
        raise DataError(
            f"{train.annotations.name} and {val.annotations.name} in {train.annotations.parent} have "
            f"different categories: id {odd[0]} is in one of them only; give both the same list."
        )
    return train, val


def read_split(data: Path, split: str) -> CocoSplit:
    """Check one split; see `read_splits`."""
    path = data / "annotations" / f"instances_{split}2017.json"
    if not data.is_dir():
        raise DataError(f"data folder {data} is not there; --data takes a folder in COCO's layout.")
    content = read_json(path, "annotation file")
    _check_entries(path, content)
    images = data / f"{split}2017"
    _check_references(path, content)
    _check_images(path, content, images)
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    if not objects:
        raise DataError(f"{path} has no usable annotation: none but crowds; annotate some objects.")
    categories = sorted(content["categories"], key=lambda c: c["id"])
    return CocoSplit(
        annotations=path,
        images=images,
        category_ids=tuple(c["id"] for c in categories),
        class_names=tuple(c["name"] for c in categories),
        has_masks=all(a.get("segmentation") for a in objects),
        count=len(content["images"]),
    )


def _check_entries(path: Path, content: Any) -> None:
    """Refuse a file that lacks a list or a key, or has an id twice."""
    for part, keys in REQUIRED.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not entries:
            raise DataError(f"{path} has no list of {part}; it is not a COCO instances file.")
        for index, entry in enumerate(entries):
            lacking = [key for key in keys if key not in entry]
            if lacking:
                raise DataError(
                    f"{path}: entry {index} of {part} lacks '{lacking[0]}', which pycocotools needs; add it."
                )
        (common, times), *_ = Counter(entry["id"] for entry in entries).most_common(1)
        if times > 1:
            raise DataError(f"{path}: id {common} is {times} times in {part}; make ids unique.")


def _check_references(path: Path, content: dict[str, Any]) -> None:
    """Refuse annotations of images or categories that are not in the file, or without a box."""
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        where = f"{path}: annotation {annotation['id']}"
        if annotation["image_id"] not in images:
            raise DataError(
                f"{where} is of image_id {annotation['image_id']}, which is not in images; "
                "remove it or add the image."
            )
        if annotation["category_id"] not in categories:
            raise DataError(
                f"{where} has category_id {annotation['category_id']}, which is not in categories; "
                "correct it or add the category."
            )
        if len(annotation["bbox"]) != 4:
            raise DataError(f"{where} has bbox {annotation['bbox']}; give [x, y, width, height].")


def _check_images(path: Path, content: dict[str, Any], images: Path) -> None:
    """Refuse a file that names images which are not on disk."""
    if not images.is_dir():
        raise DataError(f"image folder {images} is not there; {path} names the images in it.")
    present = set(os.listdir(images))  # one listing: a look at each of 118,000 is slow on a network
    names = [image["file_name"] for image in content["images"]]
    missing = [n for n in names if n not in present and not (images / n).is_file()]
    if missing:
        raise DataError(
            f"image {images / missing[0]} is not there, as {len(missing)} of {len(names)} that {path} names; "
            "add them or remove their entries."
        )


def data_identity(data: Path, val: CocoSplit) -> dict[str, str]:
    """Say for the record which data was scored."""
    return {
        "root": str(data),
        "annotations": str(val.annotations),
        "fingerprint": sha256_file(val.annotations),
    }


class TrainingStream(Dataset[dict[str, Any]]):
    """The endless, shuffled, augmented stream of training images, addressed by position.

    What is at a position depends on the seed alone, so that a resumed run, and any number of workers,
    see the same images. Detectron2's `TrainingSampler` can only start at the beginning.
    """

    def __init__(self, dicts: list[dict[str, Any]], mapper: Any, seed: int) -> None:
        from detectron2.data import DatasetFromList

        self.dicts = DatasetFromList(dicts)
        self.mapper, self.seed = mapper, seed

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Give the mapped image at a position, counted from 0 over all epochs."""
        epoch, offset = divmod(position, len(self.dicts))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.dicts))
        # Detectron2's augmentations draw from numpy's global generator.
        before = np.random.get_state()
        np.random.seed(np.random.SeedSequence((self.seed, position)).generate_state(1))
        try:
            mapped: dict[str, Any] = self.mapper(self.dicts[int(order[offset])])
        finally:
            np.random.set_state(before)
        return mapped


class Positions(Sampler[int]):
    """The positions of the iterations that are still to be done."""

    def __init__(self, start: int, stop: int) -> None:
        self.range = range(start, stop)

    def __iter__(self) -> Iterator[int]:
        return iter(self.range)

    def __len__(self) -> int:
        return len(self.range)


class ReadingMapper:
    """A Detectron2 mapper whose failures say which image file is at fault."""

    def __init__(self, mapper: Any) -> None:
        self.mapper = mapper

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict.

        Raises:
            DataError: the image cannot be decoded, or has not the size that the annotations say.
        """
        from detectron2.data.detection_utils import SizeMismatchError

        path = dataset_dict["file_name"]
        try:
            mapped: dict[str, Any] = self.mapper(dataset_dict)
        except SizeMismatchError as error:
            raise DataError(
                f"image {path} is not {dataset_dict['width']} x {dataset_dict['height']} pixels, as its "
                "entry in the annotations says; correct one of them."
            ) from error
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
            raise DataError(
                f"image {path}, or an annotation of it, cannot be read: {error}; replace it or remove its entry."
            ) from error
        return mapped


class PlainErrors:
    """A loader whose workers' errors keep their own message.

    A DataLoader packs a worker's traceback into the message of the exception that it raises here.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        try:
            yield from self.loader
        except DataError as error:
            message = str(error).strip().splitlines()[-1]
            raise DataError(message.removeprefix(f"{DataError.__module__}.DataError: ")) from error


def train_loader(split: CocoSplit, recipe: CocoRecipe, seed: int, first_iter: int) -> PlainErrors:
    """Give the batches from an iteration to the recipe's last, as Detectron2's models take them.

    Images that have no object, or only a crowd, are left out, as Detectron2 does.
    """
    from detectron2.data import DatasetMapper, build_batch_data_loader
    from detectron2.data import transforms as T
    from detectron2.data.build import filter_images_with_only_crowd_annotations

    mapper = DatasetMapper(
        is_train=True,
        augmentations=[
            T.RandomFlip(horizontal=True),
            T.ResizeScale(*recipe.scale_range, *recipe.img_size),
            T.FixedSizeCrop(recipe.img_size, pad=False),
        ],
        image_format="RGB",
        use_instance_mask=split.has_masks,
        instance_mask_format="bitmask",  # unlike polygons, right for objects given as run lengths
        recompute_boxes=split.has_masks,  # a crop makes the boxes of what it cuts too large
    )
    dicts = filter_images_with_only_crowd_annotations(split.dataset_dicts())
    batch = recipe.batch_size
    loader = build_batch_data_loader(
        TrainingStream(dicts, ReadingMapper(mapper), seed),
        Positions(first_iter * batch, recipe.max_iters * batch),
        batch,
        num_workers=recipe.num_workers,
        seed=seed,  # else starting the loader draws from the generator that the model samples with
    )
    return PlainErrors(loader)


def val_loader(split: CocoSplit, recipe: CocoRecipe) -> PlainErrors:
    """Give all images of a split once, in the order of their ids."""
    from detectron2.data import DatasetMapper, build_detection_test_loader
    from detectron2.data import transforms as T

    mapper = DatasetMapper(
        is_train=False,
        augmentations=[T.ResizeScale(1.0, 1.0, *recipe.img_size)],
        image_format="RGB",
    )
    loader = build_detection_test_loader(
        split.dataset_dicts(),
        mapper=ReadingMapper(mapper),
        # Every batch is padded to the same square, so that its size does not change the result.
        batch_size=min(recipe.batch_size, 8),
        num_workers=recipe.num_workers,
    )
    return PlainErrors(loader)
