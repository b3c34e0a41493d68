"""Writers of annotation tools' exports, after the tools' documentation and sources, apart from the project's readers.

Each takes data in COCO's or ADE20K's layout and writes it as the tool would, with the boxes and colours that it has.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Content = dict[str, Any]
ROBOFLOW_SPLITS = {"train": "train", "val": "valid"}


def cvat_corners(x: float, y: float, w: float, h: float) -> list[float]:
    """Datumaro's `_write_xml_bbox` (datumaro/plugins/voc_format/converter.py) of COCO's x, y, w, h."""
    return [x, y, x + w, y + h]


def roboflow_corners(x: float, y: float, w: float, h: float) -> list[float]:
    """Roboflow's files: a box to the right edge of an image of 155 pixels ends at 156."""
    return [x + 1, y + 1, x + w + 1, y + h + 1]


def voc_corners(x: float, y: float, w: float, h: float) -> list[float]:
    """The devkit of VOC2012: pixels are counted from 1, and xmax, ymax are inside of the box."""
    return [x + 1, y + 1, x + w, y + h]


def read_instances(coco: Path, split: str) -> Content:
    content: Content = json.loads((coco / f"annotations/instances_{split}2017.json").read_text())
    return content


def roboflow_name(name: str) -> str:
    """Roboflow puts the suffix into the name, and adds a hash."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}_{suffix}.rf.{zlib.crc32(stem.encode()):08x}.{suffix}"


def roboflow_coco(coco: Path, out: Path) -> None:
    """Roboflow's COCO export: category 0 is the parent of the others."""
    for split, folder in ROBOFLOW_SPLITS.items():
        content = read_instances(coco, split)
        (out / folder).mkdir(parents=True)
        for image in content["images"]:
            name = roboflow_name(image["file_name"])
            shutil.copy(coco / f"{split}2017" / image["file_name"], out / folder / name)
            image["file_name"] = name
        for category in content["categories"]:
            category["supercategory"] = "shapes"
        content["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})
        content["info"] = {"description": "Exported from roboflow.com"}
        (out / folder / "_annotations.coco.json").write_text(json.dumps(content))


def cvat_coco(coco: Path, out: Path, subsets: Mapping[str, str]) -> None:
    """CVAT's COCO 1.0 export of a project with subsets; a task without one has the subset `default`."""
    (out / "annotations").mkdir(parents=True)
    for split, subset in subsets.items():
        shutil.copytree(coco / f"{split}2017", out / "images" / subset)
        content = read_instances(coco, split)
        for annotation in content["annotations"]:
            annotation["attributes"] = {"occluded": False}
        content["info"] = {"contributor": "", "date_created": "", "version": ""}
        path = out / "annotations" / f"instances_{subset}.json"
        path.write_text(json.dumps(content))


def voc_xml(
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    corners: Callable[..., list[float]],
    database: str,
) -> str:
    lines = ["<annotation>", "\t<folder></folder>", f"\t<filename>{image['file_name']}</filename>"]
    lines.append(f"\t<source><database>{database}</database></source>")
    size = "".join(f"<{s}>{image[s]}</{s}>" for s in ("width", "height"))
    lines.append(f"\t<size>{size}<depth>3</depth></size><segmented>0</segmented>")
    for a in annotations:
        x0, y0, x1, y1 = (repr(v) for v in corners(*a["bbox"]))
        lines.append(
            f"\t<object><name>{names[a['category_id']]}</name><pose>Unspecified</pose><truncated>0</truncated>"
            f"<difficult>{a['iscrowd']}</difficult><bndbox><xmin>{x0}</xmin><xmax>{x1}</xmax><ymin>{y0}</ymin>"
            f"<ymax>{y1}</ymax></bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>\n"])


def voc_boxes(coco: Path, out: Path, corners: Callable[..., list[float]] = voc_corners) -> None:
    """Pascal VOC's layout for boxes."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (out / folder).mkdir(parents=True)
    for split in ("train", "val"):
        content = read_instances(coco, split)
        names = {c["id"]: c["name"] for c in content["categories"]}
        stems = []
        for image in content["images"]:
            image = {**image, "file_name": f"{split}_{image['file_name']}"}
            objects = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            source = coco / f"{split}2017" / image["file_name"].removeprefix(f"{split}_")
            shutil.copy(source, out / "JPEGImages" / image["file_name"])
            stems.append(image["file_name"].rpartition(".")[0])
            text = voc_xml(image, objects, names, corners, "The VOC2012 Database")
            (out / "Annotations" / f"{stems[-1]}.xml").write_text(text)
        (out / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{s}\n" for s in stems))
        flags = "".join(f"{s}  -1\n" for s in stems)
        (out / "ImageSets/Main" / f"disc_{split}.txt").write_text(flags)


def cvat_voc(coco: Path, out: Path) -> None:
    """CVAT's PASCAL VOC 1.1 export."""
    voc_boxes(coco, out, cvat_corners)
    names = [c["name"] for c in read_instances(coco, "train")["categories"]]
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    lines += [f"{name}:{10 * i + 10},20,30::" for i, name in enumerate(names)]
    (out / "labelmap.txt").write_text("\n".join(lines) + "\n")


