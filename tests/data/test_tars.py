"""Tests of tar files of strangers: images are read at their place, or the shard is refused in one line."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from support.attacks import ARCHIVES, SPARSE, image, tar_of

from simmim_bench.data.shards import tar_shards
from simmim_bench.errors import DataError


@pytest.mark.parametrize("name", ARCHIVES)
def test_malformed_shards_are_refused(tmp_path: Path, name: str) -> None:
    build, message = ARCHIVES[name]
    (tmp_path / "a.tar").write_bytes(build())
    with pytest.raises(DataError, match=message) as refusal:
        tar_shards([tmp_path / "a.tar"])
    assert str(refusal.value).isprintable()


def test_names_with_control_characters_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        tar_of(image("\x1b[31m\na.jpg", pax_headers={**SPARSE, "GNU.sparse.map": "0,1"}))
    )
    with pytest.raises(DataError, match="sparse") as refusal:
        tar_shards([tmp_path / "a.tar"])
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_the_index_has_the_content_that_tarfile_extracts(tmp_path: Path, form: int) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for number, name in enumerate(("a.jpg", f"{'deep/' * 25}é.png", "c.txt", "folder/d.jpeg")):
            content = bytes([number]) * (511 + number)
            archive.addfile(image(name, len(content)), io.BytesIO(content))
        archive.addfile(image("e.jpg", 0, type=tarfile.LNKTYPE, linkname="a.jpg"))
        archive.addfile(image("f.jpg", 0, type=tarfile.SYMTYPE, linkname="a.jpg"))
    shards = tar_shards([path])
    with tarfile.open(path) as archive:
        for index, member in enumerate(shards.members):
            extracted = archive.extractfile(member.name)
            assert extracted is not None
            assert shards.read(index) == extracted.read()
    assert [Path(member.name).name for member in shards.members] == [
        "a.jpg",
        "é.png",
        "d.jpeg",
        "e.jpg",
    ]
