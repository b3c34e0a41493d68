"""Claims about COCO data as exporters write it: it is read right, or refused in one line that doctor says as well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks

from simmim_bench.diagnostics.data_checks import Reading
from simmim_bench.display import Display, ProgressTask
from simmim_bench.errors import DataError
from simmim_bench.results.run_lengths import sum_run_lengths
from transfer.detection.coco_layout import read_split, read_splits
from transfer.detection.doctor_checks import check_coco

pytest.importorskip("detectron2")
from detectron2.data.datasets import load_coco_json
from support.detection import RECIPE, annotations_of, change, run

from transfer.detection.data import training_stream, val_loader

QUIET = Reading(display=Display(quiet=True))
SPLITS = ("train", "val")


def doctor(data: Path) -> str:
    return "\n".join(
        " ".join((f.said, *f.items)) for f in check_coco(data, QUIET) if f.state != "ok"
    )


def run_lengths(content: Any, annotation: Any) -> dict[str, Any]:
    """Return an annotation's mask as compressed run lengths."""
    image = next(i for i in content["images"] if i["id"] == annotation["image_id"])
    outline = annotation["segmentation"]
    encoded = masks.merge(masks.frPyObjects(outline, image["height"], image["width"]))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def objects_of(content: Any) -> list[Any]:
    return [a for a in content["annotations"] if not a["iscrowd"]]


def first_mask(convert: Callable[[dict[str, Any]], object]) -> Callable[[Any], None]:
    """Return an edit that replaces the first object's mask by what becomes of its run lengths."""

    def edit(content: Any) -> None:
        annotation = objects_of(content)[0]
        annotation["segmentation"] = convert(run_lengths(content, annotation))

    return edit


def as_crowds(content: Any) -> None:
    for annotation in objects_of(content)[::2]:
        annotation.update(segmentation=run_lengths(content, annotation), iscrowd=1)


def as_corners(content: Any) -> None:
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]


def as_fractions(content: Any) -> None:
    for annotation in content["annotations"]:
        annotation["bbox"] = [v / 64 for v in annotation["bbox"]]


def second_entry(content: Any) -> None:
    content["images"].append({**content["images"][0], "id": 999})


REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "size": (
        first_mask(lambda r: {**r, "size": [128, 64]}),
        "1 with run lengths whose size is not [height, width] of their image",
    ),
    "short": (
        first_mask(lambda r: {**r, "counts": [5, 6, 7]}),
        "1 with run lengths that do not add",
    ),
    "text": (
        first_mask(lambda r: {**r, "counts": "no runs"}),
        "1 with run lengths that do not add",
    ),
    "none": (first_mask(lambda r: {**r, "counts": None}), "1 with run lengths without size and"),
    "outline": (
        first_mask(lambda _: [[1, 1, float("nan"), 1, 9, 9]]),
        "1 with a polygon that is not",
    ),
    "far": (first_mask(lambda _: [[90, 90, 99, 90, 99, 99]]), "1 with a mask outside of its image"),
    "crowds": (as_crowds, "annotations are crowds (iscrowd 1; the first is annotation 1)"),
    "corners": (as_corners, "they seem to be corners"),
    "fractions": (as_fractions, "they seem to be fractions of the image"),
    "entries": (second_entry, "has 2 entries, with ids 1 and 999 (1 images have several)"),
    "width": (lambda c: c["images"][0].update(width=0), "has width 0, which is not from 1 to"),
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_would_give_a_wrong_score_is_refused_and_doctor_says_so(
    case: str, split: Any, own_coco: Path
) -> None:
    edit, message = REFUSED[case]
    change(annotations_of(own_coco, split), edit)
    with pytest.raises(DataError) as caught:
        read_split(own_coco, split, "refuse")
    assert message in str(caught.value)
    assert f"instances_{split}2017.json" in str(caught.value)
    assert message.replace("1 with", "1 annotations with") in doctor(own_coco)


def test_many_crowds_are_ignored_if_the_recipe_says_so_and_counted(own_coco: Path) -> None:
    for split in SPLITS:
        change(annotations_of(own_coco, split), as_crowds)
    train, _ = read_splits(own_coco, "refuse", "ignore")
    content = json.loads(train.annotations.read_text())
    assert train.crowds == len(content["annotations"]) - len(objects_of(content)) > 5
    reading = replace(QUIET, recipe=replace(RECIPE, many_crowds="ignore"))
    findings = check_coco(own_coco, reading)
    assert not [finding for finding in findings if finding.state == "problem"]


