"""Read label files: tables of images with their classes and splits, as CSV, TSV or JSON lines.

Every image has a line with `path`, `label` and, if the file has several splits, `split`. Paths are relative to the
folder of the file. Columns of other names are not used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from simmim_bench.data.listing import LeftOut
from simmim_bench.data.names import FileNames, PathList, SharedArray
from simmim_bench.data.sources import ImageList
from simmim_bench.data.split_folders import SPLIT_FOLDERS
from simmim_bench.display import first_names
from simmim_bench.errors import DataError
from simmim_bench.untrusted.json_text import parse_json
from simmim_bench.untrusted.paths import join_below
from simmim_bench.untrusted.tables import find_delimiter, read_text_lines, split_cells
from simmim_bench.untrusted.text import visible

# Names of the columns, the first one preferred; `file_name` is that of Hugging Face's metadata.csv.
COLUMNS = {
    "path": ("path", "file_name", "filename", "file", "image", "image_path"),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split", "subset", "set"),
}
SPLITS = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
UNUSED = ("test", "testing")  # neither trained on nor scored


@dataclass(frozen=True)
class LabelFile:
    """The lines of a label file.

    Attributes:
        names: paths of the images, relative to the folder of the file.
        labels: the class of every image, empty where a line has none; None if the file has no such column.
        splits: "train", "val" or "test" of every image; all are "train" if the file has no such column.
    """

    path: Path
    names: Sequence[str]
    labels: Sequence[str] | None
    splits: Sequence[str]

    def rows_of(self, split: str) -> list[int]:
        """Return the indices of the images of a split."""
        return [row for row, found in enumerate(self.splits) if found == split]


def read_label_file(path: Path) -> LabelFile:
    """Read a label file.

    Raises:
        DataError: the file cannot be read, or a line cannot be used.
    """
    names: dict[str, int] = {}
    labels, splits = [], []
    has_labels = False
    for number, row in _rows(path):
        where = f"line {number} of label file {path}"
        name = _name(row.get("path", ""), path.parent, where)
        if name in names:
            raise DataError(
                f"{where} names {visible(name)} again, after line {names[name]}; list every image once."
            )
        names[name] = number
        has_labels = has_labels or "label" in row
        labels.append(row.get("label", ""))
        splits.append(_split(row.get("split", ""), where))
    if not names:
        raise DataError(f"label file {path} lists no images; add a line for each.")
    return LabelFile(path, [*names], labels if has_labels else None, splits)


def listed_images(path: Path, split: str) -> ImageList:
    """List the images of a split of a label file, with the classes that they have.

    Args:
        split: `train` or `val`.

    Raises:
        DataError: see `read_label_file`; or the file has no such images or no labels, or images do not exist.
    """
    table = read_label_file(path)
    if table.labels is None:
        raise DataError(
            f"label file {path} has no column {COLUMNS['label'][0]}; add it to classify the images."
        )
    unlabelled = [table.names[row] for row in table.rows_of(split) if not table.labels[row]]
    if unlabelled:
        raise DataError(
            f"label file {path} has no label of {len(unlabelled):,} images of the split {split}: "
            f"{first_names(unlabelled)}; add them, or remove the lines."
        )
    return select_images(table, split, table.labels)


def select_images(table: LabelFile, split: str, labels: Sequence[str]) -> ImageList:
    """List the images of a split with given classes, one for each line of the file; see `listed_images`."""
    path, rows = table.path, table.rows_of(split)
    if not rows:
        found = ", ".join(dict.fromkeys(table.splits))
        help_text = "--val-fraction 0.1 holds out a part" if split == "val" else "mark some"
        raise DataError(
            f"label file {path} has no images of the split {split}, only of {found}; {help_text}."
        )
    sizes = _sizes([table.names[row] for row in rows], path)
    classes = sorted({labels[row] for row in rows})
    numbers = {name: number for number, name in enumerate(classes)}
    return ImageList(
        path.parent,
        PathList(path.parent, FileNames.pack(table.names[row] for row in rows)),
        SharedArray(np.array([numbers[labels[row]] for row in rows], np.int64)),
        tuple(classes),
        LeftOut(),
        SharedArray(sizes),
        listed=True,
    )


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield the number and the used columns of every line that is not empty."""
    lines = read_text_lines(path, "label file")
    read = _json_rows if path.suffix.lower() == ".jsonl" else _table_rows
    yield from read(path, [(n, line) for n, line in enumerate(lines, 1) if line])


