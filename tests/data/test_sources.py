"""Tests of image sources: folders, shards, Hugging Face datasets, and the cached index of a tree."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

import simmim_bench.data.listing as listing
from pretrain.recipes import POCKET
from pretrain.train import pretrain
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.listing import list_tree
from simmim_bench.data.pretraining_images import any_images, held_out_images
from simmim_bench.data.sources import ImageSource
from simmim_bench.display import Display
from simmim_bench.errors import DataError
from simmim_bench.files import LFS_POINTER
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run


def contents(source: ImageSource) -> list[bytes]:
    return [source.read(i) for i in range(len(source))]


def walk_images(folder: Path) -> list[Path]:
    return sorted(
        Path(parent, file)
        for parent, _, files in os.walk(folder)
        for file in files
        if file.lower().endswith((".png", ".jpg", ".jpeg"))
    )


@pytest.fixture
def shards(tmp_path: Path, pocket: Path) -> Path:
    """Write the synthetic images as WebDataset does: two shards per split, with key.cls for every key.jpg."""
    folder = tmp_path / "shards"
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        paths = walk_images(pocket / "imagenet" / split)
        for number in range(2):
            with tarfile.open(folder / split / f"{number:05d}.tar", "w") as archive:
                for path in paths[number::2]:
                    archive.add(path, f"{path.parent.name}_{path.name}")
                    label = tmp_path / "label.cls"
                    label.write_text("0")
                    archive.add(label, f"{path.parent.name}_{path.stem}.cls")
    return folder


def test_folders_yield_every_image_once_in_order(pocket: Path) -> None:
    found = any_images(pocket / "imagenet")
    paths = walk_images(pocket / "imagenet" / "train")
    assert contents(found) == [path.read_bytes() for path in paths]
    by_class = class_folders(pocket / "imagenet", "train")
    assert list(by_class.paths) == paths
    assert [by_class.classes[label] for label in by_class.labels] == [p.parent.name for p in paths]
    held_out = held_out_images(pocket / "imagenet")
    assert held_out is not None
    assert len(held_out) == len(walk_images(pocket / "imagenet" / "val"))


def test_shards_yield_their_images(shards: Path, pocket: Path) -> None:
    found = any_images(shards)
    paths = walk_images(pocket / "imagenet" / "train")
    assert contents(found) == [path.read_bytes() for path in paths[::2] + paths[1::2]]
    assert contents(found.subset([5, 2])) == [found.read(5), found.read(2)]
    assert found.name(0).startswith(str(shards / "train" / "00000.tar:"))
    one = any_images(shards / "val" / "00001.tar")
    assert contents(one) == [p.read_bytes() for p in walk_images(pocket / "imagenet" / "val")[1::2]]


def test_fingerprint_depends_on_names_and_sizes(shards: Path, tmp_path: Path) -> None:
    before = any_images(shards).fingerprint()
    assert any_images(shards).fingerprint() == before
    with tarfile.open(shards / "train" / "00001.tar", "a") as archive:
        extra = next((shards.parent).glob("label.cls"))
        archive.add(extra, "new.jpg")
    assert any_images(shards).fingerprint() != before


@pytest.mark.heavy
def test_pretraining_from_shards_with_workers(tmp_path: Path, shards: Path) -> None:
    recipe = replace(POCKET, epochs=1, warmup_epochs=0, batch_size=16, num_workers=2)
    with open_run(
        tmp_path / "run", recipe=recipe, deviates={}, arguments={}, display=Display(quiet=True)
    ) as run:
        checkpoint = pretrain(RunContext(run=run, seed=0), recipe=recipe, deviates={}, data=shards)
    provenance = read_checkpoint(str(checkpoint)).provenance
    assert provenance["data"]["images"] == 60
    assert provenance["held_out_loss"] > 0


def test_a_hugging_face_dataset_yields_its_images(tmp_path: Path, pocket: Path) -> None:
    datasets = pytest.importorskip("datasets")
    paths = walk_images(pocket / "imagenet" / "train")[:10]
    columns = {"photo": [str(p) for p in paths], "caption": ["an object"] * 10}
    table = datasets.Dataset.from_dict(columns).cast_column("photo", datasets.Image())
    (tmp_path / "set").mkdir()
    table.to_parquet(str(tmp_path / "set" / "train-00000-of-00001.parquet"))
    found = any_images(Path(f"hfds:{tmp_path / 'set'}"))
    assert contents(found) == [path.read_bytes() for path in paths]
    assert contents(found.subset([3])) == [paths[3].read_bytes()]
    assert found.fingerprint() == any_images(Path(f"hfds:{tmp_path / 'set'}")).fingerprint()
    assert held_out_images(Path(f"hfds:{tmp_path / 'set'}")) is None
    with pytest.raises(DataError, match=r"dataset .*nowhere .*cannot be read"):
        any_images(Path(f"hfds:{tmp_path / 'nowhere'}"))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a tree of 12 files that is large enough for an index, with a temporary cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "INDEX_MIN_FILES", 5)
    for number in range(12):
        folder = tmp_path / "tree" / f"c{number % 3}" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(b"x")
    for parent, _, _ in os.walk(tmp_path / "tree"):
        os.utime(parent, (1e9, 1e9))  # long ago: just after a change, folders are not indexed
    return tmp_path / "tree"


def test_the_index_avoids_listing_unchanged_folders(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    list_folder = listing.list_folder

    def spy(folder: str) -> listing.Folder:
        listed.append(os.path.relpath(folder, tree))
        return list_folder(folder)

    monkeypatch.setattr(listing, "list_folder", spy)
    assert list(list_tree(tree).images) == walk_images(tree)
    assert len(listed) == 7
    listed.clear()
    assert list(list_tree(tree).images) == walk_images(tree)
    assert not listed
    (tree / "c1" / "deep" / "new.png").write_bytes(b"x")
    (tree / "c2" / "deep" / "2.jpg").unlink()
    shutil.rmtree(tree / "c0")
    assert list(list_tree(tree).images) == walk_images(tree)
    assert sorted(listed) == [".", "c1/deep", "c2/deep"]


def test_a_change_within_the_clocks_resolution_is_noticed(tree: Path) -> None:
    now = time.time_ns()
    for name in ("new.png", "newer.png"):
        (tree / "c1" / "deep" / name).write_bytes(b"x")
        os.utime(tree / "c1" / "deep", ns=(now, now))
        assert list(list_tree(tree).images) == walk_images(tree)


def test_a_damaged_index_is_rebuilt(tree: Path, tmp_path: Path) -> None:
    wanted = list(list_tree(tree).images)
    (index,) = (tmp_path / "cache").rglob("index-*.json")
    for damage in ("", "[]", '{"": 3}', '{"": [1, 2]}', json.dumps({"": [0, ["gone"], []]})):
        index.write_text(damage)
        assert list(list_tree(tree).images) == wanted


def test_images_are_listed_when_the_index_cannot_be_written(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert list(list_tree(tree).images) == walk_images(tree)


def test_the_error_names_a_folder_without_read_permission(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(folder: str | Path) -> object:  # as for a user other than root
        if Path(folder).name == "c1":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"data folder .*c1 cannot be listed: Permission denied"):
        any_images(tree)
    (tree / "train").mkdir()
    (tree / "c1").rename(tree / "train" / "c1")
    with pytest.raises(DataError, match=r"data folder .*c1 cannot be listed: Permission denied"):
        class_folders(tree, "train")


def write_archive(path: Path, mode: Literal["w", "w:gz"]) -> None:
    path.parent.mkdir()
    with tarfile.open(path, mode):
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"data folder .* does not exist; use .* hfds:NAME"),
        (lambda p: p.mkdir(), r"has no images \(\.jpg.*\) and no \*\.tar"),
        (
            lambda p: (p.mkdir(), (p / "a.tar").write_bytes(b"no tar")),
            "a.tar cannot be read: it is no whole tar",
        ),
        (
            lambda p: write_archive(p / "a.tar", "w"),
            r"no images .* are in shard .*a\.tar",
        ),
        (
            lambda p: write_archive(p / "a.tar", "w:gz"),
            "a.tar cannot be read: it is compressed; write it without compression",
        ),
        (
            lambda p: (p.mkdir(), (p / "a.tar").write_bytes(LFS_POINTER + b".github.com/spec/v1")),
            "a.tar cannot be read: it is a pointer of Git LFS, .* `git lfs pull`",
        ),
        (
            lambda p: (p / "valid").mkdir(parents=True),
            r"has valid/ but no train/, so the held-out images would be trained on",
        ),
    ],
    ids=["missing", "empty", "no tar", "empty tar", "compressed", "pointer", "validation alone"],
)
def test_data_without_images_raise_an_error(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        any_images(tmp_path / "data")
