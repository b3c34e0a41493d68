"""Test compact lists of names against plain lists, and their order and fingerprint against naive ones."""

from __future__ import annotations

import hashlib
import os
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import Dataset

from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.listing import list_tree
from simmim_bench.data.names import FileNames, PathList
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.sources import image_list
from simmim_bench.data.workers import WorkerLoader
from simmim_bench.errors import DataError

# The fingerprint of the files of `write_tree` in all versions.
COMMITTED = "5dc9cc7c75531632e8b4ea78a1ec4d909a9bb54779a592c3c5bda72e08c526ce"
# "\udcff" is Python's for the byte 0xff, which is no UTF-8.
NAMES = [
    "a/z.jpg",
    "a-b/c.jpg",
    "",
    "é/\udcff.png",
    "日本.jpg",
    "a b\n.jpg",
    "\udce9\udcff/x.jpg",
    "😀",
]


def test_packed_names_are_those_of_a_list() -> None:
    packed = FileNames.pack(NAMES)
    assert list(packed) == NAMES
    assert [packed[i] for i in range(-len(NAMES), len(NAMES))] == NAMES + NAMES
    assert list(packed[1:7:2]) == NAMES[1:7:2]
    assert list(packed.take(np.array([5, 3, 3]))) == [NAMES[5], NAMES[3], NAMES[3]]
    assert "日本.jpg" in packed
    assert packed.index("日本.jpg") == 4
    assert list(pickle.loads(pickle.dumps(packed))) == NAMES
    assert list(FileNames.pack([])) == list(packed.take([])) == []
    with pytest.raises(IndexError):
        packed[len(NAMES)]


@pytest.mark.parametrize("folder", [".", "/", "data/é", "/data"])
def test_paths_and_their_texts_are_pathlibs(folder: str) -> None:
    names = [name for name in NAMES if name]
    wanted = [Path(folder, name) for name in names]
    paths = PathList.pack(Path(folder), wanted)
    assert list(paths) == [paths[i] for i in range(len(names))] == wanted
    assert [paths.text(i) for i in range(len(names))] == [str(path) for path in wanted]


def test_pickles_for_workers_hold_no_names() -> None:
    names = [f"class/{i:06d}.jpg" for i in range(10_000)]
    packed = FileNames.pack(names)
    assert len(ForkingPickler.dumps(packed)) < 2_000
    assert list(packed) == names


class Names(Dataset[str]):
    def __init__(self, names: FileNames) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> str:
        return self.names[index]


@pytest.mark.slow
def test_workers_that_are_not_forked_read_the_names() -> None:
    loader = WorkerLoader(
        Names(FileNames.pack(NAMES)),
        batch_size=3,
        num_workers=2,
        multiprocessing_context="forkserver",
    )
    assert [name for batch in loader for name in batch] == NAMES


def write_tree(root: Path) -> list[Path]:
    names = [
        b"b/1.jpg",
        b"b-c/2.jpg",
        b"b/d/3.png",
        b"b/\xff.jpg",
        "b/é.jpg".encode(),
        b"b.x/4.jpg",
    ]
    names.append("b/\uffee.jpg".encode())  # its code point lies above that of "\udcff"
    for size, name in enumerate(names):
        path = root / "train" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return sorted(root / "train" / os.fsdecode(name) for name in names)


def naive_fingerprint(root: Path, paths: list[Path]) -> str:
    lines = [f"{path.relative_to(root)} {path.stat().st_size}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def test_order_and_fingerprint_are_those_of_paths(tmp_path: Path) -> None:
    paths = write_tree(tmp_path)
    assert list(list_tree(tmp_path / "train").images) == paths
    images = class_folders(tmp_path, "train").measured()
    flat = any_images(tmp_path)
    assert [images.name(i) for i in range(len(images))] == [str(path) for path in paths]
    assert [flat.name(i) for i in range(len(flat))] == [str(path) for path in paths]
    wanted = naive_fingerprint(tmp_path, paths)
    assert wanted == COMMITTED
    assert flat.fingerprint() == wanted
    assert image_list(tmp_path, paths, [0] * len(paths), ["b"]).fingerprint() == wanted
    some = naive_fingerprint(tmp_path, [paths[4], paths[1]])
    for path in paths:
        path.unlink()
    # Sizes that are known are not read again.
    assert images.fingerprint() == wanted
    assert images.subset([4, 1]).fingerprint() == some
    with pytest.raises(DataError, match=r"image .*4\.jpg cannot be read: No such file"):
        image_list(tmp_path, paths[-1:], [0], ["b"]).measured()


def test_labels_of_a_subset_follow_its_order() -> None:
    images = image_list(Path("r"), [Path("r", f"{i}.jpg") for i in range(5)], range(5), "abcde")
    assert images.subset([4, 0, 0]).labels.tolist() == [4, 0, 0]
