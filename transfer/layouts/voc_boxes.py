"""Read boxes in Pascal VOC's XML files: of Pascal VOC, of CVAT's and of Roboflow's export.

    Pascal VOC, CVAT   Annotations/NAME.xml, JPEGImages/NAME.jpg, ImageSets/Main/{train,val,...}.txt
    Roboflow           {train,valid,test}/NAME.xml, the image next to it

The three mean different boxes by the same four numbers; see `BOXES`. An image is found by the XML file's name, as in
the devkit, and otherwise by its `filename`. Objects that are marked difficult become crowds by default: COCO's
evaluation then counts a detection of them neither as right nor as wrong, as Pascal VOC's evaluation does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from simmim_bench.data.decode import upright_size
from simmim_bench.display import Display, first_names, plural
from simmim_bench.errors import DataError, UsageError
from simmim_bench.results.coco_file import is_finite
from simmim_bench.untrusted.text import shorten, visible
from simmim_bench.untrusted.xml_text import read_xml
from transfer.detection.coco_images import size_error
from transfer.layouts.class_table import ClassTable
from transfer.layouts.source import ObjectData, ObjectSplit
from transfer.layouts.voc_files import ImageFinder, list_voc

CORNERS = ("xmin", "ymin", "xmax", "ymax")
# Of each convention: what is subtracted from the minimum and from the maximum to get the edges of a box, in pixels from
# the image's corner.
#   voc       the first and the last pixel, counted from 1 (VOC2012 devkit, devkit_doc: "1-based"; VOCevaldet.m computes
#             the width of a box as xmax - xmin + 1)
#   roboflow  the edges plus 1: a box that ends at the right edge of an image of 155 pixels has xmax 156; its own
#             library subtracts 1 from all four (roboflow/supervision: dataset/formats/pascal_voc.py)
#   cvat      the edges: datumaro writes x, y, x + w, y + h (datumaro/plugins/voc_format: _write_xml_bbox)
BOXES = {"voc": (1.0, 0.0), "roboflow": (1.0, 1.0), "cvat": (0.0, 0.0)}


@dataclass(frozen=True, kw_only=True)
class BoxRequest:
    """The options of a command that concern boxes.

    Attributes:
        boxes: the convention, a key of `BOXES`; None for that of the recognised exporter.
        difficult: what becomes of objects that are marked difficult: a "crowd", an "object", or "drop" them.
    """

    boxes: str | None = None
    difficult: str = "crowd"


@dataclass(frozen=True, kw_only=True)
class _Box:
    """An object of an XML file; `edges` are x0, y0, x1, y1 in pixels."""

    name: str
    edges: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True, kw_only=True)
class _Annotated:
    """An XML file with its image, whose size is (width, height)."""

    xml: Path
    image: Path
    size: tuple[int, int]
    boxes: list[_Box]


def has_voc_files(root: Path) -> bool:
    """Return whether a folder has `Annotations/*.xml`, at any depth below."""
    return next((root / "Annotations").rglob("*.xml"), None) is not None


def has_roboflow_files(root: Path) -> bool:
    """Return whether a split's folder has an XML file next to an image."""
    return any(next((root / split).glob("*.xml"), None) for split in ("train", "valid", "test"))


def read_voc(
    root: Path, request: BoxRequest, table: ClassTable | None, exporter: str, display: Display
) -> ObjectData:
    """Read a folder in Pascal VOC's layout.

    Args:
        table: the classes; None for all that appear, in alphabetical order.
        exporter: the convention of the boxes if `request` names none.

    Raises:
        DataError: a file is damaged or missing.
        UsageError: the boxes contradict the exporter's convention.
    """
    splits = list_voc(root)
    annotations, images = root / "Annotations", root / "JPEGImages"
    if not images.is_dir():
        raise DataError(
            f"image folder {images} does not exist; {annotations} refers to the images in it."
        )
    finder = ImageFinder(images)
    files = {
        split: [(annotations / f"{name}.xml", name) for name in names]
        for split, names in splits.items()
    }
    return _read(files, dict.fromkeys(files, finder), request, table, exporter, display)


