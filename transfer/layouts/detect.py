"""Recognise the layout of a folder: which tool exported it, and what the result can be.

`LAYOUTS` lists every layout with the function that recognises it by its files. A folder that is of several needs
`--from` or `--to`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from simmim_bench.data.listing import list_folder
from simmim_bench.display import Display
from simmim_bench.errors import DataError, UsageError
from transfer.layouts.class_table import ClassTable, read_class_table
from transfer.layouts.coco_export import coco_files, cvat_files, read_coco, roboflow_files
from transfer.layouts.mask_pairs import (
    CVAT_CLASSES,
    find_class_file,
    find_mask_folders,
    has_roboflow_masks,
    has_voc_masks,
    read_mask_folders,
    read_roboflow_masks,
    read_voc_masks,
)
from transfer.layouts.source import MaskData, ObjectData
from transfer.layouts.voc_boxes import (
    BoxRequest,
    has_roboflow_files,
    has_voc_files,
    read_roboflow_voc,
    read_voc,
)

Target = Literal["coco", "ade20k"]


@dataclass(frozen=True, kw_only=True)
class ReadRequest:
    """The options of a command that readers use.

    Attributes:
        table: the classes; None for those of the source.
        boxes: how boxes in XML files are read.
        crowds: see `coco_export.read_coco`.
    """

    display: Display
    table: ClassTable | None = None
    boxes: BoxRequest = field(default_factory=BoxRequest)
    crowds: str | None = None


Reader = Callable[[Path, ReadRequest], ObjectData | MaskData]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout that is recognised.

    Attributes:
        source: the value of `--from`.
        target: the value of `--to`.
        name: for messages and documents.
        files: what it has, for documents.
        matches: returns whether a folder has this layout.
        read: reads it.
    """

    source: str
    target: Target
    name: str
    files: str
    matches: Callable[[Path], bool]
    read: Reader


def _is_cvat(root: Path) -> bool:
    return (root / CVAT_CLASSES).is_file()


def _read_voc(exporter: str) -> Reader:
    def read(root: Path, request: ReadRequest) -> ObjectData:
        path = find_class_file(root)
        table = request.table or (read_class_table(path) if path else None)
        return read_voc(root, request.boxes, table, exporter, request.display)

    return read


