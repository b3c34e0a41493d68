"""List the members of an uncompressed tar file of a stranger: names, positions and sizes within the file."""

from __future__ import annotations

import tarfile
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

from simmim_bench.errors import DataError
from simmim_bench.files import IS_LFS_POINTER, LFS_POINTER
from simmim_bench.untrusted.text import shorten, visible

# A header's extension, such as a long name, is read into the memory; an image is not read here.
LARGEST_EXTENSION = 1 << 20
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


@dataclass(frozen=True)
class Member:
    """A file in a tar file.

    Attributes:
        name: with the archive's separators; bytes that are not UTF-8 are surrogates.
        offset, size: of its content in the tar file, in bytes.
        is_file: whether it has content; a link to an earlier file has that file's.
        is_sparse: whether its content is stored without its zeros, in parts, so that it cannot be read at the offset.
    """

    name: str
    offset: int
    size: int
    is_file: bool
    is_sparse: bool


class _Extensions:
    """A file whose reads are limited: tarfile reads as many bytes as a header claims."""

    def __init__(self, file: BufferedReader) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Return the next bytes.

        Raises:
            ReadError: they are more than an extension has.
        """
        if not 0 <= size <= LARGEST_EXTENSION:
            raise tarfile.ReadError("a header has an extension of a size that no name has")
        return self.file.read(size)


def list_members(path: Path) -> list[Member]:
    """List the members of a tar file that are no folders.

    Raises:
        DataError: the file cannot be read, is compressed or damaged.
    """
    try:
        with open(path, "rb") as file:
            end = file.seek(0, 2)
            file.seek(0)
            headers = _read_headers(file)
    except Exception as error:  # tarfile raises many types for a damaged header
        raise DataError(f"shard {path} cannot be read: {_reason(path, error)}.") from error
    members = []
    stored: dict[str, tarfile.TarInfo] = {}
    for header in headers:
        if header.isdir():
            continue
        # A hard link stands for the earlier member of its name.
        content = stored.get(header.linkname, header) if header.islnk() else header
        stored[header.name] = content
        is_file, is_sparse = content.isfile(), content.issparse()
        inside = content.size >= 0 and content.offset_data + content.size <= end
        if is_file and not is_sparse and not inside:
            raise DataError(
                f"shard {path} cannot be read: {visible(header.name)} ends behind its end; use another copy."
            )
        members.append(Member(header.name, content.offset_data, content.size, is_file, is_sparse))
    return members


def _reason(path: Path, error: Exception) -> str:
    """Return why a tar file cannot be read, and the remedy."""
    start = b""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        return IS_LFS_POINTER
    if start.startswith(COMPRESSED):
        return "it is compressed; write it without compression, so that images are read at their offsets"
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"it is no whole tar file ({shorten(visible(said))}); use another copy"


def _read_headers(file: BufferedReader) -> list[tarfile.TarInfo]:
    headers = []
    following = (
        0  # each header must lie behind the one before: a negative size would repeat it for ever
    )
    with tarfile.open(fileobj=cast(IO[bytes], _Extensions(file)), mode="r:") as archive:
        for header in archive:
            if header.offset < following or header.offset_data <= header.offset:
                raise tarfile.ReadError("its headers overlap")
            following = header.offset_data
            headers.append(header)
        # tarfile takes a damaged header for the end, and would leave out the images after it.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged header at byte {archive.offset:,}")
    return headers