def read_roboflow_voc(
    root: Path, request: BoxRequest, table: ClassTable | None, display: Display
) -> ObjectData:
    """Read Roboflow's Pascal VOC export; see `read_voc`."""
    found = {path.parent for path in root.glob("*/*.xml")}
    folders = {folder.name: folder for folder in sorted(found)}
    files = {
        split: [(path, path.stem) for path in sorted(folder.glob("*.xml"))]
        for split, folder in folders.items()
    }
    finders = {split: ImageFinder(folder) for split, folder in folders.items()}
    return _read(files, finders, request, table, "roboflow", display)


def _read(
    files: Mapping[str, Sequence[tuple[Path, str]]],
    finders: Mapping[str, ImageFinder],
    request: BoxRequest,
    table: ClassTable | None,
    exporter: str,
    display: Display,
) -> ObjectData:
    """Read XML files, given with their names by split."""
    convention = request.boxes or exporter
    read: dict[str, list[_Annotated]] = {split: [] for split in files}
    counts: Counter[str] = Counter()
    with display.task("read annotations", sum(map(len, files.values()))) as task:
        for split, entries in files.items():
            for xml, stem in entries:
                root = read_xml(xml, "annotation")
                counts["outlines"] += len(root.findall("object/polygon"))
                read[split].append(_read_image(root, xml, stem, finders[split], convention))
                if request.boxes is None:
                    _check_convention(read[split][-1], convention)
                task.advance()
    every = [entry for entries in read.values() for entry in entries]
    names = _class_names([box for entry in every for box in entry.boxes], table)
    splits = {
        split: _to_coco(entries, finders[split].folder, names, request.difficult, counts)
        for split, entries in read.items()
    }
    notes = list(_notes(convention, request, counts))
    used = {entry.image for entry in every}
    for finder in dict.fromkeys(finders.values()):
        unused = [path for path in finder.images if path not in used]
        if unused:
            notes.append(
                f"{plural(len(unused), 'image')} of {finder.folder} without an annotation, or in no list, not used: "
                f"{first_names(unused)}"
            )
    return ObjectData(splits=splits, notes=notes)


def _read_image(
    root: Element, xml: Path, stem: str, finder: ImageFinder, convention: str
) -> _Annotated:
    """Return the image and the boxes of an XML file."""
    if root.tag != "annotation":
        raise DataError(
            f"annotation {xml} has the root element <{visible(shorten(root.tag, 40))}>, not <annotation> as Pascal "
            "VOC's files; replace it or remove it."
        )
    image = finder.find(stem, _text(root, "filename"), xml)
    return _Annotated(
        xml=xml,
        image=image,
        size=_image_size(root, xml, image),
        boxes=[_read_box(element, xml, convention) for element in root.findall("object")],
    )


def _image_size(root: Element, xml: Path, image: Path) -> tuple[int, int]:
    """Return (width, height) of an image, which must be that in the XML file, where it has one."""
    size = upright_size(image)
    texts = [_text(root, f"size/{side}") for side in ("width", "height")]
    if not all(text.isdecimal() and len(text) < 10 and int(text) for text in texts):
        return size  # several tools write 0, or no size
    stated = {"width": int(texts[0]), "height": int(texts[1])}
    if (stated["width"], stated["height"]) != size:
        raise size_error(image, size, _stored(image), stated)
    return size


def _stored(image: Path) -> tuple[int, int]:
    from simmim_bench.data.decode import read_header

    return read_header(image)[0]


