"""Read a table of classes with their labels or colours, and decide which of them are classes of the result.

A table is a text file of one of these forms, one class per line; empty lines and those that begin with # are skipped:

    name:r,g,b:parts:actions    CVAT's labelmap.txt
    name r g b                  or r g b name, with spaces, tabs or commas; CamVid's label_colors.txt
    name,r,g,b                  with a header that names the columns, in any order: name, r, g, b, id
    id,name                     Roboflow's _classes.csv has the header `Pixel Value, Class`
    name                        line i names label i, from 0 or from 1

In CVAT's labelmap.txt, line i names label i from 0 (docs.cvat.ai, "Segmentation Mask": grayscale masks). Other tables
without an id do not say where labels begin: it matters for masks that hold labels, not for masks in colour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from simmim_bench.display import plural
from simmim_bench.errors import DataError, UsageError
from simmim_bench.untrusted.tables import read_text_lines, split_cells
from simmim_bench.untrusted.text import shorten, visible
from transfer.segmentation.ade20k_layout import MAX_CLASSES
from transfer.segmentation.label_check import BACKGROUND

Colour = tuple[int, int, int]
MAX_LABEL = 65_535  # of a label map of 16 bits
_RGB = r"(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})"
FORMS = (
    re.compile(
        r"(?P<name>.+):(?:(?P<r>\d{1,3}),(?P<g>\d{1,3}),(?P<b>\d{1,3}))?:[^:]*:(?P<actions>[^:]*)"
    ),
    re.compile(rf"(?P<name>\D.*?)[\s,;]+{_RGB}"),
    re.compile(rf"{_RGB}[\s,;]+(?P<name>\D.*)"),
    re.compile(r"(?P<label>\d{1,5})\s*[,;:\t]\s*(?P<name>.+)"),
    re.compile(r"(?P<name>.+)"),
)
COLUMNS = {
    **dict.fromkeys(("name", "class", "class name", "class_name", "label", "category"), "name"),
    **dict.fromkeys(("r", "red"), "r"),
    **dict.fromkeys(("g", "green"), "g"),
    **dict.fromkeys(("b", "blue"), "b"),
    **dict.fromkeys(("id", "index", "value", "pixel value", "pixel_value", "label id"), "label"),
}
CLASSES_OR_NOT = {
    "background",
    "bg",
}  # of BACKGROUND; the other names say that a pixel has no label


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """Classes by their label in a source.

    Attributes:
        where: the file, for messages.
        names: class names by label.
        colours: labels by colour; empty where masks hold labels.
        numbered: whether the labels are those of the file or of a format, not an order that may begin with 0 or 1.
    """

    where: str
    names: Mapping[int, str]
    colours: Mapping[Colour, int] = field(default_factory=dict)
    numbered: bool = True


@dataclass(frozen=True, kw_only=True)
class LabelMapping:
    """How the labels of a source become those of the result, in which 0 is ignored.

    Attributes:
        names: class names of the result, that of label 1 first.
        new: labels of the result by label of the source.
        table: the classes of the source; not `numbered` if masks in colour alone can be converted.
        ignored: what is ignored, for the report.
    """

    names: tuple[str, ...]
    new: Mapping[int, int]
    table: ClassTable
    ignored: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """The options of a command that concern labels.

    Attributes:
        keep_zero: whether label 0, or the background, is a class.
        ignore: labels or class names without a class, besides.
    """

    keep_zero: bool = False
    ignore: tuple[str, ...] = ()


def read_class_table(path: Path) -> ClassTable:
    """Read a table of classes.

    Raises:
        DataError: the file cannot be read, is of none of the forms, or has a class, label or colour twice.
    """
    what = "class table"
    lines = [
        (number, line)
        for number, line in enumerate(read_text_lines(path, what), 1)
        if line and not line.startswith("#")
    ]
    if not lines:
        raise DataError(
            f"{what} {path} has no classes; write one per line, such as `sky 128 128 128`."
        )
    try:
        rows = list(_with_header(lines)) or list(_without_header(lines))
    except ValueError as error:
        raise DataError(f"{what} {path}: {visible(str(error))}") from error
    names: dict[int, str] = {}
    colours: dict[Colour, int] = {}
    for order, (number, row) in enumerate(rows):
        label, name = int(row.get("label") or order), row["name"]
        colour = (int(row["r"]), int(row["g"]), int(row["b"])) if row.get("r") else None
        fault = _row_fault(label, name, colour, names, colours)
        if fault:
            raise DataError(f"line {number} of {what} {path} {visible(fault)}")
        names[label] = name
        if colour is not None:
            colours[colour] = label
    numbered = bool({"label", "actions"} & rows[0][1].keys())
    return ClassTable(
        where=str(path), names=dict(sorted(names.items())), colours=colours, numbered=numbered
    )


def _with_header(lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a table whose first line names its columns; nothing where it does not."""
    columns = [COLUMNS.get(cell.lower()) for cell in split_cells(lines[0][1])]
    if len(columns) < 2 or "name" not in columns:
        return
    if {"r", "g", "b"} & set(columns) and not {"r", "g", "b"} <= set(columns):
        raise ValueError(f"its header '{shorten(lines[0][1], 60)}' lacks one of r, g and b.")
    for number, line in lines[1:]:
        cells = split_cells(line)
        if len(cells) != len(columns):
            raise ValueError(f"line {number} has {len(cells)} values, its header {len(columns)}.")
        row = {c: cell for c, cell in zip(columns, cells, strict=True) if c is not None}
        wrong = [c for c in row if c != "name" and not re.fullmatch(r"[0-9]{1,5}", row[c])]
        if wrong:
            raise ValueError(
                f"line {number} has {wrong[0]} '{shorten(row[wrong[0]], 40)}', which is not a whole number from 0."
            )
        yield number, row


