"""`doctor --data` says of images to pretrain on what `pretrain` says of them, without training."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from support.cli import run
from support.pretraining import pretrain_pocket

from pretrain.doctor_checks import check_pretraining_data
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.sources import describe_left_out
from simmim_bench.diagnostics.data_checks import Reading
from simmim_bench.diagnostics.estimate import PUBLISHED, data_size
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.display import Display
from simmim_bench.errors import DataError
from simmim_bench.files import LFS_POINTER

POINTER = LFS_POINTER + b".github.com/spec/v1\noid sha256:0\nsize 12345\n"


def write_images(folder: Path, count: int = 4) -> Path:
    """Write images of noise, half of them in a subfolder that is no class."""
    (folder / "deeper").mkdir(parents=True)
    for number in range(count):
        place = folder / "deeper" if number % 2 else folder
        Image.effect_noise((40, 30), 60 + number).save(place / f"{number}.png")
    return folder


def write_shard(folder: Path, name: str = "0.tar") -> Path:
    images = write_images(folder.parent / "images")
    folder.mkdir()
    with tarfile.open(folder / name, "w") as archive:
        for path in sorted(images.rglob("*.png")):
            archive.add(path, path.name)
        (images / "0.cls").write_text("3")
        archive.add(images / "0.cls", "0.cls")
    return folder


def flat(root: Path) -> Path:
    return write_images(root / "data")


def shards(root: Path) -> Path:
    return write_shard(root / "data")


def beside_shards(root: Path) -> Path:
    Image.new("RGB", (8, 8)).save(shards(root) / "stray.jpg")
    return root / "data"


def others_beside(root: Path) -> Path:
    (flat(root) / "scan.heic").write_bytes(b"x")
    (root / "data" / ".ipynb_checkpoints").mkdir()
    return root / "data"


def with_val(root: Path) -> Path:
    write_images(root / "data" / "train")
    write_images(root / "data" / "validation", 2)
    return root / "data"


def empty(root: Path) -> Path:
    (root / "data").mkdir()
    return root / "data"


def missing(root: Path) -> Path:
    return root / "data"


def val_alone(root: Path) -> Path:
    write_images(root / "data" / "val")
    return root / "data"


def empty_val(root: Path) -> Path:
    write_images(root / "data" / "train")
    (root / "data" / "val").mkdir()
    return root / "data"


def truncated_shard(root: Path) -> Path:
    shard = shards(root) / "0.tar"
    shard.write_bytes(shard.read_bytes()[:1500])
    return root / "data"


def compressed_shard(root: Path) -> Path:
    folder = shards(root)
    with tarfile.open(folder / "1.tar", "w:gz") as archive:
        archive.add(root / "images" / "0.png", "0.png")
    return folder


def shard_of_a_pointer(root: Path) -> Path:
    (shards(root) / "1.tar").write_bytes(POINTER)
    return root / "data"


def image_of_a_pointer(root: Path) -> Path:
    (flat(root) / "2.png").write_bytes(POINTER)
    return root / "data"


def broken_image_in_a_shard(root: Path) -> Path:
    folder = shards(root)
    (root / "images" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(60))
    with tarfile.open(folder / "0.tar", "a") as archive:
        archive.add(root / "images" / "bad.jpg", "bad.jpg")
    return folder


def broken_image_in_val(root: Path) -> Path:
    (with_val(root) / "validation" / "0.png").write_bytes(b"")
    return root / "data"


def of_state(findings: list[Finding], state: str) -> list[str]:
    return [said for f in findings if f.state == state for said in (f.items or (f.said,))]


@pytest.fixture
def reading() -> Reading:
    return Reading(display=Display(quiet=True))


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        (flat, [3, 1]),
        (shards, [3, 1]),
        (beside_shards, [3, 1]),
        (others_beside, [3, 1]),
        (with_val, [4, 2]),
    ],
)
def test_images_of_every_layout_are_counted_and_what_is_left_out_is_named(
    make: Callable[[Path], Path], counts: list[int], tmp_path: Path, reading: Reading
) -> None:
    data = make(tmp_path)
    findings = check_pretraining_data(data, reading)
    assert [f.facts["images"] for f in findings if "images" in f.facts] == counts
    logged = [
        line.removeprefix("data: train: ") for line in describe_left_out(any_images(data), "train")
    ]
    assert of_state(findings, "warning") == logged
    assert bool(logged) == (make not in (flat, with_val))
    assert of_state(findings, "problem") == []
    assert data_size("pretraining", findings).train == counts[0]


@pytest.mark.parametrize(
    "make",
    [
        empty,
        missing,
        val_alone,
        empty_val,
        truncated_shard,
        compressed_shard,
        shard_of_a_pointer,
        image_of_a_pointer,
        broken_image_in_a_shard,
    ],
)
def test_what_ends_a_run_is_a_problem_in_its_words(
    make: Callable[[Path], Path], tmp_path: Path, few: Path, reading: Reading
) -> None:
    data = make(tmp_path)
    with pytest.raises(DataError) as refused:
        pretrain_pocket(tmp_path / "run", data, "batch_size=3", "epochs=1")
    assert str(refused.value) in of_state(check_pretraining_data(data, reading), "problem")


@pytest.mark.heavy
def test_the_command_checks_them_and_uses_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "simmim_bench.diagnostics.frameworks.check_frameworks", lambda *_: []
    )  # seconds of imports
    data = broken_image_in_val(tmp_path)
    code, out, _ = run(
        "doctor", "--json", "--data", data, "--recipe", "pocket", "-o", "batch_size=2"
    )
    found = json.loads(out)["findings"]
    (problem,) = [f for f in found if f["group"] == "pretraining" and f["state"] == "problem"]
    assert "0.png cannot be read: the file is empty" in problem["said"]
    assert code == 4
    (time,) = [f for f in found if f["group"] == "estimate" and f["name"] == "time"]
    assert "your 4 images" in time["said"]
    assert data_size("pretraining", []) == PUBLISHED["imagenet"]
