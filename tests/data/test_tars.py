"""Tests of tar files of strangers: images are read at their place, or the shard is refused in one line."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from simmim_bench.data.shards import tar_shards
from simmim_bench.errors import DataError

BLOCK = tarfile.BLOCKSIZE


def tar_of(*infos: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytearray:
    """Return a tar file of members; those with a size have that many bytes x."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return bytearray(file.getvalue())


def image(name: str = "a.jpg", size: int = 600, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def patched(content: bytearray, at: int, value: bytes, header: int = 0) -> bytearray:
    """Overwrite a field of a header, and correct its checksum."""
    start = header * BLOCK
    content[start + at : start + at + len(value)] = value
    content[start + 148 : start + 156] = b" " * 8
    total = sum(content[start : start + BLOCK])
    content[start + 148 : start + 156] = b"%06o\0 " % total
    return content


SIZE = 124  # of the field of a member's size (POSIX.1-1988); 12 bytes, octal, or binary after 0x80 (GNU) or 0xff
SPARSE = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "900"}


def old_sparse() -> bytearray:
    """Return a shard with a sparse image as GNU tar writes it: two regions, at 0 and at 100."""
    content = tar_of(image(), form=tarfile.GNU_FORMAT)
    regions = b"".join(b"%011o\0" % number for number in (0, 300, 400, 300))
    content = patched(content, 386, regions + bytes(48) + b"\0" + b"%011o\0" % 700)
    return patched(content, 156, b"S")


ARCHIVES: dict[str, tuple[Callable[[], bytes | bytearray], str]] = {
    "negative size": (lambda: patched(tar_of(image()), SIZE, b"\xff" * 12), "cannot be read"),
    "size of exabytes": (
        lambda: patched(tar_of(image()), SIZE, b"\x80" + b"\x7f" * 11),
        "cannot be read",
    ),
    "size that is no number": (lambda: patched(tar_of(image()), SIZE, b"9" * 11), "cannot be read"),
    "beyond the end": (lambda: tar_of(image())[: BLOCK + 100], "cannot be read"),
    "long name of gigabytes": (
        lambda: patched(
            tar_of(image("d/" * 90 + "a.jpg"), form=tarfile.GNU_FORMAT), SIZE, b"7" * 11
        ),
        "an extension of a size that no name has",
    ),
    "long names of long names": (
        lambda: patched(tar_of(image("L", BLOCK)), 156, b"L")[: 2 * BLOCK] * 3000,
        "cannot be read",
    ),
    "extension without numbers": (
        lambda: tar_of(image(pax_headers={"size": "many"})),
        "damaged header at byte 1,536",
    ),
    "damaged header after an image": (
        lambda: tar_of(image(), image("b.jpg")).replace(b"b.jpg", b"c.jpg"),
        "damaged header at byte 1,536",
    ),
    "negative size in an extension": (
        lambda: tar_of(image(pax_headers={"size": "-512"})),
        "cannot be read",
    ),
    "sparse map without numbers": (
        lambda: tar_of(image(pax_headers={**SPARSE, "GNU.sparse.map": "a,b"})),
        "cannot be read",
    ),
    "sparse": (old_sparse, "is stored as a sparse file; write the shard without --sparse"),
    "sparse with a map": (
        lambda: tar_of(image(pax_headers={**SPARSE, "GNU.sparse.map": "0,300,600,300"})),
        "is stored as a sparse file",
    ),
}


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
