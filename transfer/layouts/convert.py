"""Convert a data set: recognise its layout, read it, choose its splits, write the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simmim_bench.data.target_folder import check_target
from simmim_bench.display import Display, first_names
from simmim_bench.errors import DataError, UsageError
from transfer.layouts.class_table import LabelRequest, map_labels, read_class_table
from transfer.layouts.detect import Layout, ReadRequest, detect
from transfer.layouts.mask_labels import MaskConverter, absent_classes
from transfer.layouts.mask_pairs import voc_table
from transfer.layouts.source import MaskData, ObjectData
from transfer.layouts.splits import VAL_FRACTION, Chosen, SplitRequest, choose_splits
from transfer.layouts.voc_boxes import BoxRequest
from transfer.layouts.write import (
    DESCRIPTION,
    OWNED,
    write_description,
    write_masks,
    write_objects,
    writing,
)


@dataclass(frozen=True, kw_only=True)
class ConversionRequest:
    """The options of `simmim-bench data convert`.

    Attributes:
        source, target: the values of `--from` and `--to`; None to recognise them.
        classes: a class table, or "voc" for Pascal VOC's; None for that of the source.
        labels, splits, boxes, crowds: see the modules that use them.
        copy: whether to copy images, not to link them.
        dry_run: whether to write nothing.
        overwrite: whether an earlier conversion may be replaced.
    """

    source: str | None = None
    target: str | None = None
    classes: Path | None = None
    labels: LabelRequest = field(default_factory=LabelRequest)
    splits: SplitRequest = field(default_factory=SplitRequest)
    boxes: BoxRequest = field(default_factory=BoxRequest)
    crowds: str | None = None
    copy: bool = False
    dry_run: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted.

    Attributes:
        layout: the recognised layout.
        sources: images by split of the source.
        counts: images, and annotations of boxes, by split of the result.
        classes: names of the classes, the first one first.
        linked: images that were linked; the others were copied.
        notes: what a user should know, one line each.
        report: all this as JSON, which the folder keeps as well.
    """

    layout: Layout
    sources: Mapping[str, int]
    counts: Mapping[str, Mapping[str, int]]
    classes: tuple[str, ...]
    linked: int
    notes: list[str]
    report: dict[str, Any]


def convert(root: Path, out: Path, request: ConversionRequest, display: Display) -> Conversion:
    """Convert the data set in `root`, and write it to `out`.

    Raises:
        DataError: a file of the source cannot be used, or the result cannot be written.
        UsageError: the options do not fit the source, or `out` may not be written.
    """
    layout = detect(root, request.source, request.target)
    check_target(
        root,
        out,
        request.overwrite,
        description=DESCRIPTION,
        owned=OWNED,
        command="data convert",
    )
    _refuse_needless(root, layout, request)
    _check_options(layout, request)
    table = None
    if request.classes is not None:
        is_voc = str(request.classes) == "voc" and not request.classes.exists()
        table = voc_table() if is_voc else read_class_table(request.classes)
    display.log(f"data convert: reading {root}: {layout.name}")
    data = layout.read(
        root, ReadRequest(display=display, table=table, boxes=request.boxes, crowds=request.crowds)
    )
    names = _image_names(data)
    chosen, notes = choose_splits(names, request.splits, str(root))
    _check_apart(data, chosen, root)
    with writing(out, request.dry_run) as temporary:
        if isinstance(data, ObjectData):
            counts, linked = write_objects(
                temporary, data.splits, chosen, copy=request.copy, display=display
            )
            content = data.splits[chosen["train"].source].content
            classes = tuple(c["name"] for c in sorted(content["categories"], key=lambda c: c["id"]))
            notes = data.notes + notes
        else:
            table = table or data.table
            if table is None:
                raise DataError(
                    f"data folder {root} does not name the classes of its masks; list them in {root / 'classes.txt'}, "
                    "or name a table with --colours FILE."
                )
            mapping = map_labels(table, request.labels, background=data.background, void=data.void)
            converter = MaskConverter(mapping)
            counts, linked = write_masks(
                temporary, data.splits, chosen, converter, copy=request.copy, display=display
            )
            classes = mapping.names
            notes = data.notes + notes + _label_notes(converter, data)
        report = {
            "source": str(root),
            "from": layout.source,
            "to": layout.target,
            "layout": layout.name,
            "splits": {split: {"from": c.source, **counts[split]} for split, c in chosen.items()},
            "drawn": _drawn(chosen, request.splits),
            "classes": list(classes),
            "notes": notes,
        }
        write_description(temporary, report)
    return Conversion(
        layout=layout,
        sources={name: len(images) for name, images in names.items()},
        counts=counts,
        classes=classes,
        linked=linked,
        notes=notes,
        report=report,
    )


