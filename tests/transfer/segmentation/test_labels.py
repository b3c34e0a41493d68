"""Tests of data sets as annotation tools and file servers leave them: read as meant, or refused with the remedy.

Every refusal and remark is compared with what `simmim-bench doctor` lists of the same files.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.segmentation import RECIPE, entries, transfer

from simmim_bench.diagnostics import data_checks
from simmim_bench.diagnostics.data_checks import Reading
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.display import Display
from simmim_bench.errors import DataError
from simmim_bench.runs.run_dir import open_run
from transfer.segmentation import label_check
from transfer.segmentation.ade20k_layout import find_split, read_class_names
from transfer.segmentation.doctor_checks import check_ade20k
from transfer.segmentation.label_check import check_splits
from transfer.segmentation.label_maps import LabelScheme, read_classes
from transfer.segmentation.run import read_data

SIZE = (8, 12)
SPLITS = {"training": 3, "validation": 2}
ORIENTATION = 0x112  # EXIF tag
WITH_ZERO = replace(RECIPE, reduce_zero_label=False)


def write_data(
    root: Path,
    labels: Sequence[int] = (0, 1, 2, 3),
    names: Sequence[str] = ("sky", "tree", "road"),
) -> Path:
    """Write a data set whose maps have all labels, in vertical stripes."""
    rng = np.random.default_rng(0)
    row = np.array(labels, np.uint8)[np.arange(SIZE[1]) * len(labels) // SIZE[1]]
    for split, count in SPLITS.items():
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            name = f"{split[0]}{number}"
            pixels = rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"images/{split}/{name}.jpg")
            save(root / f"annotations/{split}/{name}.png", np.tile(row, (SIZE[0], 1)))
    (root / "classes.txt").write_text("\n".join(names))
    return root


def save(path: Path, labels: np.ndarray) -> None:
    Image.fromarray(labels).save(path)


def load(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def masks_of(root: Path) -> list[Path]:
    return sorted((root / "annotations").rglob("*.png"))


def change_labels(root: Path, split: str, **labels: int) -> None:
    """Replace labels in a split's maps: `l2=1` makes label 2 label 1."""
    for path in (root / "annotations" / split).iterdir():
        changed = load(path).copy()
        for old, new in labels.items():
            changed[load(path) == int(old[1:])] = new
        save(path, changed)


def each_mask(change: Callable[[Path], Any]) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        for path in masks_of(root):
            change(path)

    return do


