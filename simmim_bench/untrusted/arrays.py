"""Read NumPy's .npz files of other people: plain numbers and text, whose size is known before memory is allocated.

`numpy.load` allocates what a member's header promises, which may be terabytes in a file of bytes. Here, the header
must agree with the size of the member, and that size with a limit. Pickled objects are refused.
"""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from simmim_bench.errors import DataError
from simmim_bench.untrusted.paths import open_regular
from simmim_bench.untrusted.text import shorten

MAX_BYTES = (
    512 << 20
)  # of all arrays: predictions of 10 million images; ImageNet's 50,000 have 2.2 MB
MAX_MEMBERS = 64
# The end of a zip file without comment, and what marks a longer form before it: PKWARE's APPNOTE.TXT, 4.3.15, 4.3.16.
END = struct.Struct("<4s4H2LH")
END_MARK, ZIP64_MARK, ZIP64_LENGTH = b"PK\5\6", b"PK\6\7", 20
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # as `numpy.savez` and `savez_compressed`


def read_arrays(
    path: Path,
    what: str,
    kinds: Mapping[str, str],
    *,
    optional: Mapping[str, str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> dict[str, np.ndarray[Any, Any]]:
    """Read arrays of an .npz file.

    Args:
        what: what the file should be, for error messages.
        kinds: for every array to read, the allowed kinds of its type, such as "iu" for whole numbers; see
            `numpy.dtype.kind`. Other arrays of the file are not read.
        optional: as `kinds`, for arrays that the file may lack.
        max_bytes: of the file, and of all arrays.

    Raises:
        DataError: the file is missing or damaged, lacks an array, has one of another kind, or exceeds a limit.
    """
    with open_regular(path, what, max_bytes) as file:
        try:
            return _read(file, kinds, optional or {}, max_bytes)
        except Exception as error:  # zipfile and NumPy raise many types for a damaged file
            reason = ascii(shorten(str(error) or type(error).__name__))[1:-1]
            raise DataError(f"{what} {path} cannot be read: {reason}") from error


def _read(
    file: IO[bytes], required: Mapping[str, str], optional: Mapping[str, str], max_bytes: int
) -> dict[str, np.ndarray[Any, Any]]:
    _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(names) > len(set(names)):
            raise ValueError("it has two arrays of one name")
        kinds = {**required, **optional}
        for name in required:
            if f"{name}.npy" not in names:
                raise ValueError(f"it has no array '{name}'")
        read = [member for member in members if member.filename.removesuffix(".npy") in kinds]
        total = sum(member.file_size for member in read)
        if total > max_bytes:
            raise ValueError(f"its arrays have {total:,} bytes, more than {max_bytes:,}")
        return {
            (name := member.filename.removesuffix(".npy")): _read_member(
                archive, member, name, kinds[name]
            )
            for member in read
        }


def _check_directory(file: IO[bytes]) -> None:
    """Check the number of members, as the end of the file states it, before `zipfile` creates an object for each."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - END.size - ZIP64_LENGTH, 0))
    tail = file.read()
    if len(tail) < END.size or tail[-END.size :][: len(END_MARK)] != END_MARK:
        raise ValueError("it is no .npz file, or is incomplete")
    _, _, _, _, count, length, _, _ = END.unpack(tail[-END.size :])
    if count > MAX_MEMBERS or length > MAX_MEMBERS << 10 or tail.startswith(ZIP64_MARK):
        raise ValueError(f"it has {count:,} members, more than {MAX_MEMBERS}")


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, kinds: str
) -> np.ndarray[Any, Any]:
    if member.flag_bits & 1 or member.compress_type not in COMPRESSION:
        raise ValueError(f"array '{name}' is encrypted, or compressed in another way than deflate")
    content = archive.read(member)
    stream = io.BytesIO(content)
    version = npy.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"array '{name}' has version {version} of NumPy's format; use 1.0 or 2.0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's parser warns of escapes in the header's texts
        shape, columns_first, dtype = HEADERS[version](stream)
    if dtype.hasobject or dtype.fields is not None or dtype.kind not in kinds:
        raise ValueError(f"array '{name}' has type {dtype}, which is not allowed")
    start = stream.tell()
    count = math.prod(shape)
    if any(size < 0 for size in shape) or count * dtype.itemsize != len(content) - start:
        raise ValueError(f"array '{name}' has shape {shape} in its header but another size")
    values: np.ndarray[Any, Any] = np.frombuffer(content, dtype, count, start)
    return values.reshape(shape, order="F" if columns_first else "C")
