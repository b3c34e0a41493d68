"""Claims about where images come from: folders, shards, Hugging Face datasets, the kept index."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

import simmim_bench.data.sources as sources
from pretrain.recipes import POCKET
from pretrain.train import pretrain
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.sources import any_images, class_folders, held_out_images, list_images
from simmim_bench.display import Display
from simmim_bench.errors import DataError
from simmim_bench.runs.run_dir import open_run


def contents(source: sources.ImageSource) -> list[bytes]:
    return [source.read(i) for i in range(len(source))]


def walked(folder: Path) -> list[Path]:
    return sorted(
        Path(place, file)
        for place, _, files in os.walk(folder)
        for file in files
        if file.lower().endswith((".png", ".jpg", ".jpeg"))
    )


@pytest.fixture
def shards(tmp_path: Path, pocket: Path) -> Path:
    """The pocket set's images as WebDataset writes them: two shards, a key.cls beside each key.jpg."""
    folder = tmp_path / "shards"
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        paths = walked(pocket / "imagenet" / split)
        for number in range(2):
            with tarfile.open(folder / split / f"{number:05d}.tar", "w") as archive:
                for path in paths[number::2]:
                    archive.add(path, f"{path.parent.name}_{path.name}")
                    label = tmp_path / "label.cls"
                    label.write_text("0")
                    archive.add(label, f"{path.parent.name}_{path.stem}.cls")
    return folder


def test_folders_give_every_image_once_in_order(pocket: Path) -> None:
    found = any_images(pocket / "imagenet")
    paths = walked(pocket / "imagenet" / "train")
    assert contents(found) == [path.read_bytes() for path in paths]
    by_class = class_folders(pocket / "imagenet", "train")
    assert list(by_class.paths) == paths
    assert [by_class.classes[label] for label in by_class.labels] == [p.parent.name for p in paths]
    unseen = held_out_images(pocket / "imagenet")
    assert unseen is not None
    assert len(unseen) == len(walked(pocket / "imagenet" / "val"))


def test_shards_give_the_images_in_them(shards: Path, pocket: Path) -> None:
    found = any_images(shards)
    paths = walked(pocket / "imagenet" / "train")
    assert contents(found) == [path.read_bytes() for path in paths[::2] + paths[1::2]]
    assert contents(found.subset([5, 2])) == [found.read(5), found.read(2)]
    assert found.name(0).startswith(str(shards / "train" / "00000.tar:"))
    one = any_images(shards / "val" / "00001.tar")
    assert contents(one) == [p.read_bytes() for p in walked(pocket / "imagenet" / "val")[1::2]]


def test_a_fingerprint_follows_names_and_sizes(shards: Path, tmp_path: Path) -> None:
    before = any_images(shards).fingerprint()
    assert any_images(shards).fingerprint() == before
    with tarfile.open(shards / "train" / "00001.tar", "a") as archive:
        extra = next((shards.parent).glob("label.cls"))
        archive.add(extra, "new.jpg")
    assert any_images(shards).fingerprint() != before


def test_shards_and_workers_pretrain(tmp_path: Path, shards: Path) -> None:
    recipe = replace(POCKET, epochs=1, batch_size=16, num_workers=2)
    with open_run(
        tmp_path / "run", recipe=recipe, deviates={}, arguments={}, display=Display(quiet=True)
    ) as run:
        checkpoint = pretrain(recipe=recipe, deviates={}, data=shards, run=run, seed=0)
    provenance = read_checkpoint(str(checkpoint)).provenance
    assert provenance["data"]["images"] == 60
    assert provenance["held_out_loss"] > 0


def test_a_hugging_face_dataset_gives_its_images(tmp_path: Path, pocket: Path) -> None:
    datasets = pytest.importorskip("datasets")
    paths = walked(pocket / "imagenet" / "train")[:10]
    columns = {"picture": [str(p) for p in paths], "caption": ["a thing"] * 10}
    table = datasets.Dataset.from_dict(columns).cast_column("picture", datasets.Image())
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
    """A tree of 12 files whose index is kept, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "INDEXED", 5)
    for number in range(12):
        folder = tmp_path / "tree" / f"c{number % 3}" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(b"x")
    return tmp_path / "tree"


def test_a_kept_index_saves_the_listing_and_follows_changes(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    list_folder = sources._list_folder

    def spy(folder: str) -> tuple[list[str], list[str]]:
        listed.append(os.path.relpath(folder, tree))
        return list_folder(folder)

    monkeypatch.setattr(sources, "_list_folder", spy)
    assert list_images(tree) == walked(tree)
    assert len(listed) == 7
    listed.clear()
    assert list_images(tree) == walked(tree)
    assert not listed
    (tree / "c1" / "deep" / "new.png").write_bytes(b"x")
    (tree / "c2" / "deep" / "2.jpg").unlink()
    shutil.rmtree(tree / "c0")
    assert list_images(tree) == walked(tree)
    assert sorted(listed) == [".", "c1/deep", "c2/deep"]


def test_a_damaged_index_is_made_anew(tree: Path, tmp_path: Path) -> None:
    wanted = list_images(tree)
    (index,) = (tmp_path / "cache").rglob("index-*.json")
    for damage in ("", "[]", '{"": 3}', '{"": [1, 2]}', json.dumps({"": [0, ["gone"], []]})):
        index.write_text(damage)
        assert list_images(tree) == wanted


def test_an_index_that_cannot_be_written_is_done_without(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert list_images(tree) == walked(tree)


def test_a_folder_that_may_not_be_read_is_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(folder: str | Path) -> object:  # what another user than root is told
        if Path(folder).name == "c1":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(sources.os, "scandir", refuse)
    with pytest.raises(DataError, match=r"data folder .*c1 cannot be listed: Permission denied"):
        any_images(tree)
    (tree / "train").mkdir()
    (tree / "c1").rename(tree / "train" / "c1")
    with pytest.raises(DataError, match=r"data folder .*c1 cannot be listed: Permission denied"):
        class_folders(tree, "train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"data folder .* is not there; --data takes .* hfds:NAME"),
        (lambda p: p.mkdir(), r"has no images \(\.jpg.*\) and no \*\.tar"),
        (lambda p: (p.mkdir(), (p / "a.tar").write_bytes(b"no tar")), "a.tar cannot be read"),
        (
            lambda p: (p.mkdir(), tarfile.open(p / "a.tar", "w").close()),
            r"the shards .*a\.tar.* have no images",
        ),
        (
            lambda p: (p.mkdir(), tarfile.open(p / "a.tar", "w:gz").close()),
            "cannot be read as an uncompressed tar",
        ),
    ],
    ids=["missing", "empty", "no tar", "empty tar", "compressed"],
)
def test_data_without_images_are_refused(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        any_images(tmp_path / "data")