def orient(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.open(path).save(path, exif=exif, quality=95)


def save_two_bits(path: Path) -> None:
    """Write labels 0 to 3 as a grey PNG of 2 bits per pixel, by the PNG specification: Pillow has no such mode."""
    groups = load(path).reshape(SIZE[0], -1, 4).astype(int)
    packed = (groups << np.array([6, 4, 2, 0])).sum(2).astype(np.uint8)
    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 2, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


def save_palette(path: Path, order: Sequence[int], colours: Sequence[Sequence[int]]) -> None:
    """Write a palette image in which label i has index `order[i]` and the colour `colours[i]`."""
    indexed = Image.fromarray(np.array(order, np.uint8)[load(path)])
    palette = np.zeros((len(order), 3), np.uint8)
    palette[list(order)] = colours
    indexed.putpalette(palette.ravel().tolist())
    indexed.save(path)


def to_jpeg(path: Path) -> None:
    Image.open(path).save(path.with_suffix(".jpg"))
    path.with_suffix(".jpg").rename(path)


def problems(root: Path, recipe: Any = RECIPE, state: str = "problem") -> str:
    reading = Reading(display=Display(quiet=True), recipe=recipe)
    findings: list[Finding] = [f for f in check_ade20k(root, reading) if f.state == state]
    return "\n".join("\n".join((f.said, *f.items)) for f in findings)


def check(root: Path, recipe: Any = RECIPE) -> list[str]:
    """Do what a run does before training."""
    splits = [find_split(root, name) for name in SPLITS]
    names = read_class_names(root) or ["x"] * 150
    scheme = LabelScheme(classes=len(names), reduce_zero_label=recipe.reduce_zero_label)
    return label_check.check_splits(splits, names, scheme)


REFUSED: dict[str, tuple[dict[str, Any], Callable[[Path], Any], str]] = {
    "background and polyp as 0 and 1": (
        {"labels": (0, 1), "names": ("background", "polyp")},
        lambda _: None,
        r"label 0 is ignored, and label 2 \('polyp'\) appears in no map, .* -o reduce_zero_label=false, or .*; if 0 is",
    ),
    "labels from 0 without a background": (
        {"labels": (0, 1, 2)},
        lambda _: None,
        r"label 3 \('road'\) appears in no map, so the labels seem to be 0 to 2\. If label 0 is 'sky'",
    ),
    "labelme's names": (
        {"labels": (0, 1), "names": ("__ignore__", "_background_", "cat")},
        lambda _: None,
        r"label 3 \('cat'\) appears in no map",
    ),
    "one class": (
        {"labels": (0, 2)},
        lambda _: None,
        r"contain one class, 'tree', so that every prediction would be right; label a second class, or, if label 0",
    ),
    "0 and 255": (
        {"labels": (0, 255), "names": ("background", "polyp")},
        lambda _: None,
        r"has label 255, but the largest label of 2 classes is 2; if 255 marks pixels .* --ignore-label 255`",
    ),
    "one-bit maps": (
        {"labels": (0, 1), "names": ("background", "polyp")},
        each_mask(lambda path: save(path, load(path) > 0)),
        r"the labels seem to be 0 to 1",
    ),
    "nothing to train on": (
        {},
        lambda root: change_labels(root, "training", l1=0, l2=0, l3=0),
        r"annotations/training contain only label 0, which is ignored; label some pixels 1 or above",
    ),
    "nothing to score": (
        {},
        lambda root: change_labels(root, "validation", l1=0, l2=0, l3=0),
        r"annotations/validation contain only label 0, which is ignored",
    ),
    "a JPEG named .png": ({}, each_mask(to_jpeg), r"t0\.png is a JPEG, whose lossy compression"),
    "grey of two bits": (
        {},
        each_mask(save_two_bits),
        r"has 2 bits per pixel, .* label 1 becomes 85; save it with 8 bits",
    ),
    "palette in another order": (
        {},
        each_mask(lambda path: save_palette(path, (2, 0, 1, 3), [(k, k, k) for k in range(4)])),
        r"index 0 is shown as grey 1, and either could be the label; save it as a greyscale PNG",
    ),
    "colours": (
        {},
        each_mask(lambda path: save(path, np.stack([load(path) * 64] + [load(path)] * 2, 2))),
        r"has 3 channels \(RGB\), but a label map has one; .* --colours FILE` replaces",
    ),
    "alpha": (
        {},
        each_mask(lambda path: Image.open(path).convert("LA").save(path)),
        r"has 2 channels \(LA\), but a label map has one; save it as a greyscale PNG of 8 bits",
    ),
    "labels stretched to 16 bits": (
        {},
        each_mask(lambda path: save(path, load(path).astype(np.uint16) * 257)),
        r"has label 771, but the largest label of 3 classes is 3",
    ),
    "turned image and unturned map": (
        {},
        lambda root: orient(root / "images/training/t1.jpg", 6),
        r"t1\.png is 8x12 pixels \(HxW\), its image 12x8 once its EXIF orientation 6 is applied, .*; turn the map",
    ),
    "an empty map": (
        {},
        lambda root: masks_of(root)[0].write_bytes(b""),
        r"t0\.png cannot be read: the file is empty; replace it",
    ),
    "a Git LFS pointer": (
        {},
        lambda root: masks_of(root)[0].write_text("version https://git-lfs.github.com/spec/v1\n"),
        r"t0\.png cannot be read: it is a pointer of Git LFS",
    ),
    "a text file": (
        {},
        lambda root: masks_of(root)[0].write_text("<html>"),
        r"t0\.png cannot be read: it is not a PNG; replace it",
    ),
    "maps named _mask": (
        {},
        each_mask(lambda path: path.rename(path.with_name(f"{path.stem}_mask.png"))),
        r"t0\.png does not exist \(3 of 3 images .* have none\); .*t0_mask\.png has a similar name; a label map has",
    ),
    "maps as .jpg": (
        {},
        each_mask(lambda path: path.rename(path.with_suffix(".jpg"))),
        r"t0\.png does not exist .*training/t0\.jpg has a similar name; .* is a \.png file",
    ),
    "two images with one map": (
        {},
        lambda root: Image.new("RGB", SIZE[::-1]).save(root / "images/training/t1.png"),
        r"images .*t1\.jpg and .*t1\.png have the same label map, .*t1\.png; remove or rename one",
    ),
    "train and val": (
        {},
        lambda root: (root / "images/training").rename(root / "images/train"),
        r"images/training does not exist; .*/images has the folders train, validation; `simmim-bench data",
    ),
    "HEIC images": (
        {},
        lambda root: [
            p.rename(p.with_suffix(".heic")) for p in (root / "images/training").iterdir()
        ],
        r"images/training has no images; add them\. 3 files are not images that can be read: \.heic 3",
    ),
    "an empty line among the names": (
        {},
        lambda root: (root / "classes.txt").write_text("sky\n\nroad\n"),
        r"line 2 of .*classes\.txt is empty",
    ),
    "a name twice": (
        {},
        lambda root: (root / "classes.txt").write_text("sky\nroad\nsky\n"),
        r"lines 1 and 3 of .*classes\.txt are both 'sky'",
    ),
    "one name": (
        {},
        lambda root: (root / "classes.txt").write_text("polyp\n"),
        r"names 1 classes; .* if label 0 is the background, name it on the first line and use -o reduce_zero",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_score_nothing_meaningful_is_refused_and_doctor_says_the_same(
    case: str, tmp_path: Path
) -> None:
    arguments, damage, message = REFUSED[case]
    root = write_data(tmp_path / "data", **arguments)
    damage(root)
    with pytest.raises(DataError, match=message) as caught:
        check(root)
    assert str(caught.value) in problems(root)
    assert "\n" not in str(caught.value)
    assert " object at 0x" not in str(caught.value)


REMARKED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "class absent in training": (
        lambda root: change_labels(root, "training", l2=1),
        "annotations/training: 1 of 3 classes have no pixel: tree",
    ),
    "class absent in validation": (
        lambda root: change_labels(root, "validation", l2=1, l3=1),
        "annotations/validation: 2 of 3 classes have no pixel, and count for mIoU only where predicted: tree, road",
    ),
    "upside down": (
        lambda root: orient(root / "images/training/t2.jpg", 3),
        "images/training: EXIF orientation is applied to 1 of 3 images, as MMSegmentation does; their label maps must "
        "be upright as well: t2.jpg",
    ),
    "the same image in both splits": (
        lambda root: shutil.copy(
            root / "images/training/t0.jpg", root / "images/validation/v1.jpg"
        ),
        ": 1 of 2 validation images are training images as well (the same bytes), which raises the score: v1.jpg",
    ),
    "an image that cannot be read": (
        lambda root: (root / "images/training/t0.jpg").rename(root / "images/training/t0.heic"),
        "images/training: 1 file is not an image that can be read: .heic 1 (t0.heic)",
    ),
    "a map without image": (
        lambda root: (root / "images/training/t0.jpg").unlink(),
        "annotations/training: 1 label map has no image and is not used: t0.png",
    ),
    "files of macOS": (
        lambda root: (
            [(p.parent / f"._{p.name}").write_bytes(b"\0") for p in masks_of(root)[:1]]
            + [(root / "images/training/._t0.jpg").write_bytes(b"\0")]
        ),
        "images/training: 1 hidden entry is not read: ._t0.jpg",
    ),
}


@pytest.mark.parametrize("case", REMARKED)
def test_what_a_user_should_know_is_logged_and_doctor_says_the_same(
    case: str, tmp_path: Path
) -> None:
    damage, message = REMARKED[case]
    root = write_data(tmp_path / "data")
    assert check(root) == []
    damage(root)
    remarks = check(root)
    assert any(remark == f"{root}{message}" or remark == f"{root}/{message}" for remark in remarks)
    assert all(remark in problems(root, state="warning") for remark in remarks)
    assert not problems(root)


READ: dict[str, Callable[[Path], Any]] = {
    "16 bits": lambda path: save(path, load(path).astype(np.uint16)),
    "palette of Pascal VOC": lambda path: save_palette(
        path, range(4), [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    ),
    "suffix in upper case": lambda path: path.rename(path.with_suffix(".PNG")),
}


@pytest.mark.parametrize("case", READ)
def test_maps_of_other_kinds_have_the_same_labels(case: str, tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    expected = load(masks_of(root)[0])
    each_mask(READ[case])(root)
    split = find_split(root, "training")
    classes = read_classes(split.masks[0], LabelScheme(classes=3), split.images[0], SIZE)
    assert (classes == expected - np.uint8(1)).all()
    assert check(root) == []


def test_images_of_every_suffix_are_read_with_the_maps_of_their_names(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    folder = root / "images/training"
    (folder / "t1.jpg").rename(folder / "t1.JPG")
    Image.open(folder / "t2.jpg").save(folder / "t2.png")
    (folder / "t2.jpg").unlink()
    split = find_split(root, "training")
    assert [path.name for path in split.images] == ["t0.jpg", "t1.JPG", "t2.png"]
    assert [path.name for path in split.masks] == ["t0.png", "t1.png", "t2.png"]
    assert check(root) == []


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfsky\r\nroad\r\n")
    assert read_class_names(tmp_path) == ["sky", "road"]


def test_turned_images_are_read_upright_as_mmcv_reads_them(mmseg: None, tmp_path: Path) -> None:
    import mmcv

    from transfer.segmentation.data import LoadImage

    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[0, :, 0], pixels[:, 0, 1] = 255, 128  # no two of the eight orientations look alike
    image = tmp_path / "image.jpg"
    for orientation in range(1, 9):
        Image.fromarray(pixels).resize((96, 64), Image.Resampling.NEAREST).save(image)
        orient(image, orientation)
        expected = mmcv.imread(str(image))
        seen = LoadImage().transform({"img_path": image})
        assert seen["ori_shape"] == expected.shape[:2]
        assert np.abs(seen["img"].astype(int) - expected).max() <= 3  # two JPEG decoders


@pytest.mark.heavy
def test_label_0_is_a_class_on_request(mmseg: None, tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", (0, 1, 2, 255), ("background", "polyp", "tool"))
    record = transfer(tmp_path / "run", root, replace(WITH_ZERO, max_iters=1), label_maps=True)
    matrix = np.zeros((3, 3), int)
    for _, true, predicted, pixels in entries(tmp_path / "run"):
        matrix[true, predicted] += pixels
    # 255 is ignored, and each of the other labels has a quarter of the pixels.
    assert matrix.sum(1).tolist() == [SIZE[0] * 3 * SPLITS["validation"]] * 3
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    scored = union > 0
    miou = 100 * (np.diag(matrix)[scored] / union[scored]).mean()
    assert record.metrics["miou"] == pytest.approx(miou)
    truth = load(masks_of(root)[-1])
    written = [load(path) for path in (tmp_path / "run/predictions/label_maps").iterdir()]
    for label in range(3):
        predicted = sum(((labels == label) & (truth != 255)).sum() for labels in written)
        assert predicted == matrix[:, label].sum()
    assert not problems(root, WITH_ZERO)


def test_labels_from_1_are_refused_where_0_is_a_class(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    with pytest.raises(DataError, match=r"has label 3, .* is 2; .* remove reduce_zero_label=false"):
        check(root, WITH_ZERO)


def test_255_is_a_class_only_of_255_classes(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(255)]
    root = write_data(tmp_path / "data", (1, 254, 255), names)
    split = find_split(root, "training")
    classes = read_classes(split.masks[0], LabelScheme(classes=255), split.images[0], SIZE)
    assert np.unique(classes).tolist() == [0, 253, 254]


def test_a_large_data_set_is_read_completely_if_a_sample_looks_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (label_check, data_checks):
        monkeypatch.setattr(module, "CHECK_AT_ONCE", 0)
        monkeypatch.setattr(module, "SAMPLE", 1)
    root = write_data(tmp_path / "data", (0, 1), ("background", "polyp"))
    with pytest.raises(DataError, match="seem to be 0 to 1") as caught:
        check(root)
    assert str(caught.value) in problems(root)
    # Labels 1 and 2 in a single map, whichever the sample holds.
    for place in (0, 2):
        before = load(masks_of(root)[place])
        save(masks_of(root)[place], np.arange(SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint8) % 3)
        assert check(root) == []
        assert not problems(root)
        save(masks_of(root)[place], before)


def test_the_names_to_remove_are_all_that_no_map_has(tmp_path: Path) -> None:
    """The first name is that of a background, but the data really begin with label 1."""
    root = write_data(tmp_path / "data", (0, 1, 2), ("background", "cat", "dog", "zebra"))
    with pytest.raises(DataError, match=r"classes\.txt without 'dog', 'zebra'\."):
        check(root)
    (root / "classes.txt").write_text("background\ncat\n")
    assert check(root) == []


def test_a_rare_class_that_a_sample_lacks_hides_no_shift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels 0 to 2 of three classes, of which one appears in a single map: a sample seems to lack two classes."""
    monkeypatch.setattr(label_check, "CHECK_AT_ONCE", 0)
    monkeypatch.setattr(label_check, "SAMPLE", 1)
    root = write_data(tmp_path / "data", (0, 1), ("sky", "tree", "road"))
    save(masks_of(root)[1], np.arange(SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint8) % 3)
    with pytest.raises(DataError, match="seem to be 0 to 2"):
        check(root)


def test_labels_are_judged_by_all_images_where_a_limit_uses_some(tmp_path: Path) -> None:
    """One map alone has the last label: the others seem to have labels from 0."""
    root = write_data(tmp_path / "data", (0, 1, 2), ("background", "cat", "dog"))
    whole = find_split(root, "training")
    (used,) = whole.limited(1).masks
    last = next(mask for mask in whole.masks if mask != used)
    save(last, np.where(load(last) == 2, 3, load(last)).astype(np.uint8))
    with pytest.raises(DataError, match="seem to be 0 to 2"):
        check_splits(
            [find_split(root, name).limited(1) for name in SPLITS],
            ["background", "cat", "dog"],
            LabelScheme(classes=3, reduce_zero_label=True),
        )
    recipe = replace(RECIPE, limit=1)
    out, quiet = tmp_path / "run", Display(quiet=True)
    with open_run(out, recipe=recipe, deviates={}, arguments={}, display=quiet) as run:
        data = read_data(run, root, reduce_zero_label=True, limit=1)
    assert (data.training.masks, len(data.validation)) == ((used,), 1)
    assert "limit=1 training=1 validation=1" in (out / "log.txt").read_text()
