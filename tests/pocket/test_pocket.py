"""Tests of the synthetic data set: layouts, determinism, annotations, and colours that do not predict classes."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from simmim_bench.errors import DataError, UsageError
from simmim_bench.pocket.annotations import COCO_CATEGORY_IDS, coco_annotations
from simmim_bench.pocket.classes import STUFF_CLASSES, THING_CLASSES
from simmim_bench.pocket.render import render
from simmim_bench.pocket.scenes import object_scene, open_scene
from simmim_bench.pocket.write import OWNED, PocketCounts, write_pocket

COUNTS = PocketCounts(
    imagenet_train=300,
    imagenet_val=100,
    coco_train=40,
    coco_val=40,
    ade20k_train=40,
    ade20k_val=12,
)
FEW = PocketCounts(
    imagenet_train=10, imagenet_val=10, coco_train=2, coco_val=2, ade20k_train=2, ade20k_val=2
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pocket") / "data"
    write_pocket(out, counts=COUNTS)
    return out


def fingerprint(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def load_images(paths: list[Path]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path), np.float64) for path in paths])


def load_coco(root: Path, split: str) -> COCO:
    return COCO(root / "coco" / "annotations" / f"instances_{split}2017.json")


def shoelace(polygon: list[float]) -> float:
    x, y = np.asarray(polygon[::2], float), np.asarray(polygon[1::2], float)
    return 0.5 * float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def test_equal_seeds_write_equal_bytes_in_one_process_and_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pocket(tmp_path / "a", seed=3, counts=FEW)
    monkeypatch.setattr("simmim_bench.pocket.write.usable_cores", lambda: 2.0)
    monkeypatch.setattr("simmim_bench.pocket.write.IN_PROCESSES", 10)
    write_pocket(tmp_path / "elsewhere" / "b", seed=3, counts=FEW)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "elsewhere" / "b")


def test_different_seeds_write_different_images(tmp_path: Path) -> None:
    write_pocket(tmp_path / "a", seed=3, counts=FEW)
    write_pocket(tmp_path / "b", seed=4, counts=FEW)
    a, b = fingerprint(tmp_path / "a"), fingerprint(tmp_path / "b")
    assert a.keys() == b.keys()
    assert not [name for name in a if "jp" in name.lower() and a[name] == b[name]]


@pytest.mark.heavy
def test_all_images_are_distinct(data: Path) -> None:
    hashes = [digest for name, digest in fingerprint(data).items() if "jp" in name.lower()]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.heavy
def test_counts_do_not_change_images(data: Path, tmp_path: Path) -> None:
    write_pocket(tmp_path / "few", counts=replace(FEW, coco_val=5))
    few, many = fingerprint(tmp_path / "few"), fingerprint(data)
    images = [name for name in few if name.lower().endswith(("jpg", "jpeg", "png"))]
    assert len(images) == 10 + 10 + 2 + 5 + 2 * (2 + 2)
    assert all(few[name] == many[name] for name in images)


def test_imagenet_classes_are_balanced(data: Path) -> None:
    for split, count in (("train", 30), ("val", 10)):
        folders = sorted((data / "imagenet" / split).iterdir())
        assert [folder.name for folder in folders] == sorted(THING_CLASSES)
        assert {len(list(folder.glob("*.JPEG"))) for folder in folders} == {count}
    assert (data / "imagenet" / "train" / "fish" / "fish_00030.JPEG").exists()


def test_colour_does_not_predict_the_class(data: Path) -> None:
    # Nearest class mean of the mean colour; chance is 10 %.
    def statistics(split: str) -> tuple[np.ndarray, np.ndarray]:
        paths = sorted((data / "imagenet" / split).glob("*/*.JPEG"))
        images = load_images(paths)
        labels = np.array([THING_CLASSES.index(path.parent.name) for path in paths])
        return images.mean((1, 2)), labels

    train, train_labels = statistics("train")
    val, val_labels = statistics("val")
    means = np.stack([train[train_labels == label].mean(0) for label in range(10)])
    predicted = np.square(val[:, None] - means).sum(2).argmin(1)
    assert np.mean(predicted == val_labels) < 0.2


def test_images_have_contrast(data: Path) -> None:
    images = load_images(sorted((data / "imagenet" / "val").glob("*/*.JPEG")))
    assert images.std((1, 2, 3)).min() > 20
    assert 90 < images.mean() < 165


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_annotations_agree_with_pycocotools(data: Path, split: str) -> None:
    coco = load_coco(data, split)
    assert sorted(coco.getCatIds()) == list(COCO_CATEGORY_IDS)
    assert [category["name"] for category in coco.dataset["categories"]] == list(THING_CLASSES)
    for annotation in coco.dataset["annotations"]:
        mask = coco.annToMask(annotation).astype(bool)
        x, y, width, height = (int(value) for value in annotation["bbox"])
        assert annotation["area"] == mask.sum() > 0
        assert mask[y : y + height, x : x + width].sum() == mask.sum()
        assert mask[y].any()
        assert mask[:, x + width - 1].any()
        if not annotation["iscrowd"] and len(annotation["segmentation"]) == 1:
            assert shoelace(annotation["segmentation"][0]) == annotation["area"]


def test_coco_ids_have_gaps() -> None:
    assert len(set(COCO_CATEGORY_IDS)) == len(THING_CLASSES) == 10
    assert max(COCO_CATEGORY_IDS) > 10


def test_coco_has_crowds_and_images_without_objects(data: Path) -> None:
    for split in ("train", "val"):
        coco = load_coco(data, split)
        crowds = [a for a in coco.dataset["annotations"] if a["iscrowd"]]
        assert crowds
        assert all(isinstance(a["segmentation"]["counts"], list) for a in crowds)
        assert [i for i in coco.getImgIds() if not coco.getAnnIds(imgIds=i)]


def test_coco_objects_are_large_enough_to_detect(data: Path) -> None:
    coco = load_coco(data, "train")
    sides = np.array([a["bbox"][2:] for a in coco.dataset["annotations"]])
    assert np.mean(sides.min(1) >= 8) > 0.98


def test_polygons_decode_to_the_visible_mask() -> None:
    checked = 0
    for seed in range(20):
        scene = open_scene(np.random.default_rng(seed), (1, 1.5), things=5, crowd=seed % 4 == 0)
        rendering = render(scene, (64, 96))
        image = {"id": 1, "height": 64, "width": 96}
        coco = COCO()
        coco.imgs = {1: image}
        annotations = list(coco_annotations(scene, rendering))
        single = [i for i, item in enumerate(scene.items) if item.is_thing and not item.crowd]
        crowd = [i for i, item in enumerate(scene.items) if item.crowd]
        members = [[i] for i in single] + ([crowd] if crowd else [])
        regions = [np.isin(rendering.item, indices) for indices in members]
        for visible in regions:
            if visible.sum() < 100:
                continue
            masks = [coco.annToMask({"image_id": 1, **a}).astype(bool) for a in annotations]
            ious = [(mask & visible).sum() / (mask | visible).sum() for mask in masks]
            assert max(ious) > 0.8
            checked += 1
    assert checked > 60


def test_ade20k_labels_cover_every_class(data: Path) -> None:
    names = (data / "ade20k" / "classes.txt").read_text().split()
    assert names == [*STUFF_CLASSES, *THING_CLASSES]
    found: set[int] = set()
    for folder, prefix, count in (("training", "ADE_train", 40), ("validation", "ADE_val", 12)):
        images = sorted((data / "ade20k" / "images" / folder).glob(f"{prefix}_*.jpg"))
        labels = sorted((data / "ade20k" / "annotations" / folder).glob(f"{prefix}_*.png"))
        assert [path.stem for path in images] == [path.stem for path in labels]
        assert len(images) == count
        for image_path, label_path in zip(images, labels, strict=True):
            label = Image.open(label_path)
            assert label.mode == "L"
            assert label.size == Image.open(image_path).size
            found |= set(np.unique(np.asarray(label)).tolist())
    assert found == set(range(len(names) + 1))


def test_labels_cover_the_rendered_object() -> None:
    # Without the object, the image differs only at the object and its shadow.
    scene = object_scene(np.random.default_rng(5), "fish", (1, 1))
    [index] = [i for i, item in enumerate(scene.items) if item.is_thing]
    without = replace(scene, items=scene.items[:index] + scene.items[index + 1 :])
    full, empty = render(scene, (64, 64)), render(without, (64, 64))
    change = np.abs(full.image.astype(int) - empty.image).sum(2)
    visible = full.item == index
    assert np.mean(change[visible] > 10) > 0.95
    assert change[visible].mean() > 5 * change[~visible].mean()


@pytest.mark.parametrize("img_size", [(32, 32), (48, 96), (96, 48), (128, 128)])
def test_every_image_size_works(tmp_path: Path, img_size: tuple[int, int]) -> None:
    write_pocket(tmp_path / "data", img_size=img_size, counts=FEW)
    height, width = img_size
    for pattern in ("*/*/*/*.JPEG", "coco/*/*.jpg", "ade20k/*/*/*.*"):
        paths = list((tmp_path / "data").glob(pattern))
        assert {Image.open(path).size for path in paths} == {(width, height)}
    about = json.loads((tmp_path / "data" / "pocket.json").read_text())
    assert about["img_size"] == [height, width]
    assert about["counts"]["imagenet_train"] == 10


def test_progress_counts_every_image(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    counts = write_pocket(
        tmp_path / "data", counts=FEW, progress=lambda done, total: calls.append((done, total))
    )
    assert counts["imagenet_train"] == 10
    assert calls == [(done, 28) for done in range(1, 29)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": (64, 24)}, "img_size 64x24 .* use 64x64"),
        ({"seed": -1}, "seed -1"),
        ({"counts": replace(FEW, imagenet_val=9)}, "imagenet_val 9 .* use 10"),
        ({"counts": replace(FEW, coco_val=0)}, "coco_val 0 .* use 1"),
    ],
)
def test_values_out_of_range_raise_an_error(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write_pocket(tmp_path / "data", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_directory_with_other_files_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not empty; pass --overwrite"):
        write_pocket(tmp_path, counts=FEW)
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        write_pocket(tmp_path, counts=FEW, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match=r"thesis\.tex as a directory"):
        write_pocket(tmp_path / "thesis.tex", counts=FEW)


def test_overwrite_does_not_remove_real_data_sets(tmp_path: Path) -> None:
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    with pytest.raises(UsageError, match="'imagenet', which pocket did not write"):
        write_pocket(tmp_path, counts=FEW, overwrite=True)
    assert (tmp_path / "imagenet" / "train").exists()


def test_overwrite_replaces_an_earlier_synthetic_data_set(tmp_path: Path) -> None:
    write_pocket(tmp_path / "a", counts=replace(FEW, coco_val=6))
    write_pocket(tmp_path / "a", seed=1, counts=FEW, overwrite=True)
    write_pocket(tmp_path / "b", seed=1, counts=FEW)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == list(OWNED)


@pytest.mark.parametrize("cause", [OSError("No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_write_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: BaseException, existing: bool
) -> None:
    out = tmp_path / "data"
    if existing:
        write_pocket(out, counts=FEW)
    before = fingerprint(tmp_path)
    save = Image.Image.save
    saved: list[Path] = []

    def fail_late(image: Image.Image, path: Path, **options: Any) -> None:
        if len(saved) == 15:
            raise cause
        saved.append(path)
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", fail_late)
    expected = DataError if isinstance(cause, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if expected is DataError else None):
        write_pocket(out, seed=1, counts=FEW, overwrite=True)
    assert fingerprint(tmp_path) == before
    assert out.exists() == existing
    assert not list(tmp_path.rglob("*partial*"))