LAYOUTS = (
    Layout(
        source="roboflow",
        target="coco",
        name="COCO export of Roboflow",
        files="{train,valid,test}/_annotations.coco.json, images next to it",
        matches=lambda root: bool(roboflow_files(root)),
        read=lambda root, r: read_coco(
            root, roboflow_files(root), r.crowds, roboflow=True, display=r.display
        ),
    ),
    Layout(
        source="roboflow",
        target="coco",
        name="Pascal VOC export of Roboflow",
        files="{train,valid,test}/NAME.xml, images next to it",
        matches=has_roboflow_files,
        read=lambda root, r: read_roboflow_voc(root, r.boxes, r.table, r.display),
    ),
    Layout(
        source="roboflow",
        target="ade20k",
        name="mask export of Roboflow",
        files="{train,valid,test}/NAME_mask.png, images next to it, _classes.csv",
        matches=has_roboflow_masks,
        read=lambda root, r: read_roboflow_masks(root),
    ),
    Layout(
        source="cvat",
        target="coco",
        name="COCO 1.0 export of CVAT",
        files="annotations/instances_{default,...}.json, images/",
        matches=lambda root: bool(cvat_files(root)),
        read=lambda root, r: read_coco(
            root, cvat_files(root), r.crowds, roboflow=False, display=r.display
        ),
    ),
    Layout(
        source="cvat",
        target="coco",
        name="PASCAL VOC 1.1 export of CVAT",
        files="Annotations/NAME.xml, JPEGImages/, ImageSets/Main/, labelmap.txt",
        matches=lambda root: _is_cvat(root) and has_voc_files(root),
        read=_read_voc("cvat"),
    ),
    Layout(
        source="cvat",
        target="ade20k",
        name="Segmentation mask 1.1 export of CVAT",
        files="SegmentationClass/NAME.png, JPEGImages/, ImageSets/Segmentation/, labelmap.txt",
        matches=lambda root: _is_cvat(root) and has_voc_masks(root),
        read=lambda root, r: read_voc_masks(root, cvat=True),
    ),
    Layout(
        source="voc",
        target="coco",
        name="boxes of Pascal VOC",
        files="Annotations/NAME.xml, JPEGImages/, ImageSets/Main/",
        matches=has_voc_files,
        read=_read_voc("voc"),
    ),
    Layout(
        source="voc",
        target="ade20k",
        name="segmentation of Pascal VOC",
        files="SegmentationClass/NAME.png, JPEGImages/, ImageSets/Segmentation/",
        matches=has_voc_masks,
        read=lambda root, r: read_voc_masks(root, cvat=False),
    ),
    Layout(
        source="coco",
        target="coco",
        name="COCO instances files",
        files="[annotations/]NAME.json, images in images/, SPLIT/ or next to it",
        matches=lambda root: bool(coco_files(root)),
        read=lambda root, r: read_coco(
            root, coco_files(root), r.crowds, roboflow=False, display=r.display
        ),
    ),
    Layout(
        source="masks",
        target="ade20k",
        name="folders of images and masks",
        files="images/[SPLIT/], masks/[SPLIT/]; SPLIT/images, SPLIT/masks; SPLIT, SPLITannot; a class table",
        matches=lambda root: bool(find_mask_folders(root)),
        read=lambda root, r: read_mask_folders(root),
    ),
)
SOURCES = tuple(dict.fromkeys(layout.source for layout in LAYOUTS))
# Of layouts that have the same files, those of the more particular source count, unless --from names the other.
MORE_PARTICULAR = {("cvat", "voc"), ("cvat", "coco"), ("roboflow", "coco")}


def detect(root: Path, source: str | None = None, target: str | None = None) -> Layout:
    """Return the layout of a folder.

    Args:
        source: the value of `--from`; None to recognise it.
        target: the value of `--to`; None where only one is possible.

    Raises:
        DataError: the folder does not exist, or has none of the layouts.
        UsageError: it has several, or one that needs no conversion.
    """
    if not root.is_dir():
        kind = "is an archive or file; unpack it" if root.is_file() else "does not exist"
        raise DataError(f"data folder {root} {kind}; SRC is the folder of an export.")
    found = [
        layout
        for layout in LAYOUTS
        if source in (None, layout.source)
        and target in (None, layout.target)
        and layout.matches(root)
    ]
    if source is None:
        sources = {layout.source for layout in found}
        general = {less for more, less in MORE_PARTICULAR if more in sources}
        found = [layout for layout in found if layout.source not in general]
    if not found:
        raise DataError(_describe_unknown(root, source, target))
    if len(found) > 1:
        choices = [
            f"--from {layout.source} --to {layout.target} ({layout.name})" for layout in found
        ]
        raise UsageError(f"{root} is of several layouts; name one: {_joined(choices)}.")
    return found[0]


def _joined(choices: Sequence[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def _describe_unknown(root: Path, source: str | None, target: str | None) -> str:
    """Return that a folder has none of the layouts, with those that were looked for and what it has."""
    inside = list_folder(str(root))
    names = [f"{name}/" for name in sorted(inside.folders)] + sorted(inside.images + inside.others)
    has = f"it has {', '.join(names[:5])}{', ...' * (len(names) > 5)}" if names else "it is empty"
    if any(
        (root / split).is_dir() and list_folder(str(root / split)).folders for split in ("train",)
    ):
        return (
            f"data folder {root} has none of the layouts that are converted; {has}. Class folders in train/ and val/ "
            "or valid/ are ImageNet's layout, which --data reads as it is."
        )
    looked = [
        f"{layout.source}: {layout.files}"
        for layout in LAYOUTS
        if source in (None, layout.source) and target in (None, layout.target)
    ]
    return f"data folder {root} has none of these layouts ({' | '.join(looked)}); {has}."
