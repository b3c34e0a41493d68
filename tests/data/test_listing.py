"""Tests of which files are images, and of what is counted and named as left out."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from simmim_bench.data.class_checks import check_same_classes
from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.listing import IMAGE_FORMATS, list_tree
from simmim_bench.data.pretraining_images import any_images, held_out_images
from simmim_bench.data.sources import describe_left_out
from simmim_bench.errors import DataError


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_every_readable_suffix_is_listed_in_either_case(tmp_path: Path) -> None:
    # torchvision: datasets/folder.py, IMG_EXTENSIONS; and those that it drops.
    known = [
        ".jpg",
        ".jpeg",
        ".png",
        ".ppm",
        ".bmp",
        ".pgm",
        ".tif",
        ".tiff",
        ".webp",
        ".gif",
        ".jp2",
        ".avif",
        ".jfif",
    ]
    assert set(known) <= IMAGE_FORMATS.keys()
    write(tmp_path, *(f"a{suffix}" for suffix in known), *(f"B{s.upper()}" for s in known))
    images, left_out = list_tree(tmp_path)
    assert len(images) == 2 * len(known)
    assert not left_out


def test_formats_of_suffixes_are_pillows() -> None:
    extensions = Image.registered_extensions()
    assert {s: extensions[s] for s in IMAGE_FORMATS if s in extensions} == {
        s: f for s, f in IMAGE_FORMATS.items() if s in extensions
    }


def test_left_out_files_are_counted_by_suffix_and_named(tmp_path: Path) -> None:
    write(tmp_path, "c/a.jpg", "c/1.heic", "c/2.HEIC", "d/3.heic", "4.heic", "note.txt", "README")
    found = any_images(tmp_path)
    assert found.name(0) == str(tmp_path / "c" / "a.jpg")
    assert describe_left_out(found, "train") == [
        "data: train: 6 files are not images that can be read: .heic 4 (4.heic, 1.heic, 2.HEIC, …), .txt 1 "
        "(note.txt), no suffix 1 (README)"
    ]


def test_hidden_and_system_files_are_neither_images_nor_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / split, "a/1.jpg", "b/1.jpg")
    write(tmp_path / "train", "a/._1.jpg", "b/.ipynb_checkpoints/1-checkpoint.jpg", "b/Thumbs.db")
    write(tmp_path / "train", "__MACOSX/a/1.jpg", "@eaDir/1.jpg", "a/.DS_Store", "stray.jpg")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "val" / "lost+found").mkdir()
    train = class_folders(tmp_path, "train")
    assert train.classes == class_folders(tmp_path, "val").classes == ("a", "b")
    assert len(train) == len(any_images(tmp_path)) - 1 == 2
    hidden = (
        "@eaDir,.ipynb_checkpoints,__MACOSX,a/.DS_Store,a/._1.jpg,b/.ipynb_checkpoints,b/Thumbs.db"
    )
    assert sorted(train.left_out.hidden) == sorted(hidden.split(","))
    assert train.left_out.outside == ("stray.jpg",)


def test_a_link_loop_is_entered_once(tmp_path: Path) -> None:
    write(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "b")  # not a loop: a folder that is linked twice
    images, left_out = list_tree(tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in images] == ["a/1.jpg", "b/2.jpg", "c/2.jpg"]
    assert left_out.hidden == ("a/loop",)


def test_names_that_are_not_utf8_are_read_and_described(tmp_path: Path) -> None:
    for name in (b"\xff.jpg", b"\xfe.txt"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    found = any_images(tmp_path)
    assert len(found.fingerprint()) == 64
    assert r"\xfe.txt" in found.left_out.describe()


def test_shards_skip_hidden_members_and_follow_hard_links(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name in ("a/1.JPG", "a/._1.jpg", "1.cls"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(name[-3:].encode()))
        link = tarfile.TarInfo("b/2.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a/1.JPG"
        archive.addfile(link)
    write(tmp_path, "beside.jpg")
    found = any_images(tmp_path)
    assert [found.read(i) for i in range(len(found))] == [b"JPG", b"JPG"]
    assert found.left_out.files == ("0.tar:1.cls",)
    assert found.left_out.hidden == ("0.tar:a/._1.jpg",)
    assert found.left_out.outside == ("beside.jpg",)


def test_roboflows_valid_folder_is_the_validation_split(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write(tmp_path / split, "10/1.jpg", "2/1.jpg", "2/deep/er/2.jpg")
    val = class_folders(tmp_path, "val")
    assert (val.classes, val.labels.tolist()) == (("10", "2"), [0, 1, 1])
    held_out = held_out_images(tmp_path)
    assert held_out is not None
    assert len(held_out) == 3


def test_the_validation_images_are_not_pretrained_on(tmp_path: Path) -> None:
    write(tmp_path / "training", "a/1.jpg")
    write(tmp_path / "validation", "train/1.jpg", "b/2.jpg")
    assert [Path(any_images(tmp_path).name(0)).relative_to(tmp_path)] == [Path("training/a/1.jpg")]
    assert len(any_images(tmp_path)) == 1
    held_out = held_out_images(tmp_path)
    assert held_out is not None
    assert len(held_out) == 2


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (
            ["Cat", "dog"],
            ["cat ", "dog"],
            r"1 class of train/ is missing in val/: Cat \('Cat' and 'cat ' differ",
        ),
        (["a", "b"], ["a", "b", "c"], "1 class of val/ is missing in train/: c;"),
    ],
)
def test_unshared_classes_are_named(
    tmp_path: Path, train: list[str], val: list[str], message: str
) -> None:
    for split, names in (("train", train), ("val", val)):
        write(tmp_path / split, *(f"{name}/1.jpg" for name in names))
    with pytest.raises(DataError, match=message):
        check_same_classes(
            class_folders(tmp_path, "train"), class_folders(tmp_path, "val"), tmp_path
        )


def test_splits_that_cannot_be_classified_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train", "all/cat/1.jpg", "all/dog/1.jpg")
    write(tmp_path / "val", "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match=r"has one class folder, all, .* move them up"):
        class_folders(tmp_path, "train")
    with pytest.raises(
        DataError, match=r"val has no class folders; .*torchvision\.datasets\.ImageNet"
    ):
        class_folders(tmp_path, "val")
