"""Fuzzing of the index of tar files: a mutated shard is listed, with regions inside it, or refused in one line."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from support.fuzz import check, fuzz
from support.fuzz_mutators import mutate_bytes

from simmim_bench.data.shards import tar_shards
from simmim_bench.files import LFS_POINTER
from simmim_bench.untrusted import tars

CHECKSUM = slice(148, 156)  # of a header (POSIX.1-1988, "ustar")


def archive(form: int) -> bytes:
    """Return a tar file with a long name, a link and a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name in ("a.jpg", f"{'deep/' * 40}b.png", "é.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 700
            tar.addfile(info, io.BytesIO(b"x" * 700))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        tar.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    return file.getvalue()


def mutate_header(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Mutate the bytes of a header and correct its checksum, without which a reader stops there."""
    data = bytearray(content)
    if len(data) < 1024 or random.random() < 0.2:
        return mutate_bytes(random, content, others)
    start = random.randrange(len(data) // 512) * 512
    header = bytearray(mutate_bytes(random, bytes(data[start : start + 512]), others)[:512])
    header.extend(bytes(512 - len(header)))
    if random.random() < 0.3:  # the type of the member
        header[156] = random.choice(b"\x000123456LKxgSDX")
    header[CHECKSUM] = b" " * 8
    header[CHECKSUM] = b"%06o\0 " % sum(header)
    data[start : start + 512] = header
    return bytes(data)


def read(path: Path) -> None:
    shards = tar_shards([path])
    size = path.stat().st_size
    for index, member in enumerate(shards.members):
        assert 0 <= member.offset <= member.offset + member.size <= size
        assert len(shards.read(index)) == member.size
    shards.fingerprint()


def test_shards(tmp_path: Path, seconds: float | None) -> None:
    seeds = [
        archive(form) for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
    ]
    seeds += [gzip.compress(seeds[0]), LFS_POINTER + b"\noid sha256:0\n"]
    path = tmp_path / "a.tar"
    covers: list[Any] = [tars, tar_shards]
    check(fuzz(read, seeds, path, seconds=seconds, covers=covers, mutate=mutate_header))
