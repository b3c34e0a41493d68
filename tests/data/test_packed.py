"""Tests of `simmim-bench pack`, and of the shards that it writes: equal bytes, resumption, labels, damaged files."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.cli import fails, run
from support.commands import start

from simmim_bench.data.class_splits import class_folders, class_images
from simmim_bench.data.packed import PackedImages, describe_packing
from simmim_bench.data.packed_index import INDEX, open_packed
from simmim_bench.data.pretraining_images import any_images, held_out_images
from simmim_bench.errors import DataError
from transfer.fewshot import few_shot_images, split_sha256
from transfer.shift.class_maps import class_names, list_images

SIDE = 40  # short side of the packed images: half of the sources are longer


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images of two classes, half of them with a short side of 30 pixels, half of 60; val/ has no other."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label in ("ant", "bee.s"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                shape = (30, 50, 3) if number % 2 else (90, 60, 3)
                smooth = np.linspace(0, 255, shape[0])[:, None, None] + np.zeros(shape)
                pixels = (0.7 * smooth + 0.3 * generator.integers(0, 256, shape)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{label}.{number}.JPEG")
    return folder


@pytest.fixture(scope="module")
def packed(photos: Path) -> Path:
    return pack(photos, photos.with_name("packed"))


def pack(src: Path, dst: Path, *options: object) -> Path:
    code, _, error = run("pack", src, dst, "--short-side", SIDE, "--shard-size", 5, *options)
    assert code == 0, error
    return dst


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float64)


def test_the_same_images_are_packed_to_the_same_bytes(photos: Path, packed: Path) -> None:
    again = pack(photos, packed.with_name("again"), "--num-workers", 3)
    found = files_of(again)
    assert found == files_of(packed)
    assert sorted(name for name in found if name.startswith("train")) == [
        *(f"train/{number:06d}.tar" for number in range(4)),
        "train/index.npz",
    ]
    code, out, _ = run("pack", photos, again, "--short-side", SIDE, "--shard-size", 5)
    assert (code, "exists" in out) == (0, True)


def test_names_labels_and_small_images_are_those_of_the_source(photos: Path, packed: Path) -> None:
    for split in ("train", "val"):
        source, found = class_folders(photos, split), class_images(packed, split)
        assert isinstance(found, PackedImages)
        assert list(found.names) == list(source.names)
        assert (found.classes, [*found.labels]) == (source.classes, [*source.labels])
        assert found.left_out == source.left_out
        for index in range(len(source)):
            before, after = source.read(index), found.read(index)
            if index % 2:
                assert after == before
                continue
            image = Image.open(io.BytesIO(after))
            assert (image.format, image.size) == ("JPEG", (SIDE, 60))
            # An independent reduction: 90 x 60 to 60 x 40 averages 3 x 3 pixels to 2 x 2.
            expected = Image.open(io.BytesIO(before)).resize((SIDE, 60), Image.Resampling.BOX)
            assert np.abs(pixels_of(after) - np.asarray(expected, np.float64)).mean() < 12
        small = found.subset(range(1, len(source), 2))
        assert small.fingerprint() == source.subset(range(1, len(source), 2)).fingerprint()
        assert found.fingerprint() != source.fingerprint()
        assert split_sha256(found) == split_sha256(source)
        assert describe_packing(small) == describe_packing(source) == {}
        described = {"short_side": SIDE, "quality": 90, "resized": len(source) // 2}
        assert describe_packing(found) == {"packed": described}


def test_other_readers_find_samples_of_webdataset(photos: Path, packed: Path) -> None:
    samples: dict[str, dict[str, bytes]] = {}
    for shard in sorted((packed / "train").glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                assert (member.mtime, member.uid, member.mode) == (0, 0, 0o644)
                folder, _, base = member.name.rpartition("/")
                key, _, suffix = base.partition(".")  # as webdataset.tariterators.base_plus_ext
                samples.setdefault(f"{folder}/{key}", {})[suffix] = file.read()
    assert len(samples) == 16
    for key, sample in samples.items():
        assert sample.keys() == {"jpg", "cls"}
        assert sample["cls"] == str(["ant", "bee.s"].index(key.split("/")[0])).encode()


def test_shards_without_an_index_are_scanned(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "plain")
    for index in (tmp_path / "plain").rglob(INDEX):
        index.unlink()
    by_index = class_images(packed, "val")
    scanned = class_images(tmp_path / "plain", "val")
    assert (scanned.classes, [*scanned.labels]) == (("0", "1"), [*by_index.labels])
    assert [scanned.read(i) for i in range(8)] == [by_index.read(i) for i in range(8)]
    (tmp_path / "plain" / "classes.txt").write_bytes(
        b"ant\nb\xe9e\n"
    )  # else named by numbers, in silence
    with pytest.raises(DataError, match="is not UTF-8"):
        class_images(tmp_path / "plain", "train")
    (tmp_path / "plain" / "classes.txt").write_text("ant\nbee.s\n")
    assert class_images(tmp_path / "plain", "train").classes == by_index.classes


def test_pretraining_reads_packed_images_of_one_class(photos: Path, packed: Path) -> None:
    found, held_out = any_images(packed), held_out_images(packed)
    assert held_out is not None
    assert (len(found), len(held_out)) == (16, 8)
    assert {*found.labels} == {0}
    assert found.classes == ("image",)
    # Another process opens the shards itself.
    assert pickle.loads(pickle.dumps(found)).read(3) == any_images(photos).read(3)


def test_a_folder_of_class_folders_without_splits_is_packed(photos: Path, tmp_path: Path) -> None:
    dst = pack(photos / "val", tmp_path / "flat")
    found = list_images(dst)
    assert class_names(dst) == found.classes == ("ant", "bee.s")
    assert [*found.labels] == [0] * 4 + [1] * 4
    assert "pack the originals" in fails(2, "pack", dst, tmp_path / "again", "--quality", 80)


def test_a_list_of_images_applies_to_packed_ones(
    photos: Path, packed: Path, tmp_path: Path
) -> None:
    listed = tmp_path / "10percent.txt"
    listed.write_text("ant.3.JPEG\nbee.s/bee.s.0.JPEG\n")
    chosen = [
        few_shot_images(class_images(data, "train"), 0.1, 0, listed) for data in (photos, packed)
    ]
    assert chosen == [[3, 8]] * 2


@pytest.mark.heavy
def test_a_killed_pack_resumes_to_the_same_bytes(pocket: Path, tmp_path: Path) -> None:
    options = ("--short-side", "48", "--shard-size", "10", "--num-workers", "1", "--quiet")
    source, dst, partial = pocket / "imagenet", tmp_path / "killed", tmp_path / "killed.partial"
    (tmp_path / "log").mkdir()
    process = start(tmp_path / "log", "pack", str(source), str(dst), *options)
    parts = partial / ".parts"
    until = time.monotonic() + 20
    while not (parts.is_dir() and any(parts.glob("*.npz"))) and time.monotonic() < until:
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not dst.exists()
    stamps = {path: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    assert stamps
    assert "short_side=48, not 32" in fails(2, "pack", source, dst, "--short-side", 32)
    kept = {path.name: path.read_bytes() for path in (partial / "train").glob("*.tar")}
    code, _, error = run("pack", source, dst, *options)
    assert code == 0, error
    code, _, error = run("pack", source, tmp_path / "whole", *options)
    assert code == 0, error
    found = files_of(dst)
    assert found == files_of(tmp_path / "whole")
    assert not partial.exists()
    assert all(found[f"train/{name}"] == content for name, content in kept.items())


def test_a_pack_that_was_killed_before_the_last_step_only_renames(
    photos: Path, packed: Path, tmp_path: Path
) -> None:
    dst, partial = tmp_path / "packed", tmp_path / "packed.partial"
    shutil.copytree(packed, partial)
    inode = (partial / "train" / "000000.tar").stat().st_ino
    pack(photos, dst)
    assert files_of(dst) == files_of(packed)
    assert (dst / "train" / "000000.tar").stat().st_ino == inode
    assert not partial.exists()


def test_class_folders_beside_an_index_of_something_else_are_read(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / label / "1.png")
    (tmp_path / "train" / INDEX).write_bytes(b"of something else")
    assert class_images(tmp_path, "train").classes == ("a", "b")
    with tarfile.open(tmp_path / "train" / "b.tar", "w") as archive:  # extracted beside it
        archive.add(tmp_path / "train" / "b" / "1.png", "1.png")
    (tmp_path / "train" / INDEX).unlink()
    packed = pack(tmp_path / "train", tmp_path / "packed", "--num-workers", 1)
    assert [*class_images(tmp_path, "train").labels] == [*list_images(packed).labels] == [0, 1]


def test_unreadable_images_are_named_or_left_out(photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(photos, source)
    damaged = source / "train" / "ant" / "ant.2.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:100])
    Image.new("I;16", (50, 50)).save(source / "val" / "ant" / "deep.png")
    dst = tmp_path / "dst"
    said = fails(4, "pack", source, dst, "--short-side", SIDE, "--num-workers", 1)
    assert str(damaged) in said
    assert "--skip-unreadable" in said
    assert not dst.exists()
    assert "deep.png has more than 8 bits" in fails(
        4, "pack", source, dst, "--short-side", SIDE, "--skip-unreadable", 1
    )
    code, out, _ = run("pack", source, dst, "--short-side", SIDE, "--skip-unreadable", 2)
    assert code == 0
    assert "ant.2.JPEG" in out
    names = [*open_packed(dst / "train").names]
    assert len(names) == 15
    assert "ant/ant.2.JPEG" not in names


def test_a_destination_that_holds_other_files_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("kept")
    taken = (photos, photos / "train" / "packed", photos.parent, tmp_path / "notes")
    for dst in (*taken, tmp_path / "notes" / ".."):
        fails(2, "pack", photos, dst, "--overwrite")
    assert (tmp_path / "notes" / "a.txt").read_text() == "kept"
    pack(photos, tmp_path / "dst")
    assert "--overwrite" in fails(2, "pack", photos, tmp_path / "dst", "--short-side", 20)
    code, _, error = run("pack", photos, tmp_path / "dst", "--short-side", 20, "--overwrite")
    assert code == 0, error


def rewrite(folder: Path, **changes: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(folder / INDEX) as found:
        arrays = dict(found)
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    np.savez_compressed(folder / INDEX, **arrays)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("offsets", lambda a: a + (1 << 40)),
        ("offsets", lambda a: a - (1 << 40)),
        ("sizes", lambda a: -a),
        ("sizes", lambda a: a + np.int64(2**63 - 1 - a.max())),
        ("shards", lambda a: a + 7),
        ("labels", lambda a: a + 2),
        ("labels", lambda a: a[:-1]),
        ("names", lambda a: a[:-1]),
        ("name_offsets", lambda a: a[::-1].copy()),
        ("about", lambda a: a[:-1]),
        ("about", lambda a: np.frombuffer(b'{"version": 9}', np.uint8)),
        ("shard_bytes", lambda a: a - 512),
        ("shard_bytes", lambda a: np.append(a, 512)),
    ],
)
def test_a_damaged_index_is_refused(
    packed: Path, tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    shutil.copytree(packed / "val", tmp_path / "val")
    rewrite(tmp_path / "val", **{name: change})
    with pytest.raises(DataError, match=r"index|shard"):
        open_packed(tmp_path / "val")


def test_shards_that_differ_from_the_index_are_refused(packed: Path, tmp_path: Path) -> None:
    for folder in ("cut", "more", "less"):
        shutil.copytree(packed, tmp_path / folder)
    shard = tmp_path / "cut" / "val" / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match="was written for"):
        class_images(tmp_path / "cut", "val")
    shutil.copy(shard, tmp_path / "more" / "val" / "000007.tar")
    with pytest.raises(DataError, match=r"does not list 000007\.tar"):
        class_images(tmp_path / "more", "val")
    (tmp_path / "less" / "val" / "000001.tar").unlink()
    with pytest.raises(DataError, match="copy the whole folder again"):
        any_images(tmp_path / "less" / "val")
