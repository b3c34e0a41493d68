"""Exports of annotation tools convert to the annotations and scores of their originals.

The exports are written by `support/exports.py`, after the tools' documentation; scores are pycocotools' and a naive
mean of intersections over unions.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support import exports
from support.cli import fails, run

from simmim_bench.errors import DataError
from simmim_bench.files import write_json
from transfer.detection.coco_layout import read_splits
from transfer.segmentation.ade20k_layout import find_split, read_class_names
from transfer.segmentation.label_check import check_splits
from transfer.segmentation.label_maps import LabelScheme


def convert(source: Path, target: Path, *options: object) -> dict[str, Any]:
    code, out, err = run("data", "convert", source, target, "--quiet", "--json", *options)
    assert code == 0, err
    report: dict[str, Any] = json.loads(out)
    return report


@pytest.fixture(scope="module")
def coco(pocket: Path) -> Path:
    return pocket / "coco"


@pytest.fixture(scope="module")
def ade(pocket: Path) -> Path:
    return pocket / "ade20k"


def objects(folder: Path, split: str, *, masks: bool) -> list[tuple[Any, ...]]:
    """The objects of a split as values that do not depend on ids and file names."""
    content = exports.read_instances(folder, split)
    names = {c["id"]: c["name"] for c in content["categories"]}
    order = {image["id"]: number for number, image in enumerate(content["images"])}
    keys = ("bbox", "iscrowd", *(("segmentation", "area") if masks else ()))
    found = [
        (order[a["image_id"]], names[a["category_id"]], json.dumps([a[k] for k in keys]))
        for a in content["annotations"]
    ]
    return sorted((i, n, json.dumps(_floats(json.loads(v)))) for i, n, v in found)


def _floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_floats(v) for v in value]
    if isinstance(value, dict):
        return {k: _floats(v) for k, v in value.items()}
    return float(value) if isinstance(value, int | float) else value


def box_ap(folder: Path, split: str, seed: int = 0) -> np.ndarray:
    """pycocotools' scores of made-up detections: shifted boxes of the original objects, by name of their class."""
    path = folder / f"annotations/instances_{split}2017.json"
    content = json.loads(path.read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
    rng = np.random.default_rng(seed)
    names = sorted({c["name"] for c in content["categories"]} - {"shapes"})
    ids = {c["name"]: c["id"] for c in content["categories"]}
    detections = []
    sizes = [(image["id"], image["width"], image["height"]) for image in content["images"]]
    order = {image["id"]: i for i, image in enumerate(content["images"])}
    boxes = sorted(
        (order[a["image_id"]], next(c for c in names if ids[c] == a["category_id"]), a["bbox"])
        for a in content["annotations"]
    )
    for number, name, (x, y, w, h) in boxes:
        for _ in range(3):
            shift = rng.normal(0, 2, 4)
            box = [x + shift[0], y + shift[1], max(w + shift[2], 1), max(h + shift[3], 1)]
            guess = name if rng.random() < 0.8 else names[int(rng.integers(len(names)))]
            entry = {"image_id": sizes[number][0], "category_id": ids[guess], "bbox": box}
            detections.append({**entry, "score": float(rng.random())})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.array(evaluation.stats)


EXPORTS: dict[str, tuple[Callable[[Path, Path], None], tuple[str, ...], bool]] = {
    "roboflow_coco": (exports.roboflow_coco, (), True),
    "cvat_coco": (
        lambda coco, out: exports.cvat_coco(coco, out, {"train": "Train", "val": "Validation"}),
        (),
        True,
    ),
    "voc": (exports.voc_boxes, (), False),
    "cvat_voc": (exports.cvat_voc, (), False),
    "roboflow_voc": (exports.roboflow_voc, (), False),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_exported_objects_and_their_score_equal_the_originals(
    name: str, coco: Path, tmp_path: Path
) -> None:
    export, options, masks = EXPORTS[name]
    export(coco, tmp_path / "export")
    report = convert(tmp_path / "export", tmp_path / "out", *options)
    assert report["from"] == name.partition("_")[0]
    assert sorted(report["classes"]) == sorted(
        c["name"] for c in exports.read_instances(coco, "train")["categories"]
    )
    for split in ("train", "val"):
        assert objects(tmp_path / "out", split, masks=masks) == objects(coco, split, masks=masks)
    expected = box_ap(coco, "val")
    assert 5 < 100 * expected[0] < 95
    np.testing.assert_allclose(box_ap(tmp_path / "out", "val"), expected, rtol=0, atol=1e-12)
    read_splits(tmp_path / "out", "refuse")  # as a run does


def test_images_of_a_conversion_are_those_of_the_source(coco: Path, tmp_path: Path) -> None:
    exports.roboflow_coco(coco, tmp_path / "export")
    convert(tmp_path / "export", tmp_path / "linked")
    convert(tmp_path / "export", tmp_path / "copied", "--copy")
    for source in (tmp_path / "export/train").glob("*.jpg"):
        assert source.samefile(tmp_path / "linked/train2017" / source.name)
        copy = tmp_path / "copied/train2017" / source.name
        assert copy.read_bytes() == source.read_bytes()
        assert not source.samefile(copy)


def names_of(ade: Path) -> list[str]:
    names = read_class_names(ade)
    assert names is not None
    return names


def write_cvat_masks(ade: Path, out: Path) -> tuple[object, ...]:
    exports.cvat_masks(ade, out, names_of(ade))
    return ("--ignore-label", "background")


def write_roboflow_masks(ade: Path, out: Path) -> tuple[object, ...]:
    exports.roboflow_masks(ade, out, names_of(ade))
    return ("--ignore-label", "0")


def from_zero(labels: np.ndarray) -> np.ndarray:
    """Labels from 0, with 255 for pixels without one."""
    return labels - np.uint8(1)


def write_voc_masks(ade: Path, out: Path) -> tuple[object, ...]:
    exports.voc_masks(ade, out, exports.with_palette, from_zero)
    (out / "class_names.txt").write_text("\n".join(names_of(ade)))
    return ()


def write_colours(ade: Path, out: Path) -> tuple[object, ...]:
    exports.mask_folders(ade, out, exports.in_colour, suffixes=(".JPG", ".PNG"))
    rows = [(*exports.colour_of(i), n) for i, n in enumerate(["Void", *names_of(ade)])]
    table = out.parent / "label_colors.txt"
    table.write_text("".join(f"{r} {g} {b}\t{name}\n" for r, g, b, name in rows))
    return ("--colours", table)


def write_palette_with_colours(ade: Path, out: Path) -> tuple[object, ...]:
    """A palette image whose indices are in another order than the table."""
    order = np.random.default_rng(0).permutation(256).astype(np.uint8)

    def paint(labels: np.ndarray) -> Image.Image:
        image = Image.fromarray(order[labels])
        colours = np.empty((256, 3), np.uint8)
        colours[order] = [exports.colour_of(label) for label in range(256)]
        image.putpalette(colours.ravel().tolist())
        return image

    exports.mask_folders(ade, out, paint, suffixes=(".jpeg", ".png"))
    rows = [(n, *exports.colour_of(i)) for i, n in enumerate(["void", *names_of(ade)])]
    lines = ["name,r,g,b", *(",".join(map(str, row)) for row in rows)]
    (out / "class_dict.csv").write_text("\n".join(lines))
    return ()


def write_labels_from_zero(ade: Path, out: Path) -> tuple[object, ...]:
    exports.mask_folders(ade, out, lambda labels: Image.fromarray(from_zero(labels)))
    (out / "classes.txt").write_text("\n".join(names_of(ade)))
    return ("--keep-zero", "--ignore-label", "255")


def write_grey_rgb(ade: Path, out: Path) -> tuple[object, ...]:
    """Three equal channels that hold labels; ids from 100."""

    def paint(labels: np.ndarray) -> Image.Image:
        return Image.fromarray(np.stack([labels + np.uint8(100)] * 3, -1))

    exports.mask_folders(ade, out, paint)
    lines = [f"{i + 101};{name}" for i, name in enumerate(names_of(ade))]
    (out / "classes.txt").write_text("\n".join(lines))
    return ("--ignore-label", "100")


MASKS = {
    "cvat": write_cvat_masks,
    "roboflow": write_roboflow_masks,
    "voc": write_voc_masks,
    "masks-colours": write_colours,
    "masks-palette": write_palette_with_colours,
    "masks-zero": write_labels_from_zero,
    "masks-grey": write_grey_rgb,
}


def miou(folder: Path, seed: int = 0) -> float:
    """The mean IoU of a made-up prediction, by a loop over classes: true labels, of which a third are replaced."""
    rng = np.random.default_rng(seed)
    names = read_class_names(folder)
    assert names is not None
    order = sorted(names)
    union, common = np.zeros(len(names)), np.zeros(len(names))
    for _, labels in exports.ade_maps(folder, "validation"):
        truth = np.array([-1, *(order.index(name) for name in names)])[labels]
        prediction = np.where(
            rng.random(truth.shape) < 1 / 3, rng.integers(0, len(names), truth.shape), truth
        )
        for k in range(len(names)):
            common[k] += ((prediction == k) & (truth == k)).sum()
            union[k] += (((prediction == k) | (truth == k)) & (truth >= 0)).sum()
    return float(np.mean(common[union > 0] / union[union > 0]))


@pytest.mark.parametrize("name", MASKS)
def test_exported_masks_and_their_score_equal_the_originals(
    name: str, ade: Path, tmp_path: Path
) -> None:
    options = MASKS[name](ade, tmp_path / "export")
    report = convert(tmp_path / "export", tmp_path / "out", *options)
    assert (report["from"], report["to"]) == (name.partition("-")[0], "ade20k")
    names, found = read_class_names(ade), read_class_names(tmp_path / "out")
    assert names is not None
    assert found is not None
    assert set(names) == set(found)
    back = np.array([0, *(names.index(name) + 1 for name in found)])
    for split in ("training", "validation"):
        pairs = zip(
            exports.ade_maps(ade, split), exports.ade_maps(tmp_path / "out", split), strict=True
        )
        for (_, original), (_, converted) in pairs:
            np.testing.assert_array_equal(back[converted], original)
    assert miou(tmp_path / "out") == miou(ade)
    as_a_run(tmp_path / "out")


def test_the_background_of_pascal_voc_is_a_class_unless_it_is_ignored(
    ade: Path, tmp_path: Path
) -> None:
    exports.cvat_masks(ade, tmp_path / "export", names_of(ade))
    kept = convert(tmp_path / "export", tmp_path / "kept")
    assert "background" in kept["classes"]
    assert any("the background is a class" in note for note in kept["notes"])
    label = kept["classes"].index("background") + 1
    for (_, original), (_, converted) in zip(
        exports.ade_maps(ade, "training"),
        exports.ade_maps(tmp_path / "kept", "training"),
        strict=True,
    ):
        np.testing.assert_array_equal(converted == label, original == 0)


def test_a_tenth_of_a_single_split_becomes_the_validation_split(coco: Path, tmp_path: Path) -> None:
    exports.cvat_coco(coco, tmp_path / "export", {"train": "default"})
    options = ("--val-fraction", "0.3", "--seed", "1")
    report = convert(tmp_path / "export", tmp_path / "one", *options)
    assert any("--val-fraction 0.3 --seed 1" in note for note in report["notes"])
    kept = json.loads((tmp_path / "one/conversion.json").read_text())
    assert kept["drawn"] == {"val_fraction": 0.3, "seed": 1}

    def names(folder: Path, split: str) -> set[str]:
        return {image["file_name"] for image in exports.read_instances(folder, split)["images"]}

    train, val = (names(tmp_path / "one", split) for split in ("train", "val"))
    every = {image["file_name"] for image in exports.read_instances(coco, "train")["images"]}
    assert train | val == every
    assert not train & val
    assert val
    # A removed image does not move the others.
    path = tmp_path / "export/annotations/instances_default.json"
    content = json.loads(path.read_text())
    gone = content["images"].pop(0)
    kept = [a for a in content["annotations"] if a["image_id"] != gone["id"]]
    path.write_text(json.dumps({**content, "annotations": kept}))
    convert(tmp_path / "export", tmp_path / "two", *options)
    assert names(tmp_path / "two", "train") == train - {gone["file_name"]}


def test_a_test_split_is_converted_when_it_is_asked_for(coco: Path, tmp_path: Path) -> None:
    exports.roboflow_coco(coco, tmp_path / "export")
    shutil.copytree(tmp_path / "export/valid", tmp_path / "export/test")
    report = convert(tmp_path / "export", tmp_path / "without")
    assert "test" not in report["splits"]
    assert any("not converted: 'test' (6 images); --test" in note for note in report["notes"])
    report = convert(tmp_path / "export", tmp_path / "with", "--test")
    assert report["splits"]["test"]["images"] == 6
    assert len(list((tmp_path / "with/test2017").iterdir())) == 6
    shutil.rmtree(tmp_path / "export/valid")
    report = convert(tmp_path / "export", tmp_path / "val", "--val", "test")
    assert report["splits"]["val"] == {
        "from": "test",
        "images": 6,
        "annotations": len(exports.read_instances(coco, "val")["annotations"]),
    }


def test_a_coco_file_of_any_name_is_found(coco: Path, tmp_path: Path) -> None:
    exports.cvat_coco(coco, tmp_path / "export", {"train": "default"})
    folder = tmp_path / "export/annotations"
    (folder / "instances_default.json").rename(folder / "annotations.json")
    for path in (tmp_path / "export/images/default").iterdir():
        path.rename(tmp_path / "export/images" / path.name)
    report = convert(tmp_path / "export", tmp_path / "out")
    assert (report["from"], report["splits"]["train"]["from"]) == ("coco", "annotations")


def test_images_without_an_annotation_are_counted(coco: Path, tmp_path: Path) -> None:
    exports.voc_boxes(coco, tmp_path / "export")
    Image.new("RGB", (8, 8)).save(tmp_path / "export/JPEGImages/other.png")
    notes = convert(tmp_path / "export", tmp_path / "out")["notes"]
    assert any(n.startswith("1 image of") and n.endswith("not used: other.png") for n in notes)


def test_voc2007s_protocol_trains_on_trainval_and_tests_on_test(coco: Path, tmp_path: Path) -> None:
    exports.voc_boxes(coco, tmp_path / "export")
    lists = tmp_path / "export/ImageSets/Main"
    train, val = ((lists / f"{split}.txt").read_text().split() for split in ("train", "val"))
    for split, names in {
        **{"train": train[:4], "val": train[4:]},
        **{"trainval": train, "test": val},
    }.items():
        (lists / f"{split}.txt").write_text("\n".join(names))
    convert(tmp_path / "export", tmp_path / "out", "--train", "trainval", "--val", "test")
    for split in ("train", "val"):
        assert objects(tmp_path / "out", split, masks=False) == objects(coco, split, masks=False)


def rename_lists(root: Path, names: dict[str, str]) -> None:
    for old, new in names.items():
        (root / f"ImageSets/Main/{old}.txt").rename(root / f"ImageSets/Main/{new}.txt")


def test_subsets_that_end_in_train_and_val_are_splits(coco: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "export", tmp_path / "out"
    exports.voc_boxes(coco, root)
    rename_lists(root, {"train": "city_train", "val": "city_val"})
    message = fails(2, "data", "convert", root, out)
    assert "no split that is called train; name the one to train on with --train" in message
    assert "'city_train', 'city_val'" in message
    report = convert(root, out, "--train", "city_train", "--val", "city_val")
    assert {s: c["from"] for s, c in report["splits"].items()} == {
        "train": "city_train",
        "val": "city_val",
    }
    for split in ("train", "val"):
        assert objects(out, split, masks=False) == objects(coco, split, masks=False)


def test_lists_of_single_classes_are_no_splits_but_others_are_named(
    coco: Path, tmp_path: Path
) -> None:
    root = tmp_path / "export"
    exports.voc_boxes(coco, root)
    lists = root / "ImageSets/Main"
    train = (lists / "train.txt").read_text().split()
    flags = [
        f"{name} {flag:>2}" for name, flag in zip(train, [-1, 0, 1] * len(train), strict=False)
    ]
    (lists / "car_train.txt").write_text("\n".join(flags))
    assert not any("not converted" in n for n in convert(root, tmp_path / "a")["notes"])
    (lists / "city_train.txt").write_text("\n".join(train[:2]))
    assert "not converted: 'city_train' (2 images)" in convert(root, tmp_path / "b")["notes"]


def test_images_that_nobody_annotated_in_cvat_are_left_out(ade: Path, tmp_path: Path) -> None:
    options = write_cvat_masks(ade, tmp_path / "export")
    gone = sorted((tmp_path / "export/SegmentationClass").iterdir())[0]
    gone.unlink()
    report = convert(tmp_path / "export", tmp_path / "out", *options)
    assert report["splits"]["train"]["images"] == 7
    assert f"1 image without an annotation left out: {gone.stem}" in report["notes"]


def test_crowds_of_cvats_brush_are_asked_about(coco: Path, tmp_path: Path) -> None:
    exports.cvat_coco(coco, tmp_path / "export", {"train": "train", "val": "val"})
    for path in (tmp_path / "export/annotations").iterdir():
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1
        path.write_text(json.dumps(content))
    message = fails(2, "data", "convert", tmp_path / "export", tmp_path / "out")
    assert "CVAT exports objects painted with its brush as crowds. Use --crowds objects" in message
    convert(tmp_path / "export", tmp_path / "out", "--crowds", "objects")
    annotations = exports.read_instances(tmp_path / "out", "train")["annotations"]
    assert annotations
    assert not any(a["iscrowd"] for a in annotations)


def test_difficult_objects_are_neither_right_nor_wrong(coco: Path, tmp_path: Path) -> None:
    exports.voc_boxes(coco, tmp_path / "export")
    xml = sorted((tmp_path / "export/Annotations").glob("train_*.xml"))[0]
    xml.write_text(xml.read_text().replace("<difficult>0<", "<difficult>1<"))
    count = xml.read_text().count("<difficult>1<")
    assert count

    def crowds(*options: object) -> tuple[int, int]:
        convert(tmp_path / "export", tmp_path / "out", "--overwrite", *options)
        found = exports.read_instances(tmp_path / "out", "train")["annotations"]
        return len(found), sum(a["iscrowd"] for a in found)

    every = len(exports.read_instances(coco, "train")["annotations"])
    before = sum(a["iscrowd"] for a in exports.read_instances(coco, "train")["annotations"])
    total, marked = crowds()
    assert total == every
    assert marked >= max(count, before)
    assert crowds("--difficult", "object") == (every, 0)
    assert crowds("--difficult", "drop") == (every - marked, 0)


def test_a_dry_run_checks_everything_and_writes_nothing(ade: Path, tmp_path: Path) -> None:
    options = write_colours(ade, tmp_path / "export")
    code, out, err = run(
        *("data", "convert", tmp_path / "export", tmp_path / "out", "--dry-run", *options)
    )
    assert code == 0, err
    assert "recognised  folders of images and masks: images train 8, val 6; 16 classes" in out
    assert "dry run     nothing was written; 14 images would be" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "label_colors.txt"]
    table = tmp_path / "label_colors.txt"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    message = fails(
        4, "data", "convert", tmp_path / "export", tmp_path / "out", "--dry-run", *options
    )
    assert "masks have what class table" in message
    assert "colour" in message


def test_a_failed_conversion_leaves_what_was_there(ade: Path, tmp_path: Path) -> None:
    options = write_labels_from_zero(ade, tmp_path / "export")
    convert(tmp_path / "export", tmp_path / "out", *options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    arguments = ("data", "convert", tmp_path / "export", tmp_path / "out", *options)
    assert "is not empty; pass --overwrite" in fails(2, *arguments)
    mask = sorted((tmp_path / "export/valannot").iterdir())[-1]
    Image.new("L", (32, 32), 77).save(mask)
    message = fails(4, *arguments, "--overwrite")
    assert f"label 77 (1,024 pixels in 1 mask, the first is {mask})" in message
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "out"]
    (tmp_path / "out/notes.txt").write_text("mine")
    assert "'notes.txt', which `data convert` did not write" in fails(2, *arguments, "--overwrite")


def test_a_folder_of_two_layouts_is_converted_by_name(
    coco: Path, ade: Path, tmp_path: Path
) -> None:
    exports.voc_boxes(coco, tmp_path / "export")
    exports.voc_masks(ade, tmp_path / "masks", exports.with_palette, from_zero)
    for path in (tmp_path / "masks").rglob("*.*"):
        target = tmp_path / "export" / path.relative_to(tmp_path / "masks")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    message = fails(2, "data", "convert", tmp_path / "export", tmp_path / "out")
    assert "--from voc --to coco (boxes of Pascal VOC) or --from voc --to ade20k" in message
    convert(tmp_path / "export", tmp_path / "boxes", "--to", "coco")
    (tmp_path / "export/classes.txt").write_text("\n".join(names_of(ade)))
    convert(tmp_path / "export", tmp_path / "maps", "--to", "ade20k")
    assert (tmp_path / "maps/annotations/training").is_dir()


def test_layouts_that_runs_read_are_not_converted(coco: Path, ade: Path, tmp_path: Path) -> None:
    assert "COCO's layout, which --data reads" in fails(2, "data", "convert", coco, tmp_path / "a")
    assert "ADE20K's layout, which --data" in fails(2, "data", "convert", ade, tmp_path / "a")
    imagenet = ade.parent / "imagenet"
    assert "ImageNet's layout, which --data" in fails(
        4, "data", "convert", imagenet, tmp_path / "a"
    )


@pytest.mark.parametrize(
    ("folder", "options"),
    [("blood_cells", ("--from", "coco")), ("coco_mini", ("--from", "coco"))],
)
def test_public_coco_sets_convert_to_themselves(
    folder: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    source = Path(__file__).parents[4] / "shared/data" / folder
    if not source.is_dir():
        pytest.skip("no shared data")
    convert(source, tmp_path / "out", *options)
    for split in ("train", "val"):
        assert objects(tmp_path / "out", split, masks=False) == objects(source, split, masks=False)


def test_conversion_json_names_the_source(coco: Path, tmp_path: Path) -> None:
    exports.roboflow_voc(coco, tmp_path / "export")
    report = convert(tmp_path / "export", tmp_path / "out")
    kept = json.loads((tmp_path / "out/conversion.json").read_text())
    assert kept["layout"] == "Pascal VOC export of Roboflow" == report["layout"]
    assert kept["drawn"] is None
    write_json(tmp_path / "out/conversion.json", kept)
    convert(tmp_path / "export", tmp_path / "out", "--overwrite")


def as_a_run(folder: Path) -> list[str]:
    """Check data in ADE20K's layout as a run does before it trains."""
    names = read_class_names(folder)
    assert names is not None
    splits = [find_split(folder, split) for split in ("training", "validation")]
    return check_splits(splits, names, LabelScheme(classes=len(names)))


def repaint(folder: Path, paint: Callable[[np.ndarray], Image.Image]) -> None:
    for path in (folder / "annotations").rglob("*.png"):
        paint(np.asarray(Image.open(path))).save(path)


def spread(labels: np.ndarray) -> np.ndarray:
    """Labels 0 to 3, all in every map."""
    return np.arange(labels.size, dtype=np.uint8).reshape(labels.shape) % 4


@pytest.mark.parametrize(
    ("paint", "names"),
    [
        pytest.param(lambda m: Image.fromarray(spread(m)), "road car sky sea", id="from zero"),
        pytest.param(
            lambda m: Image.fromarray(np.where(spread(m) == 3, np.uint8(255), spread(m))),
            "car sky",
            id="255",
        ),
        pytest.param(lambda m: exports.in_colour(spread(m)), "car sky sea", id="colours"),
    ],
)
def test_the_command_that_a_run_names_fixes_its_data(
    paint: Callable[[np.ndarray], Image.Image], names: str, ade: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(ade, data)
    repaint(data, paint)
    (data / "classes.txt").write_text("\n".join(names.split()))
    table = tmp_path / "colours.txt"
    rows = [(name, *exports.colour_of(i)) for i, name in enumerate(["void", *names.split()])]
    table.write_text("\n".join(" ".join(map(str, row)) for row in rows))
    with pytest.raises(DataError, match="simmim-bench data convert") as caught:
        as_a_run(data)
    found = re.search(r"`simmim-bench (data convert DIR OUT [^`]*)`", str(caught.value))
    assert found is not None
    words = {"DIR": data, "OUT": out, "FILE": table}
    code, _, err = run(*(words.get(word, word) for word in found[1].split()), "--quiet")
    assert code == 0, err
    assert read_class_names(out) == names.split()
    as_a_run(out)


def test_suffixes_of_any_case_are_found(coco: Path, ade: Path, tmp_path: Path) -> None:
    # COCO's file names in another case than the files, in a folder below.
    exports.cvat_coco(coco, tmp_path / "coco", {"train": "default"})
    folder = tmp_path / "coco/images/default"
    for path in list(folder.iterdir()):
        (folder / "Sub").mkdir(exist_ok=True)
        path.rename(folder / "Sub" / f"{path.stem}.JPG")
    file = tmp_path / "coco/annotations/instances_default.json"
    file.write_text(file.read_text().replace('"file_name": "', '"file_name": "Sub/'))
    convert(tmp_path / "coco", tmp_path / "coco_out")
    images = exports.read_instances(tmp_path / "coco_out", "train")["images"]
    assert all(image["file_name"].endswith(".JPG") for image in images)
    read_splits(tmp_path / "coco_out", "refuse")
    # Pascal VOC.
    exports.voc_boxes(coco, tmp_path / "voc")
    for path in list((tmp_path / "voc/JPEGImages").iterdir()):
        path.rename(path.with_suffix(".Jpeg"))
    convert(tmp_path / "voc", tmp_path / "voc_out")
    assert objects(tmp_path / "voc_out", "val", masks=False) == objects(coco, "val", masks=False)
