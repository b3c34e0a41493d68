"""Images in tar shards, read at their offsets."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from simmim_bench.data.decode import IS_LFS_POINTER, LFS_POINTER
from simmim_bench.data.listing import (
    IMAGE_FORMATS,
    SUFFIXES,
    LeftOut,
    hash_names_and_sizes,
    is_hidden,
    suffix_of,
)
from simmim_bench.errors import DataError

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


@dataclass(frozen=True)
class TarMember:
    """Position of an image in a shard, in bytes."""

    shard: int
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarShards:
    """Images in uncompressed tar files, as WebDataset writes them, read at their offsets.

    Files are not kept open and nothing is unpacked, so that any process can read any image in any order.
    """

    shards: tuple[Path, ...]
    members: tuple[TarMember, ...]
    classes: tuple[str, ...] = ("image",)
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    @cached_property  # a new tuple for every image that is read would take longer than reading it
    def labels(self) -> tuple[int, ...]:
        """One class for all images: pretraining does not use labels."""
        return (0,) * len(self)

    def __len__(self) -> int:
        return len(self.members)

    def read(self, index: int) -> bytes:
        """Return the content of an image file."""
        member = self.members[index]
        try:
            with open(self.shards[member.shard], "rb") as file:
                file.seek(member.offset)
                return file.read(member.size)
        except OSError as error:
            raise DataError(
                f"image {self.name(index)} cannot be read: {error.strerror}; use another copy of the shard."
            ) from error

    def name(self, index: int) -> str:
        """Return the shard and the name of an image."""
        member = self.members[index]
        return f"{self.shards[member.shard]}:{member.name}"

    def subset(self, indices: Sequence[int]) -> TarShards:
        """Return a source of some images, in the order of `indices`."""
        return replace(self, members=tuple(self.members[i] for i in indices))

    def fingerprint(self) -> str:
        """Hash every image's shard, name and size in bytes: SHA-256 in hexadecimal."""
        shards = [shard.name for shard in self.shards]
        return hash_names_and_sizes((f"{shards[m.shard]}/{m.name}", m.size) for m in self.members)


def tar_shards(shards: Sequence[Path], beside: LeftOut | None = None) -> TarShards:
    """List the images in tar files.

    Args:
        beside: what lies beside the shards and is not read.

    Raises:
        DataError: A shard cannot be read or is compressed, or no shard has images.
    """
    beside = beside or LeftOut()
    members: list[TarMember] = []
    files, hidden = [*beside.files], [*beside.hidden]
    for number, shard in enumerate(shards):
        stored: dict[str, tarfile.TarInfo] = {}
        try:
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    if member.isdir():
                        continue
                    # A hard link stands for the earlier member of its name.
                    content = stored.get(member.linkname, member) if member.islnk() else member
                    stored[member.name] = content
                    if any(is_hidden(part) for part in PurePosixPath(member.name).parts):
                        hidden.append(f"{shard.name}:{member.name}")
                    elif content.isfile() and suffix_of(member.name) in IMAGE_FORMATS:
                        members.append(
                            TarMember(number, member.name, content.offset_data, content.size)
                        )
                    else:
                        files.append(f"{shard.name}:{member.name}")
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"shard {shard} cannot be read: {_reason(shard, error)}.") from error
    left_out = replace(beside, files=tuple(files), hidden=tuple(hidden))
    if not members:
        names = f"shard {shards[0]}" + (
            f" and the {len(shards) - 1:,} after it" if shards[1:] else ""
        )
        raise DataError(
            f"no images ({SUFFIXES}) are in {names}{left_out.only()}; use other shards."
        )
    return TarShards(tuple(shards), tuple(members), left_out=left_out)


def _reason(shard: Path, error: Exception) -> str:
    """Return why a shard cannot be read, and the remedy."""
    start = b""
    with suppress(OSError), open(shard, "rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        return IS_LFS_POINTER
    if start.startswith(COMPRESSED):
        return "it is compressed; write it without compression, so that images are read at their offsets"
    reason = getattr(error, "strerror", None) or error
    return f"it is no whole tar file ({reason}); use another copy"
