"""`data check`, `split` and `sample`: what they write, what runs read of it, and what they refuse."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from support.cli import fails, run

from simmim_bench.cli.data_check import recognise
from simmim_bench.data.class_splits import class_files
from simmim_bench.data.pretraining_images import any_images, held_out_images


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Write 8 cats, 20 dogs and 4 emus, without splits."""
    folder = tmp_path / "pets"
    for place, (name, count) in enumerate({"cat": 8, "dog": 20, "emu": 4}.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (8, 8), (10 * place, 5 * number, 40))
            image.save(folder / name / f"{number:02}.png")
    return folder


def read_images(data: Path, split: str, val_fraction: float | None = None) -> set[bytes]:
    images = class_files(data, split, val_fraction)
    return {images.read(index) for index in range(len(images))}


@pytest.mark.parametrize("name", ["out", "all.csv", "all.tsv", "all.jsonl"])
def test_a_split_is_the_one_that_a_run_with_the_fraction_holds_out(
    tmp_path: Path, pets: Path, name: str
) -> None:
    code, out, _ = run("data", "split", pets, tmp_path / name, "--val-fraction", 0.25)
    assert code == 0
    assert "val       8 images of 3 classes, 1 to 5 per class" in out
    for split in ("train", "val"):
        assert read_images(tmp_path / name, split) == read_images(pets, split, 0.25)
    found = class_files(tmp_path / name, "val")
    assert [found.classes[label] for label in found.labels].count("dog") == 5
    held_out = held_out_images(tmp_path / name)
    assert held_out is not None
    assert len(held_out) == 8


def test_a_folder_of_links_is_replaced_only_on_request_and_says_where_it_is_from(
    tmp_path: Path, pets: Path
) -> None:
    out = tmp_path / "deep" / "out"
    assert run("data", "split", pets, out, "--seed", 1, "--json")[0] == 0
    assert (out / "val/emu").is_dir()
    assert json.loads((out / "parts.json").read_text())["images"] == {"train": 28, "val": 4}
    pets.rename(tmp_path / "moved")
    assert not [path for path in out.rglob("*.png") if path.exists()]  # links, not copies
    (tmp_path / "moved").rename(pets)
    assert "is not empty; pass --overwrite" in fails(2, "data", "split", pets, out)
    assert run("data", "split", pets, out, "--overwrite", "--copy")[0] == 0
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    assert run("data", "split", pets, out, "--overwrite", "--dry-run")[1].count("dry run") == 1
    (out / "notes.txt").write_text("mine")
    assert "was not changed" in fails(2, "data", "split", pets, out, "--overwrite")
    assert "has a validation split" in fails(2, "data", "split", out, tmp_path / "again")
    assert "within each other" in fails(2, "data", "split", pets, pets / "out")
    assert "is not below" in fails(4, "data", "split", pets, tmp_path / "deep" / "x.csv")
    assert not (tmp_path / "deep" / "x.csv").exists()


def test_images_without_classes_are_split_and_labels_that_name_no_folder_refused(
    tmp_path: Path, pets: Path
) -> None:
    out = tmp_path / "out"
    assert run("data", "split", pets / "dog", out)[0] == 0
    assert len(any_images(out)) == 18
    (tmp_path / "odd.csv").write_text("path,label\n" + "".join(
        f"pets/{name}/0{number}.png,a/{name}\n" for name in ("cat", "dog") for number in range(4)
    ))  # fmt: skip
    assert "cannot be the name of a folder" in fails(
        4, "data", "split", tmp_path / "odd.csv", tmp_path / "odd"
    )
    assert not (tmp_path / "odd").exists()
    assert run("data", "split", tmp_path / "odd.csv", tmp_path / "new.csv")[0] == 0
    assert class_files(tmp_path / "new.csv", "val").classes == ("a/cat", "a/dog")


def test_a_sample_has_every_class_and_all_validation_images(tmp_path: Path, pets: Path) -> None:
    both, part = tmp_path / "both.csv", tmp_path / "part"
    assert run("data", "split", pets, both, "--val-fraction", 0.25)[0] == 0
    assert run("data", "sample", both, part, "--count", 8)[0] == 0
    train = class_files(part, "train")
    assert Counter(train.labels.tolist()) == {0: 2, 1: 5, 2: 1}  # of 6, 15 and 3
    assert read_images(part, "val") == read_images(both, "val")
    assert run("data", "sample", pets, tmp_path / "five.csv", "--per-class", 5)[0] == 0
    five = class_files(tmp_path / "five.csv", "train")
    assert Counter(five.labels.tolist()) == {0: 5, 1: 5, 2: 4}
    sample = ("data", "sample", pets, tmp_path / "new")
    assert "between the 3 classes and the 32 training images" in fails(2, *sample, "--count", 33)
    assert "use one of --count N and --per-class N" in fails(2, *sample)
    assert not (tmp_path / "new").exists()


def test_check_reports_what_a_run_would_and_exits_4_where_it_would_fail(
    tmp_path: Path, pets: Path, pocket: Path
) -> None:
    code, out, err = run("data", "check", pets)
    assert code == 4
    assert "--val-fraction 0.1" in out
    assert "checked for imagenet" in err
    code, out, _ = run("data", "check", pets, "--val-fraction", 0.25, "--json")
    facts = {f["name"]: f["facts"] for f in json.loads(out)["findings"]}
    assert code == 0
    assert (facts["train"]["images"], facts["val"]["images"]) == (24, 8)
    (pets / "dog" / "00.png").write_bytes(b"")
    code, out, _ = run("data", "check", pets, "--for", "pretrain")
    assert code == 4
    assert "are held out; --val-fraction" in out
    assert "00.png cannot be read: the file is empty" in out
    assert "does not exist" in fails(4, "data", "check", tmp_path / "missing")
    found = {name: recognise(pocket / name) for name in ("imagenet", "coco", "ade20k")}
    assert [*found] == [*found.values()]
    assert recognise(pets / "dog") == "pretrain"


@pytest.mark.heavy
def test_a_run_with_held_out_images_is_evaluated_on_them_or_on_a_validation_split(
    tmp_path: Path, pets: Path
) -> None:
    data, split, trained = pets, tmp_path / "split", tmp_path / "run"
    options = (
        "--val-fraction",
        "0.2",
        "--epochs",
        "1",
        "-o",
        "warmup_epochs=0",
        "--batch-size",
        "4",
        "--quiet",
    )
    ckpt = ("--ckpt", "random:vit_pocket", "--data", data, "--out", trained)
    assert run("transfer", "imagenet", *ckpt, *options)[0] == 0
    assert run("data", "split", data, split, "--seed", "1", "--quiet")[0] == 0
    found = {}
    for scored in (data, split):
        given = ("--ckpt", trained, "--data", scored, "--out", tmp_path / f"scored_{scored.name}")
        code, stdout, err = run("evaluate", "imagenet", *given, "--json", "--quiet")
        assert code == 0, err
        found[scored] = json.loads(stdout)["data"].get("held_out")
    assert found == {data: {"fraction": 0.2, "seed": 0}, split: None}
