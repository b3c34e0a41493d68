"""Count the images that a task scores before it runs, by the names of their files."""

from __future__ import annotations

from pathlib import Path

from simmim_bench.data.labelled_shards import packed_images
from simmim_bench.data.listing import list_tree
from simmim_bench.data.named import HUB_PREFIX
from simmim_bench.data.packed_index import INDEX
from simmim_bench.data.split_folders import split_folder
from simmim_bench.errors import DataError


def count_validation_images(layout: str, data: Path) -> int | None:
    """Count the validation images of a data set without opening them.

    A file without annotation counts, which a run refuses or leaves out; a record has the exact number.

    Args:
        layout: key of `simmim_bench.tasks.LAYOUTS`.

    Returns:
        None where they cannot be listed, and for a Hugging Face dataset.
    """
    if str(data).startswith(HUB_PREFIX):
        return None
    try:
        folder = _image_folder(layout, data)
        if layout == "imagenet" and (folder / INDEX).is_file():
            return len(packed_images(folder))
        return len(list_tree(folder).images) or None
    except (DataError, KeyError):  # a run reports what is wrong; the layout may be a plug-in's
        return None


def _image_folder(layout: str, data: Path) -> Path:
    if layout == "coco":
        from transfer.detection.coco_layout import split_paths

        return split_paths(data, "val")[1]
    return {
        "imagenet": split_folder(data, "val"),
        "ade20k": data / "images" / "validation",
    }[layout]