def _read_box(element: Element, xml: Path, convention: str) -> _Box:
    name = _text(element, "name")
    if not name:
        raise DataError(
            f"annotation {xml} has an object without a name; add it or remove the object."
        )
    texts = [_text(element, f"bndbox/{corner}") for corner in CORNERS]
    try:
        values = [float(text) for text in texts]
    except ValueError:
        values = []
    if not values or not all(map(is_finite, values)) or any(v != v for v in values):
        raise DataError(
            f"annotation {xml} has an object '{visible(shorten(name, 60))}' with the box "
            f"{visible(shorten(str(dict(zip(CORNERS, texts, strict=True))), 120))}, which is not four numbers; correct "
            "it or remove the object."
        )
    x0, y0, x1, y1 = values
    if x1 < x0 or y1 < y0:
        raise DataError(
            f"annotation {xml} has an object '{visible(shorten(name, 60))}' with the box {texts}, whose maximum is "
            "below its minimum; correct it or remove the object."
        )
    low, high = BOXES[convention]
    return _Box(
        name=name,
        edges=(x0 - low, y0 - low, x1 - high, y1 - high),
        difficult=_text(element, "difficult") not in ("", "0", "false", "False"),
    )


def _check_convention(entry: _Annotated, convention: str) -> None:
    """Refuse boxes that leave their image by the convention of their exporter: they may follow another one."""
    if convention == "cvat":
        return
    xml, size = entry.xml, entry.size
    for box in entry.boxes:
        x0, y0, x1, y1 = box.edges
        if min(x0, y0) < 0 or x1 > size[0] or y1 > size[1]:
            raise UsageError(
                f"annotation {xml} has an object '{visible(shorten(box.name, 60))}' that leaves its image of "
                f"{size[0]} x {size[1]} pixels, if boxes follow the convention of {convention}. Name the one that "
                "they follow: --boxes voc (first and last pixel, counted from 1), roboflow (edges plus 1) or cvat "
                "(edges, from 0)."
            )


def _class_names(boxes: Sequence[_Box], table: ClassTable | None) -> list[str]:
    """Return the names of the classes, in the order of the table."""
    used = {box.name for box in boxes}
    if table is None:
        return sorted(used)
    # A table for masks has the background, which is no object.
    names = [n for n in table.names.values() if n in used or n.strip("_ ").lower() != "background"]
    unknown = sorted(used - set(names))
    if unknown:
        raise DataError(
            f"class table {table.where} lacks '{visible(shorten(unknown[0], 60))}', a class of {len(unknown)} that "
            "objects have and it does not; add them."
        )
    return names


def _to_coco(
    entries: Sequence[_Annotated],
    folder: Path,
    names: Sequence[str],
    difficult: str,
    counts: Counter[str],
) -> ObjectSplit:
    """Return the images and objects of a split as the content of a COCO instances file."""
    category = {name: number for number, name in enumerate(names, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    files: dict[str, Path] = {}
    for entry in entries:
        path, (width, height) = entry.image, entry.size
        name = path.relative_to(folder).as_posix()
        if name in files:
            raise DataError(
                f"annotation {entry.xml} and another one have the same image, {path}; remove one of them."
            )
        files[name] = path
        images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
        for box in entry.boxes:
            counts["difficult"] += box.difficult
            if box.difficult and difficult == "drop":
                continue
            x0, y0, x1, y1 = box.edges
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": category[box.name],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": int(box.difficult and difficult == "crowd"),
                }
            )
    categories = [{"id": number, "name": name} for name, number in category.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return ObjectSplit(content=content, files=files)


def _notes(convention: str, request: BoxRequest, counts: Mapping[str, int]) -> Iterator[str]:
    meaning = {
        "voc": "first and last pixel, counted from 1, as Pascal VOC's",
        "roboflow": "edges plus 1, as Roboflow's",
        "cvat": "edges in pixels, as CVAT's",
    }
    yield f"boxes are read as {meaning[convention]} (--boxes {convention})"
    if counts["difficult"]:
        become = {
            "crowd": "crowds (iscrowd 1), neither right nor wrong when detected, as in Pascal VOC's evaluation",
            "object": "objects like the others",
            "drop": "nothing",
        }
        yield (
            f"{plural(counts['difficult'], 'object')} marked difficult became {become[request.difficult]} "
            f"(--difficult {request.difficult})"
        )
    if counts["outlines"]:
        yield f"{plural(counts['outlines'], 'polygon')} in the XML files are not read; boxes are"


def _text(element: Element, path: str) -> str:
    """Return the text of a child element; empty if it has none."""
    return (element.findtext(path) or "").strip()
