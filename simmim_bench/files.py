"""Read, hash and atomically write files: a file is complete after a write, or as it was before."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from simmim_bench.errors import DataError

VISIBLE_S = (
    60.0  # acdirmax: the longest time that NFS caches a folder's attributes by default (nfs(5))
)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; flush and rename it to `path` when the block succeeds.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another --out."
        ) from error
    finally:
        with suppress(OSError):  # for example a parent that is a file
            temporary.unlink(missing_ok=True)


def use_default_mode(path: Path) -> None:
    """Set a file's permissions to those that `open` gives a new one; safetensors writes for the owner alone."""
    sibling = path.with_name(f".{path.name}.mode")
    try:
        sibling.touch()
        path.chmod(sibling.stat().st_mode & 0o777)
    finally:
        sibling.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Args:
        what: what the file should be, for error messages.

    Raises:
        DataError: the file does not exist or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{what} {path} does not exist.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{what} {path} cannot be read as JSON: byte {error.start:,} is not {error.encoding}; save it as UTF-8."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{what} {path} cannot be read as JSON: {reason}") from error


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
    return hashlib.sha256(text.encode()).hexdigest()