def _json_rows(
    path: Path, lines: Sequence[tuple[int, str]]
) -> Iterator[tuple[int, Mapping[str, str]]]:
    for number, line in lines:
        try:
            value = parse_json(line)
        except ValueError as error:
            raise DataError(f"line {number} of label file {path} is not JSON: {error}.") from error
        if not isinstance(value, dict):
            raise DataError(
                f'line {number} of label file {path} is not an object; write {{"path": ..., "label": ...}}.'
            )
        columns = _find_columns([*value], f"line {number} of label file {path}")
        yield number, {key: _text(value[name]) for key, name in columns.items()}


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _table_rows(
    path: Path, lines: Sequence[tuple[int, str]]
) -> Iterator[tuple[int, Mapping[str, str]]]:
    if not lines:
        return
    (_, first), *others = lines
    try:
        header = [cell.lower() for cell in split_cells(first)]
        delimiter = find_delimiter(first)
        columns = _find_columns(header, f"label file {path}")
        places = {key: header.index(name) for key, name in columns.items()}
        for number, line in others:
            cells = split_cells(line, delimiter)
            if len(cells) > len(header):
                raise DataError(
                    f"line {number} of label file {path} has {len(cells)} values for {len(header)} columns; put values "
                    "with separators in quotation marks."
                )
            cells += [""] * (len(header) - len(cells))  # empty ones at the end of a line
            yield number, {key: cells[place] for key, place in places.items()}
    except ValueError as error:
        raise DataError(
            f"label file {path} cannot be read: {error}; close its quotation marks."
        ) from error


def _find_columns(header: Sequence[str], where: str) -> dict[str, str]:
    """Return the name of each used column.

    Raises:
        DataError: no column has the paths.
    """
    found = {
        key: name
        for key, names in COLUMNS.items()
        if (name := next((n for n in names if n in header), None)) is not None
    }
    if "path" not in found:
        raise DataError(
            f"{where} has no column path, only {visible(', '.join(header))}; begin it with the names of its columns: "
            "path,label or path,label,split."
        )
    return found


def _name(text: str, folder: Path, where: str) -> str:
    """Return a path relative to the folder of the label file."""
    if not text:
        raise DataError(f"{where} has no path; add one, or remove the line.")
    path = PurePosixPath(text)
    if path.is_absolute() and path.is_relative_to(folder.absolute()):
        path = path.relative_to(folder.absolute())
    try:
        join_below(folder, str(path), where)
    except DataError as error:
        raise DataError(
            f"{where}: {visible(text)} is not below {folder}; move the label file to a folder above the images, and "
            "write paths without '..' and '\\'."
        ) from error
    return str(path)


def _split(text: str, where: str) -> str:
    name = text.lower()
    if not name:
        return "train"
    if name in UNUSED:
        return "test"
    if name not in SPLITS:
        raise DataError(f"{where} has the split {visible(text)}; use train, val or test.")
    return SPLITS[name]


def _sizes(names: Sequence[str], path: Path) -> np.ndarray:
    """Return the sizes of images in bytes, (N,) int64.

    Raises:
        DataError: some do not exist.
    """
    sizes, missing = np.zeros(len(names), np.int64), []
    for row, name in enumerate(names):
        try:
            sizes[row] = os.stat(path.parent / name).st_size
        except (OSError, ValueError):
            missing.append(visible(name))
    if missing:
        raise DataError(
            f"label file {path} lists {len(missing):,} of {len(names):,} images that do not exist below "
            f"{path.parent}: {first_names(missing)}; correct their paths."
        )
    return sizes
