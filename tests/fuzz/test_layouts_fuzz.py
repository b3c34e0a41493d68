"""Fuzzing of what a conversion reads: mutated annotations, lists and class tables are read or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from support.exports import cvat_corners, voc_xml
from support.fuzz import check, fuzz

from simmim_bench.display import Display
from simmim_bench.untrusted import tables, xml_text
from transfer.layouts import class_table, voc_boxes, voc_files
from transfer.layouts.class_table import LabelRequest, map_labels, read_class_table
from transfer.layouts.voc_boxes import BoxRequest, read_voc

SIZE = (12, 16)


def annotation(names: str) -> bytes:
    image = {"file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}
    boxes = [
        {"bbox": [i, 1.5, 3, 4], "category_id": i, "iscrowd": i % 2} for i in range(len(names))
    ]
    text = voc_xml(image, boxes, dict(enumerate(names)), cvat_corners, "")
    return text.encode("utf-16" if "é" in names else "utf-8")


def test_annotations(tmp_path: Path, seconds: float | None) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "JPEGImages/a.jpg")

    quiet = Display(quiet=True)

    def read(path: Path) -> None:
        for split in read_voc(tmp_path, BoxRequest(), None, "cvat", quiet).splits.values():
            for box in split.content["annotations"]:
                assert min(box["bbox"][2:]) >= 0
                assert box["area"] >= 0

    entity = b'<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'
    seeds = [annotation(""), annotation("ab"), annotation("é"), entity]
    covers: list[Any] = [xml_text, voc_boxes, voc_files]
    check(fuzz(read, seeds, tmp_path / "Annotations/a.xml", seconds=seconds, covers=covers))


def test_class_tables(tmp_path: Path, seconds: float | None) -> None:
    def read(path: Path) -> None:
        table = read_class_table(path)
        mapping = map_labels(table, LabelRequest(ignore=("0",)), background="class")
        assert set(mapping.new.values()) <= set(range(256))
        assert set(mapping.table.colours.values()) <= set(mapping.new)

    seeds = [
        b"# label\nbackground:0,0,0::\ncar:1,2,3::\n",
        b"sky 1 2 3\nroad 4 5 6\n",
        b"1 2 3\tsky\n4 5 6\troad\n",
        b'id,name,r,g,b\n0,"a, b",1,2,3\n7,c,4,5,6\n8,d,1,1,1\n',
        b"Pixel Value, Class\n0, background\n1, a\n2, b\n",
        b"sky\nroad\nsea\n",
    ]
    covers: list[Any] = [tables, class_table]
    check(fuzz(read, seeds, tmp_path / "classes", seconds=seconds, covers=covers))
