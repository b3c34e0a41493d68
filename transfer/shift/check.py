"""Check that a set fits a classifier before any image is read, for a run and for `simmim-bench doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simmim_bench.data.named import DataSet, check_data_sets
from simmim_bench.errors import UsageError
from simmim_bench.shift_sets import SHIFT_SETS, SHIFT_TASK
from transfer.shift.class_maps import class_names, images_folder, map_classes
from transfer.shift.corruptions import describe_missing, find_conditions, missing_conditions
from transfer.shift.real import labels_of, list_validation


def check_set(name: str, root: Path, classes: Sequence[str], ckpt: str) -> str:
    """Check that a set fits a classifier, by the names of its class folders; no image is read.

    Args:
        name: of the set, as in `--data NAME=DIR`.
        classes: of the classifier.
        ckpt: the classifier, for messages.

    Returns:
        What the set has, in a few words.

    Raises:
        DataError: the set does not fit.
    """
    if name == "real":
        images = list_validation(root)
        labelled = sum(map(bool, labels_of(images, classes, ckpt)))
        return f"{labelled:,} of {len(images):,} images have ReaL labels"
    if name == "c":
        conditions = find_conditions(root)
        folder = next(iter(conditions.values()))
        names = class_names(folder)
        map_classes(name, folder, names, classes, ckpt)
        missing = missing_conditions(conditions)
        found = describe_missing(missing) if missing else f"{len(conditions)} conditions"
        return f"{len(names):,} classes; {found}"
    folder = images_folder(root)
    names = class_names(folder)
    map_classes(name, folder, names, classes, ckpt)
    return f"{len(names):,} classes"


def check_names(data_sets: Sequence[DataSet], overrides: Sequence[str] = ()) -> None:
    """Check that every set has a name of its own, and that the overrides of a recipe fit the sets.

    Raises:
        UsageError: a set has no name, two have the same, or an override does not apply.
        DataError: the folder of a set does not exist.
    """
    unnamed = next((data_set.root for data_set in data_sets if data_set.name is None), None)
    if unnamed is not None:
        raise UsageError(
            f"--data {unnamed} has no name, which determines how the set is scored; write NAME={unnamed} with NAME one "
            f"of {', '.join(SHIFT_SETS)}, or another name for a folder of your own."
        )
    check_data_sets(data_sets, task=SHIFT_TASK, several=True)
    if any(text.startswith("limit=") for text in overrides):
        raise UsageError(
            f"--limit does not apply to {SHIFT_TASK}, which scores every image of a set; remove it."
        )
    cropped = any(text.startswith("test_crop_ratio=") for text in overrides)
    if cropped and any(data_set.name == "c" for data_set in data_sets):
        raise UsageError(
            "-o test_crop_ratio does not apply to c, whose images are taken whole; score c without it."
        )