def test_categories_of_the_splits_must_have_the_same_names(own_coco: Path) -> None:
    def shift(content: Any) -> None:
        names = [category["name"] for category in content["categories"]]
        for category, name in zip(content["categories"], names[1:] + names[:1], strict=True):
            category["name"] = name

    change(annotations_of(own_coco, "val"), shift)
    with pytest.raises(
        DataError, match=r"id 1 is '.*' in the first and '.*' in the second"
    ) as caught:
        read_splits(own_coco, "refuse")
    assert str(caught.value) in doctor(own_coco)


def test_dataset_dicts_equal_those_of_detectron2(coco: Path) -> None:
    for split in read_splits(coco, "refuse"):
        expected = load_coco_json(str(split.annotations), str(split.images))
        for image in expected:
            for annotation in image["annotations"]:
                annotation["category_id"] = split.category_ids.index(annotation["category_id"])
        assert split.dataset_dicts() == expected


FILE_NAMES = {
    "backslash": "images\\{}",
    "folder": "images/{}",
    "absolute": "/home/me/data/{}",
    "windows": "C:\\data\\{}",
    "label studio": "..\\..\\label-studio\\media\\upload\\4\\{}",
    "url": "https://host.example/a%20bucket/{}?token=1",
    "dot": "./{}",
}


@pytest.mark.parametrize("case", FILE_NAMES)
def test_images_are_found_by_the_ends_of_their_paths(case: str, coco: Path, own_coco: Path) -> None:
    def rename(content: Any) -> None:
        for image in content["images"]:
            image["file_name"] = FILE_NAMES[case].format(image["file_name"])

    change(annotations_of(own_coco), rename)
    read, expected = (read_splits(data, "refuse")[0].dataset_dicts() for data in (own_coco, coco))
    names, wanted = ([Path(i["file_name"]).name for i in dicts] for dicts in (read, expected))
    assert names == wanted
    assert all(Path(image["file_name"]).is_file() for image in read)
    assert ("found by the ends of their paths" in doctor(own_coco)) == (case != "dot")


def test_suffixes_of_another_case_are_found_in_subfolders_too(own_coco: Path) -> None:
    folder = own_coco / "val2017"
    (folder / "night").mkdir()
    for path in sorted(folder.glob("*.jpg")):
        path.rename(path.with_suffix(".JPG"))
    first = sorted(folder.glob("*.JPG"))[0]
    first.rename(folder / "night" / "a.jpg")
    change(
        annotations_of(own_coco, "val"),
        lambda c: c["images"][0].update(file_name="night\\a.jpg"),
    )
    _, val = read_splits(own_coco, "refuse")
    assert all(Path(image["file_name"]).is_file() for image in val.dataset_dicts())


def test_roboflows_layout_and_its_parent_category_are_read(coco: Path, own_coco: Path) -> None:
    for split, folder in (("train", "train"), ("val", "valid")):
        (own_coco / f"{split}2017").rename(own_coco / folder)
        file = own_coco / folder / "_annotations.coco.json"
        annotations_of(own_coco, split).rename(file)

        def add_parent(content: Any) -> None:
            name = content["categories"][0]["name"]
            content["categories"].insert(0, {"id": 0, "name": name, "supercategory": "none"})

        change(file, add_parent)
    shutil.rmtree(own_coco / "annotations")
    for read, plain in zip(
        read_splits(own_coco, "refuse"), read_splits(coco, "refuse"), strict=True
    ):
        assert read.category_ids == (0, *plain.category_ids)
        objects, expected = (
            [[a["bbox"] for a in i["annotations"]] for i in s.dataset_dicts()]
            for s in (read, plain)
        )
        assert objects == expected
        assert not read.warnings
    assert not doctor(own_coco)


def test_a_layout_without_the_annotation_files_is_refused_with_those_that_it_has(
    own_coco: Path,
) -> None:
    annotations_of(own_coco).rename(own_coco / "annotations" / "instances_default.json")
    with pytest.raises(DataError, match=r"2017.json does not exist.*has annotations/instances_d"):
        read_splits(own_coco, "refuse")


def turned(data: Path, orientation: int, size: tuple[int, int]) -> None:
    """Replace the first image of both splits by 40 x 24 pixels, red in the upper left, with an EXIF orientation.

    Args:
        size: (width, height) of its entry.
    """
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:12, :12] = (255, 0, 0)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[274] = orientation

    def edit(content: Any) -> None:
        entry = content["images"][0]
        entry.update(width=size[0], height=size[1])
        for a in content["annotations"]:
            if a["image_id"] == entry["id"]:
                a.update(bbox=[0, 0, 9, 9], area=81, iscrowd=0)
                a["segmentation"] = [[0, 0, 9, 0, 9, 9, 0, 9]]

    for split in SPLITS:
        change(annotations_of(data, split), edit)
        name = json.loads(annotations_of(data, split).read_text())["images"][0]["file_name"]
        image.save(data / f"{split}2017" / name, exif=exif, quality=95)


