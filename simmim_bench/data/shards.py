"""Images in tar shards, read at their offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from simmim_bench.data.listing import (
    IMAGE_FORMATS,
    SUFFIXES,
    LeftOut,
    hash_names_and_sizes,
    is_hidden,
    suffix_of,
)
from simmim_bench.errors import DataError
from simmim_bench.untrusted.tars import list_members
from simmim_bench.untrusted.text import visible

LABEL = ".cls"  # suffix of the file that has the number of an image's class


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
        DataError: A shard cannot be read, is compressed or has a sparse image, or no shard has images.
    """
    return list_shards(shards, beside or LeftOut())[0]


def list_shards(
    shards: Sequence[Path], beside: LeftOut
) -> tuple[TarShards, dict[tuple[int, str], TarMember]]:
    """List the images in tar files, and the members with their labels by shard and key; see `tar_shards`."""
    members: list[TarMember] = []
    labels: dict[tuple[int, str], TarMember] = {}
    files, hidden = [*beside.files], [*beside.hidden]
    for number, shard in enumerate(shards):
        for member in list_members(shard):
            if any(is_hidden(part) for part in PurePosixPath(member.name).parts):
                hidden.append(f"{shard.name}:{member.name}")
            elif member.is_file and suffix_of(member.name) in IMAGE_FORMATS:
                if member.is_sparse:
                    raise DataError(
                        f"{visible(member.name)} in shard {shard} is stored as a sparse file; write the shard without "
                        "--sparse."
                    )
                members.append(TarMember(number, member.name, member.offset, member.size))
            else:
                files.append(f"{shard.name}:{member.name}")
                if member.is_file and suffix_of(member.name) == LABEL:
                    found = TarMember(number, member.name, member.offset, member.size)
                    labels[number, sample_key(member.name)] = found
    left_out = replace(beside, files=tuple(files), hidden=tuple(hidden))
    if not members:
        names = f"shard {shards[0]}" + (
            f" and the {len(shards) - 1:,} after it" if shards[1:] else ""
        )
        raise DataError(
            f"no images ({SUFFIXES}) are in {names}{left_out.only()}; use other shards."
        )
    return TarShards(tuple(shards), tuple(members), left_out=left_out), labels


def sample_key(name: str) -> str:
    """Return the key of a member's sample: its name up to the first dot after the folders, as WebDataset splits it."""
    folders, slash, base = name.rpartition("/")
    return folders + slash + base.partition(".")[0]


def sorted_shards(folder: Path) -> list[Path]:
    """Return the tar files in a folder, sorted."""
    return sorted(path for path in folder.glob("*.tar") if not is_hidden(path.name))
