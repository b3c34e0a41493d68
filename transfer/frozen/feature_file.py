"""The directory of one feature array on disk: `features.npy`, its hashes, and `features.json` that identifies it.

Processes write their rows into a temporary directory, which rank 0 renames when all rows are written. A
directory with a `features.json` is therefore complete. `features.sha256.json` has a hash of every block of the array,
which a later run compares before it uses the features: a disk's or a network's error would otherwise be a wrong score.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from simmim_bench.errors import DataError
from simmim_bench.files import file_system, wait_for_file, write_json
from simmim_bench.untrusted.json_text import read_json

ARRAY, IDENTITY, HASHES = "features.npy", "features.json", "features.sha256.json"
BLOCK = 16 << 20  # bytes of the array's file under one hash
MOST_THREADS = 8  # that hash; more of them wait for the disk


def is_complete(directory: Path) -> bool:
    """Return whether a directory holds a finished feature array; its identity is written last.

    Features that a version without hashes has stored are not: they are computed again.
    """
    return (directory / IDENTITY).is_file() and (directory / HASHES).is_file()


def hash_blocks(file: Path, first: int = 0, step: int = 1) -> list[str]:
    """Compute the SHA-256 of every `step`-th block of a file; hashlib computes them in parallel threads."""
    blocks = range(first, -(-file.stat().st_size // BLOCK), step)

    def hash_block(number: int) -> str:
        with open(file, "rb") as opened:
            opened.seek(number * BLOCK)
            return hashlib.sha256(opened.read(BLOCK)).hexdigest()

    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
        return list(threads.map(hash_block, blocks))


def is_intact(directory: Path, rank: int = 0, world_size: int = 1) -> bool:
    """Return whether an array's blocks have their hashes; each process checks its part of them."""
    wait_for_file(directory / HASHES)
    wanted = read_json(directory / HASHES, "features' hashes")
    if not isinstance(wanted, list):
        return False
    try:
        return hash_blocks(directory / ARRAY, rank, world_size) == wanted[rank::world_size]
    except OSError:
        return False


def read_array(directory: Path, identity: dict[str, Any]) -> np.ndarray:
    """Return the memory-mapped array (blocks, poolings, images, channels) of a directory.

    Args:
        identity: what the features must have been computed from; see `FeatureStore`.

    Raises:
        DataError: the array is damaged, or was computed from something else.
    """
    wait_for_file(directory / IDENTITY)
    found = read_json(directory / IDENTITY, "features' description")
    if found != identity:
        differing = [
            key
            for key in identity
            if not isinstance(found, dict) or found.get(key) != identity[key]
        ]
        raise DataError(
            f"the features in {directory} were computed with a different {', '.join(differing)}; remove the "
            "directory to compute them again."
        )
    remedy = "remove the directory to compute them again"
    try:
        array: np.ndarray = np.lib.format.open_memmap(directory / ARRAY, "r")
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"the features in {directory} are damaged ({error}); {remedy}.") from error
    expected = (len(identity["blocks"]), len(identity["poolings"]), identity["count"])
    if array.shape[:3] != expected:
        raise DataError(
            f"the features in {directory} are damaged (shape {array.shape}, expected {expected} and "
            f"channels); {remedy}."
        )
    return array


def check_free_space(directory: Path, shape: tuple[int, ...]) -> None:
    """Raise an error before the forward pass if an array does not fit on the disk.

    Args:
        directory: where the array will be written.
        shape: (blocks, poolings, images, channels) of float16.

    Raises:
        DataError: the disk has too little free space.
    """
    wait_for_file(directory)
    needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(directory).free
    if needed > free:
        raise DataError(
            f"features of {shape[2]} images need {needed / 1e9:.1f} GB, but {directory.parent} has "
            f"{free / 1e9:.1f} GB free; choose another --features directory, or store fewer features with "
            "-o blocks=... -o pooling=..."
        )


def create_array(directory: Path, shape: tuple[int, ...]) -> None:
    """Create the array's file with all of its disk space, so that a full disk fails before the forward pass."""
    file = directory / ARRAY
    np.lib.format.open_memmap(file, "w+", np.float16, shape).flush()
    # Without the operation of NFS 4.2, the C library writes every block over the network.
    if not hasattr(os, "posix_fallocate") or file_system(directory).startswith("nfs"):
        return
    with open(file, "r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        except OSError as error:
            # Some file systems cannot reserve space.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise


def write_rows(directory: Path, batches: Iterator[tuple[range, Tensor]]) -> None:
    """Write the features of consecutive images into their rows of the array.

    The rows are written with `write`, not through a memory map: a memory map on a network file system writes
    whole pages, which overwrite rows that other processes have written.

    Args:
        batches: row numbers, and float16 features (B, blocks, poolings, channels).
    """
    file = directory / ARRAY
    wait_for_file(file)
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(file, "r")
    offset, (_, _, images, channels) = array.offset, array.shape
    with open(file, "r+b") as opened:
        for numbers, rows in batches:
            planes = rows.permute(1, 2, 0, 3).flatten(0, 1).numpy()
            for number, plane in enumerate(planes):
                row = number * images + numbers.start
                opened.seek(offset + row * channels * array.itemsize)
                opened.write(plane.tobytes())
        opened.flush()
        os.fsync(opened.fileno())


def publish(temporary: Path, directory: Path, identity: dict[str, Any]) -> None:
    """Rename finished features to their directory, unless another run has published them meanwhile."""
    write_json(temporary / HASHES, hash_blocks(temporary / ARRAY))
    write_json(temporary / IDENTITY, identity)
    if not is_complete(directory):
        remove(directory)
    try:
        temporary.rename(directory)
    except OSError:
        if not is_complete(directory):
            raise


def remove(directory: Path) -> None:
    """Remove a directory atomically: rename it first, so that no process reads a half-removed one."""
    with suppress(FileNotFoundError):
        renamed = directory.with_name(f".{directory.name}.{secrets.randbits(62):x}.old")
        directory.rename(renamed)
        shutil.rmtree(renamed, ignore_errors=True)