@pytest.mark.parametrize(("orientation", "corner"), [(3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_images_are_turned_upright_for_training_and_scoring(
    orientation: int, corner: tuple[int, int], own_coco: Path
) -> None:
    size = (40, 24) if orientation == 3 else (24, 40)
    turned(own_coco, orientation, size)
    train, val = read_splits(own_coco, "refuse")
    recipe = replace(RECIPE, num_workers=0)
    mapped = next(iter(val_loader(val, recipe)))[0]["image"]
    assert mapped.shape[1] / mapped.shape[2] == pytest.approx(size[1] / size[0], rel=0.05)
    red, green = mapped[0][corner], mapped[1][corner]
    assert red > 200 > 60 > green
    stream = training_stream(train, recipe, 0)
    assert stream.dicts[0]["width"] == size[0]
    warning = "1 images of {} have an EXIF orientation: they are turned upright"
    said = doctor(own_coco)
    for split in (train, val):
        assert any(warning.format(split.images) in text for text in split.warnings)
        assert warning.format(split.images) in said


def test_an_entry_with_the_size_before_turning_is_refused(own_coco: Path) -> None:
    turned(own_coco, 6, (40, 24))
    with pytest.raises(DataError, match=r"24 x 40 pixels once it is turned upright") as caught:
        read_splits(own_coco, "refuse")
    assert str(caught.value) in doctor(own_coco)


def test_what_is_not_used_as_expected_is_counted_by_run_and_doctor(own_coco: Path) -> None:
    source = sorted((own_coco / "train2017").iterdir())[0]
    for name in ("extra0.jpg", "extra1.JPG", "._hidden.jpg", "notes.txt"):
        shutil.copy(source, own_coco / "train2017" / name)
    shutil.copy(source, own_coco / "val2017")

    def edit(content: Any) -> None:
        first, second, *_ = objects_of(content)
        x, y, _, _ = first["bbox"]
        first["bbox"] = [x, y, 200, 200]
        second["bbox"], second["segmentation"] = [40, 40, 9, 9], [[0, 0, 9, 0, 9, 9]]
        del second["area"]

    change(annotations_of(own_coco), edit)
    train, val = read_splits(own_coco, "refuse")
    said = doctor(own_coco)
    for expected in (
        "1 annotations without an area",
        "1 boxes leave",
        "1 masks do not overlap",
        "2 images of",
    ):
        (text,) = [warning for warning in train.warnings if expected in warning]
        assert text in said
    assert any("1 of the 5 validation images are also training images" in w for w in val.warnings)


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_add_up_to_the_pixels_of_their_mask(seed: int) -> None:
    generator = np.random.default_rng(seed)
    size = generator.integers(1, 2000, 2)
    mask = np.asfortranarray(generator.random(size) < 10.0 ** -(seed + 1), np.uint8)
    counts = masks.encode(mask)["counts"].decode()
    assert sum_run_lengths(counts) == mask.size
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat, append=2))
    plain = np.diff(ends, prepend=-1).tolist()
    assert sum_run_lengths([0, *plain] if flat[0] else plain) == mask.size
    assert sum_run_lengths(counts[:-1]) != mask.size


class BlockingDisplay(Display):
    """Puts a folder in the place of predictions.png when detection starts, so that it cannot be written."""

    def __init__(self, place: Path) -> None:
        super().__init__(quiet=True)
        self.place = place

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[ProgressTask]:
        if description == "coco: val":
            self.place.mkdir()
        with super().task(description, total) as task:
            yield task


@pytest.mark.heavy
def test_a_figure_that_cannot_be_written_does_not_fail_the_run(
    own_coco: Path, tmp_path: Path
) -> None:
    for split in SPLITS:  # of a person-keypoints file; once, drawing these failed
        change(
            annotations_of(own_coco, split),
            lambda c: c["annotations"][0].update(keypoints=[1, 2, 2]),
        )
    out = tmp_path / "run"
    display = BlockingDisplay(out / "predictions.png")
    record = run(out, own_coco, replace(RECIPE, max_iters=1), display=display)
    assert json.loads((out / "record.json").read_text())["metrics"] == record.metrics
    assert "warning: predictions.png was not written: DataError: " in (out / "log.txt").read_text()
