"""Folders that a command writes: whether they may be, and links in them to the images of the source."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from simmim_bench.errors import DataError, UsageError


def check_target(
    source: Path,
    target: Path,
    overwrite: bool,
    *,
    description: str,
    owned: Iterable[str],
    command: str,
) -> None:
    """Check that a folder may be written: it is new, empty, or an earlier result that may be replaced.

    Args:
        source: the folder that is read.
        description: the file that marks an earlier result.
        owned: names of the files and folders of a result; a folder with other content is never replaced.
        command: the command that writes the results, for messages.

    Raises:
        UsageError: it may not, or one of source and target is within the other.
        DataError: it cannot be listed.
    """
    one, other = source.resolve(), target.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise UsageError(
            f"DST {target} and SRC {source} are within each other; choose another DST."
        )
    try:
        names = set(os.listdir(target))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(
            f"cannot use {target} as a folder: {error.strerror}; choose another DST."
        ) from error
    if names and not overwrite:
        raise UsageError(f"{target} is not empty; pass --overwrite or choose another DST.")
    foreign = sorted(names if description not in names else names - {*owned})
    if foreign:
        raise UsageError(
            f"{target} has '{foreign[0]}', which `{command}` did not write, and was not changed; choose another DST."
        )


def relative_link(target: Path, link: Path) -> str:
    """Return the target of a symbolic link relative to its folder, so that both may be moved together."""
    return os.path.relpath(target.resolve(), link.parent.resolve())
