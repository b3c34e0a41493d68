"""Data sets without a validation split, and label files: what is read, what is held out, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.images import open_splits
from pretrain.recipes import POCKET
from simmim_bench.data.class_splits import class_files
from simmim_bench.data.hold_out import held_out_indices, hold_out_images
from simmim_bench.data.label_file import read_label_file
from simmim_bench.data.pretraining_images import any_images, held_out_images, split_training_images
from simmim_bench.data.sources import image_list
from simmim_bench.diagnostics.data_checks import Reading
from simmim_bench.display import Display
from simmim_bench.errors import DataError, UsageError
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run
from transfer.finetune.doctor_checks import check_imagenet
from transfer.split_description import count_seen_held_out


def write_classes(folder: Path, **counts: int) -> Path:
    """Write images of one colour each into class folders."""
    for place, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (8, 8), (10 * place, 5 * number, 40))
            image.save(folder / name / f"{number:02}.png")
    return folder


def write_labels(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_held_out_part_depends_on_names_and_classes_alone() -> None:
    names = [f"{number:03}.jpg" for number in range(100)]
    groups = np.array([0] * 60 + [1] * 35 + [2] * 4 + [3])
    chosen = held_out_indices(names, groups, 0.1)
    # One of 4, none of 1; 3.5 is rounded up.
    assert Counter(groups[chosen].tolist()) == {0: 6, 1: 4, 2: 1}
    order = np.random.default_rng(0).permutation(100)
    moved = held_out_indices([names[i] for i in order], groups[order], 0.1)
    assert sorted(order[moved]) == chosen.tolist()
    alone = held_out_indices(names[60:95], np.zeros(35), 0.1)
    assert (alone + 60).tolist() == chosen[6:10].tolist()
    # A larger fraction holds out the same images and more; another seed others.
    assert {*chosen} < {*held_out_indices(names, groups, 0.3)}
    assert {*chosen} != {*held_out_indices(names, groups, 0.1, seed=1)}


@pytest.mark.parametrize("below", ["train", "."])
def test_pretraining_and_classification_hold_out_the_same_images(
    tmp_path: Path, below: str
) -> None:
    write_classes(tmp_path / "data" / below, cat=9, dog=12, emu=3)
    data = tmp_path / "data"
    train, val = (class_files(data, split, 0.2) for split in ("train", "val"))
    assert Counter(val.labels.tolist()) == {0: 2, 1: 2, 2: 1}
    assert len(train) == 19
    assert not {*train.names} & {*val.names}
    assert train.fingerprint() != val.fingerprint()
    images = any_images(data)
    assert held_out_images(data) is None
    for part, same in zip(split_training_images(images, 0.2), (train, val), strict=True):
        assert part.fingerprint() == same.fingerprint()
    # 5 % by default, of all images where many folders are small
    assert len(split_training_images(images, None)[1]) == 3
    paths = [data / f"{number}/x.jpg" for number in range(200)]
    many = image_list(data, paths, [0] * 200, ["image"])
    assert len(hold_out_images(many, 0.05)[1]) == 10


def test_a_fraction_beside_a_validation_split_or_of_single_images_is_refused(
    tmp_path: Path,
) -> None:
    write_classes(tmp_path / "train", cat=3, dog=3, emu=1)
    with pytest.raises(DataError, match=r"1 of 3 classes have one image, .*: emu"):
        class_files(tmp_path, "val", 0.1)
    with pytest.raises(DataError, match=r"val does not exist; hold out .* --val-fraction 0.1"):
        class_files(tmp_path, "val")
    write_classes(tmp_path / "valid", cat=1, dog=1, emu=1)
    with pytest.raises(UsageError, match="has a validation split; remove --val-fraction"):
        class_files(tmp_path, "train", 0.1)
    flat = write_classes(tmp_path / "flat", a=1)
    with pytest.raises(DataError, match="the only image"):
        split_training_images(any_images(flat), None)


def test_a_pretraining_without_validation_images_measures_images_that_it_does_not_train_on(
    tmp_path: Path,
) -> None:
    data = write_classes(tmp_path / "data", a=30, b=10)
    with open_run(
        tmp_path / "run", recipe=POCKET, deviates={}, arguments={}, display=Display(quiet=True)
    ) as run:
        context = RunContext(run=run, seed=3)
        train, held_out, described = open_splits(context, POCKET, data, None)
        assert (len(train), len(held_out)) == (37, 3)
        assert not {train.name(i) for i in range(37)} & {held_out.name(i) for i in range(3)}
        assert described == {"from": "train", "images": 3, "fraction": 3 / 40, "seed": 0}
        again = open_splits(RunContext(run=run, seed=4), POCKET, data, None)
        assert again[1].fingerprint() == held_out.fingerprint()
    assert "no validation images: held out images=3 of 40" in (tmp_path / "run/log.txt").read_text()


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("x.csv", ["path,label,split", "a/00.png,cat,train", '"a/01.png",dog,', "b/00.png,dog,VALID"]),
        ("x.tsv", ["Label\tfile_name\tset", "cat\ta/00.png\ttrain", "dog\t./a/01.png", "dog\tb/00.png\tval"]),
        (
            "x.jsonl",
            [
                '{"path": "a/00.png", "label": "cat"}',
                '{"path": "a/01.png", "label": "dog", "split": null}',
                '{"path": "b/00.png", "label": "dog", "split": "validation", "more": [1]}',
            ],
        ),
    ],
)  # fmt: skip
def test_label_files_of_every_form_list_the_same_images(
    tmp_path: Path, name: str, lines: list[str]
) -> None:
    write_classes(tmp_path, a=2, b=1)
    path = write_labels(tmp_path, name, *lines)
    train = class_files(path, "train")
    assert [*train.names] == ["a/00.png", "a/01.png"]
    assert [train.classes[label] for label in train.labels] == ["cat", "dog"]
    assert train.read(0) == (tmp_path / "a/00.png").read_bytes()
    table = read_label_file(path)
    assert [*table.splits] == ["train", "train", "val"]
    assert [*any_images(path).labels] == [0, 1]
    held_out = held_out_images(path)
    assert held_out is not None
    assert [held_out.name(0)] == [str(tmp_path / "b/00.png")]


def test_classes_of_a_label_file_are_a_part_of_its_fingerprint(tmp_path: Path) -> None:
    write_classes(tmp_path, a=4)
    rows = [f"a/{number:02}.png,{label}" for number, label in enumerate("xxyy")]
    one = write_labels(tmp_path, "one.csv", "path,label", *rows)
    other = write_labels(tmp_path, "other.csv", "path,label", *rows[:3], "a/03.png,x")
    numbers = [class_files(path, "train").fingerprint() for path in (one, other)]
    assert numbers[0] != numbers[1]
    # The same images are held out as of class folders: one of each class.
    assert Counter(class_files(one, "val", 0.2).labels.tolist()) == {0: 1, 1: 1}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a/00.png,x"], r"has no column path, only a/00.png, x; begin it with .*path,label"),
        (["path,label", "../00.png,x"], r"line 2 .*: ../00.png is not below"),
        (["path,label", "a/00.png,x", "a/./00.png,y"], "names a/00.png again, after line 2"),
        (["path,label", "a/00.png,x", "a/09.png,y"], "1 of 2 images that do not exist .*a/09.png"),
        (["path,label", "a/00.png,"], "no label of 1 images of the split train: a/00.png"),
        (["path,label", "a/00.png,x", "a/01.png,x"], "label file .* has one class, x"),
        (["path,label,split", "a/00.png,x,fold3"], "has the split fold3; use train, val or test"),
        (["path,label", "a/00.png,x,y"], "line 2 .* has 3 values for 2 columns"),
        (["path,label", '"a/00.png,x'], "close its quotation marks"),
        (["path", "a/00.png"], "has no column label; add it to classify"),
        (["path,label"], "lists no images"),
    ],
)
def test_label_files_that_cannot_be_used_are_refused(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    write_classes(tmp_path, a=2)
    path = write_labels(tmp_path, "labels.csv", *lines)
    with pytest.raises(DataError, match=message):
        class_files(path, "train")


def test_the_scored_images_that_a_checkpoint_was_pretrained_on_are_counted(tmp_path: Path) -> None:
    def seen(data: Path, fraction: float | None, of: Path | None = None) -> int:
        deviates = {} if fraction is None else {"val_fraction": fraction}
        recipe = {"name": "x", "deviates": deviates}
        provenance = {"data": {"root": str(of or data)}, "recipe": recipe, "held_out": {}}
        return count_seen_held_out(provenance, data, class_files(data, "val", 0.2))

    data = write_classes(tmp_path / "data", a=20, b=10)
    assert seen(data, None) == 4  # 5 % are 1 + 1
    assert seen(data, 0.1, tmp_path / "b" / ".." / "data") == 3
    assert seen(data, 0.2) == 0
    assert seen(data, None, tmp_path / "b") == 0
    # One of two images of each class is scored, but pretraining holds out a fifth of all.
    small = write_classes(tmp_path / "small", **{f"c{n:02}": 2 for n in range(20)})
    assert seen(small, 0.2) >= 12
    val = class_files(data, "val", 0.2)
    assert count_seen_held_out({}, data, val) == 0
    before = {"data": {"root": str(data)}, "recipe": {"name": "x"}}
    assert count_seen_held_out(before, data, val) == 6


def test_one_cause_is_reported_once_of_both_held_out_parts(tmp_path: Path) -> None:
    reading = Reading(display=Display(quiet=True), val_fraction=0.1)
    (finding,) = check_imagenet(tmp_path, reading)
    assert "has no class folders" in finding.said
