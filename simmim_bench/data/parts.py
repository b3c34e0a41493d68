"""Parts of a data set of images in files, as a folder of links or a label file: its splits, or a sample.

`split_data` and `sample_data` choose the images, `write_parts` writes them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from simmim_bench import __version__
from simmim_bench.data.class_splits import class_files, has_validation, images_without_val
from simmim_bench.data.hold_out import hold_out_classes, hold_out_images
from simmim_bench.data.label_file import read_label_file
from simmim_bench.data.listing import is_hidden, is_image, list_folder
from simmim_bench.data.pretraining_images import any_images, held_out_images
from simmim_bench.data.sources import ImageList, ImageSource
from simmim_bench.data.split_folders import LABEL_SUFFIXES, has_split, is_label_file, split_folder
from simmim_bench.data.subsets import sample_per_class, sample_subset
from simmim_bench.data.target_folder import check_target, relative_link
from simmim_bench.display import Display
from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import cannot_write, replacing_directory, write_json, write_text

DESCRIPTION = "parts.json"
OWNED = ("train", "val", DESCRIPTION)


@dataclass(frozen=True, kw_only=True)
class SampleSize:
    """How many training images to sample.

    Attributes:
        count: in all, of every class in proportion; None for `per_class`.
        per_class: of every class.
    """

    count: int | None = None
    per_class: int | None = None


def split_data(source: Path, val_fraction: float, seed: int) -> dict[str, ImageList]:
    """Split a data set without a validation split in train and val.

    Args:
        source: class folders, or a folder that has them in `train/`; a label file; or a folder of images.
        val_fraction: of the images of every class, rounded; at least one.
        seed: of the choice; with 0, these are the images that --val-fraction holds out.

    Raises:
        UsageError: it has a validation split.
        DataError: the images cannot be listed, are not in files, or a class has one alone.
    """
    if _has_classes(source):
        parts = hold_out_classes(_files(images_without_val(source), source), val_fraction, seed)
    else:
        if held_out_images(source) is not None:
            raise UsageError(f"{source} has validation images; split a folder without them.")
        parts = hold_out_images(_files(any_images(source), source), val_fraction, seed)
    return dict(zip(("train", "val"), parts, strict=True))


def sample_data(source: Path, size: SampleSize, seed: int) -> dict[str, ImageList]:
    """Sample training images of a data set; the validation images, if any, are all taken.

    Args:
        source: as of `split_data`, with or without validation images.

    Raises:
        UsageError: there are fewer images than to sample, or more classes.
        DataError: the images cannot be listed or are not in files.
    """
    parts = {"train": _files(_training_images(source), source)}
    train = parts["train"]
    classes = len(np.unique(train.labels))
    if size.per_class is not None:
        chosen = sample_per_class(train.labels, size.per_class, seed)
    else:
        assert size.count is not None
        if not classes <= size.count <= len(train):
            raise UsageError(
                f"--count {size.count:,} is not between the {classes:,} classes and the {len(train):,} training images "
                f"of {source}; use a number between them."
            )
        chosen = sample_subset(train.labels, size.count / len(train), seed, "proportional")
    parts["train"] = train.subset(chosen)
    if has_validation(source):
        val = class_files(source, "val") if _has_classes(source) else held_out_images(source)
        assert val is not None
        parts["val"] = _files(val, source)
    return parts


def _training_images(source: Path) -> ImageSource:
    if not _has_classes(source):
        return any_images(source)
    return class_files(source, "train") if has_validation(source) else images_without_val(source)


def _has_classes(source: Path) -> bool:
    """Return whether the images of a data set have classes."""
    if is_label_file(source):
        return read_label_file(source).labels is not None
    folder = split_folder(source, "train") if has_split(source, "train") else source
    return folder.is_dir() and len(list_folder(str(folder)).folders) > 1


def _files(images: ImageSource, source: Path) -> ImageList:
    if not isinstance(images, ImageList):
        raise DataError(
            f"{source} has no image files but shards or a Hugging Face dataset; --val-fraction and --limit of a run "
            "take a part of such data."
        )
    return images


def write_parts(
    source: Path,
    out: Path,
    parts: Mapping[str, ImageList],
    described: Mapping[str, Any],
    *,
    copy: bool,
    overwrite: bool,
    display: Display,
) -> None:
    """Write the splits of a data set: a label file, or a folder of links with `SPLIT/CLASS/NAME`.

    Args:
        out: a label file by its suffix, else a folder.
        described: how the images were chosen, kept in the folder's `parts.json`.
        copy: copy images instead of linking them; of a folder alone.

    Raises:
        UsageError: `out` exists and may not be replaced, or is the source.
        DataError: `out` cannot be written, or a class or a path cannot be named in it.
    """
    check_out(source, out, overwrite)
    if out.suffix.lower() in LABEL_SUFFIXES:
        write_text(out, _label_text(out, parts))
        return
    counts = {split: len(images) for split, images in parts.items()}
    try:
        with (
            replacing_directory(out) as temporary,
            display.task("write images", sum(counts.values())) as task,
        ):
            for split, images in parts.items():
                for index, path in enumerate(images.paths):
                    name = Path(split, _name_below(images, index))
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    if copy:
                        shutil.copyfile(path, temporary / name)
                    else:
                        (temporary / name).symlink_to(relative_link(path, out / name))
                    task.advance()
            content = {"version": __version__, "source": str(source), **described, "images": counts}
            write_json(temporary / DESCRIPTION, content)
    except OSError as error:
        raise cannot_write(out, error, option="DST") from error


def check_out(source: Path, out: Path, overwrite: bool) -> None:
    """Check that a label file or a folder may be written.

    Raises:
        UsageError: it exists and may not be replaced, or is the source.
    """
    if out.suffix.lower() not in LABEL_SUFFIXES:
        folder = source.parent / f"{source.name}." if is_label_file(source) else source
        check_target(
            folder,
            out,
            overwrite,
            description=DESCRIPTION,
            owned=OWNED,
            command="data split or sample",
        )
    elif out.is_dir() or out.resolve() == source.resolve() or (out.exists() and not overwrite):
        raise UsageError(f"{out} exists; pass --overwrite to replace it, or choose another DST.")


def _name_below(images: ImageList, index: int) -> str:
    """Return the path of an image below the folder of its split, `CLASS/NAME`."""
    name = images.names[index]
    if images.listed and _is_labelled(images):
        label = images.classes[int(images.labels[index])]
        if "/" in label or "\\" in label or label in ("", "..") or is_hidden(label):
            raise DataError(
                f"the class {label!r} cannot be the name of a folder; write a label file, such as DST.csv."
            )
        name = name if name.startswith(f"{label}/") else f"{label}/{name}"
    if not is_image(PurePosixPath(name).name):
        raise DataError(
            f"{name} has no suffix of an image, so that it would not be found in a folder; write a label file, such as "
            "DST.csv."
        )
    return name


def _is_labelled(images: ImageList) -> bool:
    return any(images.classes) if images.listed else len(images.classes) > 1


def _label_text(out: Path, parts: Mapping[str, ImageList]) -> str:
    """Return the lines of a label file.

    Raises:
        DataError: an image is not below the file's folder.
    """
    above = out.parent.resolve()
    rows = []
    for split, images in parts.items():
        for path, label in zip(images.paths, images.labels, strict=True):
            # The folder may be a link; the image is named by the path that leads to it.
            name = os.path.relpath(path.parent.resolve() / path.name, above)
            if name.startswith(".."):
                raise DataError(
                    f"image {path} is not below {out.parent}, the folder of the label file; write it to a folder above "
                    "the images."
                )
            rows.append({"path": name, "label": images.classes[int(label)], "split": split})
    has_classes = any(map(_is_labelled, parts.values()))
    columns = ["path", *(["label"] if has_classes else []), "split"]
    if out.suffix.lower() == ".jsonl":
        lines = ({key: row[key] for key in columns} for row in rows)
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    text = io.StringIO()
    delimiter = "\t" if out.suffix.lower() == ".tsv" else ","
    writer = csv.DictWriter(
        text, columns, delimiter=delimiter, lineterminator="\n", extrasaction="ignore"
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
