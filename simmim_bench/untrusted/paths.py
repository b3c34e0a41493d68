"""Resolve paths that other people's files name: they stay below the folder that they are relative to."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from simmim_bench.errors import DataError


def path_below(root: Path, name: str | Path, what: str) -> Path:
    """Return the path of a file or folder that other content names, which need not exist.

    Args:
        root: the folder that the name is relative to.
        name: relative path with `/`, without `..`.
        what: what names the path, for error messages.

    Raises:
        DataError: the name is absolute or has `..`, or a symbolic link leads out of `root`.
    """
    path = join_below(root, name, what)
    check_below(root, path, what)
    return path


def join_below(root: Path, name: str | Path, what: str) -> Path:
    """Return the path of a file or folder of a data set, in which symbolic links are followed; see `path_below`.

    Raises:
        DataError: the name is absolute or has `..`.
    """
    text = str(name)
    parts = PurePosixPath(text).parts
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).drive != ""
    if not parts or absolute or ".." in parts or "\0" in text or "\\" in text:
        raise DataError(
            f"{what} names {text!r}, which is not a path below {root}; use a relative path without '..'."
        )
    return root / text


def check_below(root: Path, path: Path, what: str) -> None:
    """Check that a path, with its symbolic links followed, is below a folder.

    Raises:
        DataError: it leads out of the folder, the links form a loop, or the file system has no such name.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # a name may be too long, of which `Path.is_file` raises an error later
        inside = path.resolve().is_relative_to(root.resolve())
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # a loop of links is a RuntimeError until 3.13
        raise DataError(f"{what}: {path} cannot be resolved: {error}; remove it.") from error
    if not inside:
        raise DataError(
            f"{what}: {path} is a symbolic link that leads out of {root}; replace it by the file itself."
        )


def is_below(root: Path, path: Path) -> bool:
    """Return whether a path, with its symbolic links followed, is below a folder."""
    try:
        check_below(root, path, "")
    except DataError:
        return False
    return True


def open_regular(path: Path, what: str, max_bytes: int) -> IO[bytes]:
    """Open a regular file for reading: no pipe, which would block, no device and no folder.

    Args:
        what: what the file should be, for error messages.
        max_bytes: size up to which it is opened.

    Raises:
        DataError: the file does not exist, is not regular, is too large or cannot be opened.
    """
    try:
        # A pipe is opened without waiting for a writer; regular files ignore the flag.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{what} {path} does not exist.") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DataError(
            f"{what} {path} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise DataError(f"{what} {path} cannot be read: it is not a regular file.")
    if status.st_size > max_bytes:
        os.close(descriptor)
        raise DataError(
            f"{what} {path} cannot be read: it has {status.st_size:,} bytes, more than the {max_bytes:,} that are "
            "read."
        )
    return open(descriptor, "rb")


def read_bytes(path: Path, what: str, max_bytes: int) -> bytes:
    """Read a regular file; see `open_regular`."""
    with open_regular(path, what, max_bytes) as file:
        try:
            # Not `max_bytes` at once: Python allocates as many bytes as it is asked for.
            content = file.read(os.fstat(file.fileno()).st_size + 1)
            while len(content) <= max_bytes and (more := file.read(1 << 20)):
                content += more
        except OSError as error:
            raise DataError(f"{what} {path} cannot be read: {error.strerror or error}.") from error
    if len(content) > max_bytes:  # it has grown since, or is generated, as in /proc
        raise DataError(f"{what} {path} cannot be read: it has more than {max_bytes:,} bytes.")
    return content