def _drawn(chosen: Mapping[str, Chosen], request: SplitRequest) -> dict[str, float] | None:
    """Return how the validation split was taken from the training images; None if the source has one."""
    if chosen["val"].source != chosen["train"].source:
        return None
    return {"val_fraction": request.val_fraction or VAL_FRACTION, "seed": request.seed}


def _image_names(data: ObjectData | MaskData) -> dict[str, list[str]]:
    """Return the names of the images by split of the source."""
    if isinstance(data, ObjectData):
        return {name: list(split.files) for name, split in data.splits.items()}
    return {name: [pair.name for pair in pairs] for name, pairs in data.splits.items()}


def _check_apart(data: ObjectData | MaskData, chosen: Mapping[str, Chosen], root: Path) -> None:
    """Check that no file is in two splits of the result."""
    owner: dict[Path, str] = {}
    for choice in chosen.values():
        for path in _files(data, choice):
            if owner.setdefault(path, choice.source) != choice.source:
                raise DataError(
                    f"image {path} is in the splits '{owner[path]}' and '{choice.source}' of {root}; remove it from "
                    "one."
                )


def _files(data: ObjectData | MaskData, choice: Chosen) -> list[Path]:
    """Return the image files of a chosen split."""
    if isinstance(data, ObjectData):
        return [data.splits[choice.source].files[name] for name in choice.names]
    return [pair.image for pair in data.splits[choice.source] if pair.name in choice.names]


def _label_notes(converter: MaskConverter, data: MaskData) -> list[str]:
    """Return what became of the labels, one line each."""
    notes = []
    kept = [name for name in converter.mapping.names if name.strip("_ ").lower() == "background"]
    if kept and data.background == "class":
        notes.append(
            "the background is a class, as in Pascal VOC's evaluation; --ignore-label background ignores it"
        )
    if converter.mapping.ignored:
        notes.append(f"ignored, label 0 of the result: {', '.join(converter.mapping.ignored)}")
    absent = absent_classes(converter.mapping.names, converter.pixels)
    if absent:
        notes.append(f"{len(absent):,} classes have no pixel: {first_names(absent)}")
    return notes


def _refuse_needless(root: Path, layout: Layout, request: ConversionRequest) -> None:
    """Refuse to convert what a run reads as it is, unless an option asks for a change."""
    if request.source is not None:
        return
    standard = {
        "coco": [
            root / "annotations" / f"instances_{split}2017.json" for split in ("train", "val")
        ],
        "masks": [root / "annotations" / split for split in ("training", "validation")],
    }.get(layout.source)
    asked = request.labels != LabelRequest() or request.classes or request.crowds
    if standard and all(path.exists() for path in standard) and not asked:
        name = {"coco": "COCO's", "masks": "ADE20K's"}[layout.source]
        more = (
            "; if its labels begin with 0 or have 255, name --keep-zero or --ignore-label 0 and 255"
            if layout.source == "masks"
            else ""
        )
        raise UsageError(f"{root} is in {name} layout, which --data reads as it is{more}.")


def _check_options(layout: Layout, request: ConversionRequest) -> None:
    """Refuse options that the layout does not use: what a user asked for would silently not be done."""
    is_xml = "VOC" in layout.name and layout.target == "coco"
    used = {
        "--keep-zero": (request.labels.keep_zero, layout.target == "ade20k"),
        "--ignore-label": (bool(request.labels.ignore), layout.target == "ade20k"),
        "--colours": (request.classes is not None, layout.target == "ade20k" or is_xml),
        "--boxes": (request.boxes.boxes is not None, is_xml),
        "--difficult": (request.boxes.difficult != "crowd", is_xml),
        "--crowds": (request.crowds is not None, layout.target == "coco" and not is_xml),
    }
    for option, (given, useful) in used.items():
        if given and not useful:
            raise UsageError(f"{option} has no effect on {layout.name}; remove it.")
