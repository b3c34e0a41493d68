"""Read, hash and atomically write files and folders: complete after a write, or as they were before.

Content is flushed to the disk before its name appears. The folder of a new name is not: after a loss of power the
name may be missing, as if the write had not begun, and the same command writes it again.

Temporary files are `.NAME.PID.tmp`, temporary folders `.NAME.tmp` and `.NAME.old`. Only a killed process leaves some.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from simmim_bench.errors import DataError

# Python stands in for a byte of a file name that is not UTF-8 with a lone surrogate, which this handler writes as
# \udc80 to \udcff: in JSON, that is the string's own escape, and the name is read back unchanged.
ESCAPED = "backslashreplace"
LFS_POINTER = b"version https://git-lfs"  # first bytes of what Git LFS leaves in place of a file
IS_LFS_POINTER = "it is a pointer of Git LFS, whose content `git lfs pull` fetches"
VISIBLE_S = 60.0  # acdirmax: the longest time that NFS caches a folder by default (nfs(5))
LEFTOVERS = (".*.tmp", ".*.old")  # what a killed process leaves in a folder
PENDING = (
    ".pending.json"  # names the temporary files of `write_together` that are still to be renamed
)


@contextmanager
def replacing(path: Path, option: str = "--out") -> Iterator[Path]:
    """Yield a temporary path next to `path`; flush and rename it to `path` when the block succeeds.

    Args:
        option: the option that the path depends on, for the error message.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error, option=option) from error
    finally:
        with suppress(OSError):  # for example a parent that is a file
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: Exception, what: str = "", option: str = "--out") -> DataError:
    """Return the error to raise where a file or folder, named by `what`, cannot be written."""
    reason = error.strerror if isinstance(error, OSError) else None
    return DataError(
        f"cannot write {what and what + ' '}{path}: {reason or error}; free some space or choose another {option}."
    )


def sync(path: Path) -> None:
    """Flush a file's content to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def replacing_directory(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield a path for a temporary folder next to `path`; rename it to `path` when the block succeeds.

    A reader finds the old folder, the new one or for a moment none, never a part of one. The block may write a
    file instead.

    Args:
        previous: where the replaced folder is kept, in place of one that is already there; None to remove it.

    Raises:
        OSError: the folder cannot be written; `path` is as it was before.
    """
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    remove(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if not (path.is_dir() or temporary.is_dir()):
            os.replace(temporary, path)
            return
        if previous is not None:
            remove_directory(previous)
        kept = previous or old
        remove(old)
        replaced = path.exists()
        if replaced:
            path.rename(kept)
        try:
            temporary.rename(path)
        except OSError:
            if replaced:
                kept.rename(path)
            raise
    finally:
        with suppress(OSError):
            remove(temporary)
            remove(old)


def remove_directory(path: Path) -> None:
    """Remove a folder, if it exists; it is renamed first, so that no reader finds a part of it."""
    old = path.with_name(f".{path.name}.old")
    remove(old)
    with suppress(FileNotFoundError):
        path.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, below: Iterable[str]) -> None:
    """Remove what killed processes have left in a folder.

    Args:
        below: its subfolders to search at any depth; no other process may write to them.
    """
    for pattern in LEFTOVERS:
        deeper = (path for name in below for path in (folder / name).rglob(pattern))
        for leftover in [*folder.glob(pattern), *deeper]:
            with suppress(OSError):
                remove(leftover)


def write_together(texts: Mapping[Path, str], folder: Path) -> None:
    """Write text files that belong together: each is complete, and all are new or all as before.

    All are flushed under temporary names, which are then listed in `folder`, so that `finish_writing` can rename
    those that a killed process has left.

    Raises:
        DataError: a file cannot be written.
    """
    finish_writing(folder)
    resolved = {path.resolve(): text for path, text in texts.items()}  # two names of one file
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in resolved}
    try:
        for path, new in temporary.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                new.write_text(resolved[path], encoding="utf-8", errors=ESCAPED)
                sync(new)
            except OSError as error:
                raise cannot_write(path, error) from error
        write_json(folder / PENDING, {str(new): str(path) for path, new in temporary.items()})
    except BaseException:
        for new in temporary.values():
            with suppress(OSError):
                new.unlink(missing_ok=True)
        raise
    finish_writing(folder)


def finish_writing(folder: Path) -> None:
    """Rename the files that an interrupted `write_together` has written.

    Raises:
        DataError: a file cannot be renamed.
    """
    pending = folder / PENDING
    if not pending.is_file():
        return
    for new, path in _read_pending(pending).items():
        try:
            with suppress(FileNotFoundError):  # renamed already
                os.replace(new, path)
        except OSError as error:
            raise cannot_write(Path(path), error) from error
    try:
        pending.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(pending, error) from error


def _read_pending(pending: Path) -> dict[str, str]:
    """Read the list of temporary files and their names; one that this tool did not write could name any files.

    Raises:
        DataError: the list is damaged, or an entry is no temporary file next to its name.
    """
    try:
        found = json.loads(pending.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    entries = found.items() if isinstance(found, dict) else [(found, None)]
    for new, path in entries:
        name = os.path.basename(path) if isinstance(path, str) else ""
        temporary = re.compile(rf"\.{re.escape(name)}\.[0-9]+\.tmp")
        if not (
            isinstance(path, str)
            and os.path.dirname(new) == os.path.dirname(path)
            and temporary.fullmatch(os.path.basename(new))
        ):
            raise DataError(f"list of written files {pending} is damaged; remove it.")
    return dict(entries)


def use_default_mode(path: Path) -> None:
    """Set a file's permissions to those that `open` gives a new one; safetensors writes for the owner alone."""
    sibling = path.with_name(f".{path.name}.mode")
    try:
        sibling.touch()
        path.chmod(sibling.stat().st_mode & 0o777)
    finally:
        sibling.unlink(missing_ok=True)


def escape(text: str) -> str:
    """Return a text as it is written to files and streams, with bytes of file names that are not UTF-8 escaped."""
    return text.encode(errors=ESCAPED).decode()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=ESCAPED)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write a compressed NumPy file of several arrays atomically."""
    import numpy as np

    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file; an empty list where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def wait_for_file(path: Path) -> None:
    """Wait until a file that another process has written is visible here, for a minute at most.

    On NFS, a process may have cached that the file or its folder did not exist. Listing a folder reads it again.
    """
    until = time.monotonic() + VISIBLE_S
    while not path.exists() and time.monotonic() < until:
        with suppress(OSError):
            os.listdir(path.parent)
        with suppress(OSError):
            os.listdir(path.parent.parent)
        time.sleep(0.1)


def file_system(path: Path) -> str:
    """Return the type of the file system of an existing path, such as "nfs4"; empty where Linux does not tell."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in read_lines(Path("/proc/self/mountinfo")):  # proc_pid_mountinfo(5)
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == number:
            return kind.split()[0]
    return ""


def sha256_file(path: Path) -> str:
    """Compute the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Compute the SHA-256 of a value's canonical JSON, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(escape(text).encode()).hexdigest()