def roboflow_voc(coco: Path, out: Path) -> None:
    """Roboflow's Pascal VOC export."""
    for split, folder in ROBOFLOW_SPLITS.items():
        content = read_instances(coco, split)
        names = {c["id"]: c["name"] for c in content["categories"]}
        (out / folder).mkdir(parents=True)
        for image in content["images"]:
            name = roboflow_name(image["file_name"])
            shutil.copy(coco / f"{split}2017" / image["file_name"], out / folder / name)
            objects = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            text = voc_xml(
                {**image, "file_name": name}, objects, names, roboflow_corners, "roboflow.com"
            )
            (out / folder / name).with_suffix(".xml").write_text(text)


def ade_maps(ade: Path, split: str) -> list[tuple[Path, np.ndarray]]:
    """Return the images of a split of ADE20K's layout with their labels."""
    return [
        (path, np.asarray(Image.open(ade / "annotations" / split / f"{path.stem}.png")))
        for path in sorted((ade / "images" / split).iterdir())
    ]


def colour_of(label: int) -> tuple[int, int, int]:
    """The palette of Pascal VOC (VOC2012 devkit, VOClabelcolormap.m)."""
    colour = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            colour[channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
    return colour[0], colour[1], colour[2]


def in_colour(labels: np.ndarray) -> Image.Image:
    palette = np.array([colour_of(label) for label in range(256)], np.uint8)
    return Image.fromarray(palette[labels])


def with_palette(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette([v for label in range(256) for v in colour_of(label)])
    return image


def cvat_masks(ade: Path, out: Path, names: Sequence[str]) -> None:
    """CVAT's Segmentation mask 1.1 export: masks in colour; the background is what nobody labelled."""
    voc_masks(ade, out, in_colour, lambda labels: labels)
    lines = ["# label:color_rgb:parts:actions"]
    entries = sorted(enumerate(["background", *names]), key=lambda entry: entry[1])
    lines += [f"{name}:{','.join(map(str, colour_of(label)))}::" for label, name in entries]
    (out / "labelmap.txt").write_text("\n".join(lines) + "\n")


def voc_masks(
    ade: Path,
    out: Path,
    paint: Callable[[np.ndarray], Image.Image],
    labels_of: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Pascal VOC's layout for segmentation."""
    for folder in ("SegmentationClass", "JPEGImages", "ImageSets/Segmentation"):
        (out / folder).mkdir(parents=True)
    for split, short in (("training", "train"), ("validation", "val")):
        stems = []
        for path, labels in ade_maps(ade, split):
            stems.append(path.stem)
            shutil.copy(path, out / "JPEGImages" / path.name)
            paint(labels_of(labels)).save(out / "SegmentationClass" / f"{path.stem}.png")
        text = "".join(f"{stem}\n" for stem in stems)
        (out / "ImageSets/Segmentation" / f"{short}.txt").write_text(text)


def roboflow_masks(ade: Path, out: Path, names: Sequence[str]) -> None:
    """Roboflow's semantic segmentation export."""
    for split, folder in (("training", "train"), ("validation", "valid")):
        (out / folder).mkdir(parents=True)
        for path, labels in ade_maps(ade, split):
            name = roboflow_name(path.name)
            shutil.copy(path, out / folder / name)
            mask = (out / folder / name).with_suffix("")
            Image.fromarray(labels).save(f"{mask}_mask.png")
        lines = ["Pixel Value, Class", *(f"{i}, {n}" for i, n in enumerate(["background", *names]))]
        (out / folder / "_classes.csv").write_text("\n".join(lines))


def mask_folders(
    ade: Path,
    out: Path,
    paint: Callable[[np.ndarray], Image.Image],
    *,
    suffixes: tuple[str, str] = (".jpg", ".png"),
) -> None:
    """SegNet's CamVid: train, trainannot, val, valannot."""
    for split, short in (("training", "train"), ("validation", "val")):
        for folder in (short, f"{short}annot"):
            (out / folder).mkdir(parents=True)
        for path, labels in ade_maps(ade, split):
            shutil.copy(path, out / short / f"{path.stem}{suffixes[0]}")
            with open(out / f"{short}annot" / f"{path.stem}{suffixes[1]}", "wb") as file:
                paint(labels).save(file, "PNG")