def _without_header(lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of the first form that all lines have."""
    for form in FORMS:
        matches = [(number, form.fullmatch(line)) for number, line in lines]
        if all(match for _, match in matches):
            for number, match in matches:
                assert match is not None
                yield number, {k: v.strip().strip('"') for k, v in match.groupdict("").items()}
            return
        # A name alone matches every line: most lines of a colour table must not become names for one that is wrong.
        wrong = [number for number, match in matches if not match]
        if form is not FORMS[-2] and 2 * len(wrong) < len(lines):
            line = dict(lines)[wrong[0]]
            raise ValueError(
                f"line {wrong[0]}, '{shorten(line, 60)}', has another form than the lines before or after it."
            )


def _row_fault(
    label: int,
    name: str,
    colour: Colour | None,
    names: Mapping[int, str],
    colours: Mapping[Colour, int],
) -> str | None:
    """Return why a row cannot be added to a table; None if it can."""
    if not name:
        return "has no class name; add one."
    if label > MAX_LABEL:
        return f"has label {label}; the largest is {MAX_LABEL}."
    if label in names:
        return (
            f"has label {label}, which is that of '{names[label]}'; give each class its own label."
        )
    if name in names.values():
        return f"has the name '{name}' for the second time; give each class its own name."
    if colour is not None and max(colour) > 255:
        return f"has colour {_shown(colour)}; the values are 0 to 255."
    if colour is not None and colour in colours:
        return f"has colour {_shown(colour)}, which is that of '{names[colours[colour]]}'; give each class its own."
    return None


def _shown(colour: Colour) -> str:
    return ",".join(map(str, colour))


def map_labels(
    table: ClassTable, request: LabelRequest, *, background: str, void: Sequence[int] = ()
) -> LabelMapping:
    """Decide which classes of a table are classes of the result.

    Args:
        background: what a class is that is called background, or label 0 without a name: a "class", as Pascal VOC
            scores it, or "unknown", so that an option has to tell.
        void: labels that the format ignores.

    Raises:
        UsageError: an option has to tell what the background is, or names a class that does not exist.
        DataError: fewer than two, or too many classes are left.
    """
    known = set(table.names.values())
    unknown = [n for n in request.ignore if n not in known and not re.fullmatch(r"[0-9]{1,5}", n)]
    if unknown:
        raise UsageError(
            f"--ignore-label {unknown[0]}: {table.where} has no such class; use a label or one of "
            f"{visible(shorten(', '.join(table.names.values())))}."
        )
    table = _numbered(table, request, background)
    new, kept, ignored = dict.fromkeys(void, 0), [], []
    new |= {int(text): 0 for text in request.ignore if text.isdecimal()}
    for label, name in table.names.items():
        if _is_class(label, name, request, background, table.where):
            kept.append(name)
            new[label] = len(kept)
        else:
            new[label] = 0
            ignored.append(f"'{name}' ({label})")
    ignored += [str(label) for label in new if label not in table.names]
    if not 2 <= len(kept) <= MAX_CLASSES:
        hint = "; with --keep-zero the background is a class" if len(kept) == 1 and ignored else ""
        raise DataError(
            f"class table {table.where} has {plural(len(kept), 'class', 'classes')} not ignored; 2 to {MAX_CLASSES} "
            f"are allowed{hint}."
        )
    return LabelMapping(names=tuple(kept), new=new, table=table, ignored=tuple(ignored))


def _numbered(table: ClassTable, request: LabelRequest, background: str) -> ClassTable:
    """Return a table whose labels begin with 0 or 1 as an option or the first class says.

    Where neither does, one with colours is returned as it is: masks in colour do not depend on it.
    """
    if table.numbered:
        return table
    if _plain(table.names[0]) in BACKGROUND or request.keep_zero:
        return replace(table, numbered=True)
    if "0" in request.ignore:
        names = {label + 1: name for label, name in table.names.items()}
        colours = {colour: label + 1 for colour, label in table.colours.items()}
        return replace(table, names=names, colours=colours, numbered=True)
    if background == "class":
        return replace(table, numbered=True)
    if table.colours:
        return table
    raise first_label_error(table)


def first_label_error(table: ClassTable) -> UsageError:
    """Return the error that a table does not say whether its labels begin with 0 or 1."""
    return UsageError(
        f"{table.where} does not say which label its first line, '{visible(table.names[0])}', names: use --keep-zero "
        "if it is label 0, or --ignore-label 0 if it is label 1 and pixels with label 0 are ignored."
    )


def _is_class(label: int, name: str, request: LabelRequest, background: str, where: str) -> bool:
    if name in request.ignore or str(label) in request.ignore:
        return False
    plain = _plain(name)
    if plain not in BACKGROUND or (request.keep_zero and (label == 0 or plain in CLASSES_OR_NOT)):
        return True
    if plain not in CLASSES_OR_NOT:
        return False
    if background == "class":
        return True
    raise UsageError(
        f"{where} has a class '{visible(name)}' (label {label}): use --keep-zero to train and score it like the "
        f"others, or --ignore-label {label} to ignore its pixels."
    )


def _plain(name: str) -> str:
    return name.strip("_ ").lower()
