"""Data sets as a command line names them: `DIR` or `hfds:NAME`, with `NAME=` before it where several are given.

Nothing here loads torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simmim_bench.data.split_folders import is_label_file
from simmim_bench.errors import DataError, UsageError

HUB_PREFIX = "hfds:"  # followed by the name or folder of a Hugging Face dataset
MAX_TITLE = 100  # characters; the same as of `data.title` in record.schema.json
# The same as of `data.name` in record.schema.json: a name is a folder's name and a column's title as well.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
        root: its folder, or `hfds:NAME`.
        name: the name that the command line assigns to it; None without one.
    """

    root: Path
    name: str | None = None

    def __str__(self) -> str:
        return str(self.root) if self.name is None else f"{self.name}={self.root}"


def read_data_set(text: str) -> DataSet:
    """Parse `DIR` or `NAME=DIR`. A text that names an existing file or folder is that path, "=" or not.

    Raises:
        UsageError: NAME is not a valid name, or DIR is empty.
    """
    name, equals, root = text.partition("=")
    if not equals or os.path.exists(text) or os.sep in name or name.startswith(HUB_PREFIX):
        return DataSet(Path(text))
    return name_data_set(name, root)


def name_data_set(name: str, root: str | Path) -> DataSet:
    """Return a data set with a name.

    Raises:
        UsageError: the name is not valid, or the folder's path is empty.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"--data {name}={root}: {name!r} is not a name, which has up to 64 letters, digits, dots, underscores and "
            "hyphens and begins with a letter or digit; write NAME=DIR, or ./DIR for a folder with '='."
        )
    if not str(root):
        raise UsageError(f"--data {name}={root} names no folder; write {name}=DIR.")
    return DataSet(Path(root).expanduser(), name)  # a shell expands ~ at the start of a word only


def check_data_sets(data_sets: Sequence[DataSet], *, task: str, several: bool) -> None:
    """Check that a task can run on some data sets, before it starts on the first of them.

    Args:
        several: whether the task takes more than one.

    Raises:
        UsageError: more data sets than the task takes, or several of which two have the same name or one has none.
        DataError: the folder of a named data set does not exist.
    """
    names = [data_set.name for data_set in data_sets]
    if len(data_sets) > 1:
        if not several:
            raise UsageError(
                f"{task} takes one data set, not {len(data_sets)}; run it once for each --data."
            )
        if None in names:
            unnamed = data_sets[names.index(None)].root
            raise UsageError(
                f"--data {unnamed} has no name, which several data sets need; write --data NAME={unnamed}."
            )
    check_unique(names)
    for fault in filter(None, map(missing_folder, data_sets)):
        raise DataError(fault)


def read_title(title: str | None, data_sets: Sequence[DataSet]) -> str | None:
    """Return what tables are to call the only data set; None for the name of its folder.

    Raises:
        UsageError: see `check_title` and `check_untitled`.
    """
    if title is None:
        return None
    check_untitled(data_sets)
    return check_title(title)


def check_title(title: str) -> str:
    """Return what tables are to call a data set, without spaces around it.

    Raises:
        UsageError: it is empty, too long, or contains a character that cannot be printed.
    """
    title = title.strip() if isinstance(title, str) else title  # of Python
    if not (isinstance(title, str) and title.isprintable() and 0 < len(title) <= MAX_TITLE):
        raise UsageError(
            f"--data-name {title!r} is not a name; write 1 to {MAX_TITLE} characters on one line, such as CIFAR-10."
        )
    return title


def check_untitled(data_sets: Sequence[DataSet]) -> None:
    """Check that the one data set of `--data-name` has no name in `--data`.

    Raises:
        UsageError: a data set has one.
    """
    for data_set in data_sets:
        if data_set.name is not None:
            raise UsageError(
                f"--data-name is for a data set without NAME=; {data_set} is named already. Remove one of the two."
            )


def read_titles(texts: Sequence[str], layouts: Sequence[str]) -> dict[str, str]:
    """Parse `LAYOUT=TITLE` texts, such as `imagenet=CIFAR-10`.

    Returns:
        The titles by layout.

    Raises:
        UsageError: an unknown layout, one that is given twice, or a title that cannot be used.
    """
    titles: dict[str, str] = {}
    for text in texts:
        layout, equals, title = text.partition("=")
        if not equals or layout not in layouts:
            raise UsageError(
                f"--data-name {text} does not name a data set; write one of {', '.join(layouts)} before the name, "
                f"such as {layouts[0]}=CIFAR-10."
            )
        if layout in titles:
            raise UsageError(f"--data-name {layout}=... is given more than once; keep one.")
        titles[layout] = check_title(title)
    return titles


def check_unique(names: Sequence[str | None]) -> None:
    """Check that no name is given twice.

    Names that differ in case alone are one folder on some file systems, and count as equal.

    Args:
        names: None for a data set without a name.

    Raises:
        UsageError: a name is given twice.
    """
    given = [name for name in names if name is not None]
    folded = [name.casefold() for name in given]
    twice = next(
        (name for name, key in zip(given, folded, strict=True) if folded.count(key) > 1), None
    )
    if twice is not None:
        raise UsageError(f"--data {twice}=... is given more than once; use another name.")


def is_data(root: Path) -> bool:
    """Return whether a path is a folder or a label file, and so may hold a data set."""
    return root.is_dir() or is_label_file(root)


def missing_folder(data_set: DataSet) -> str | None:
    """Return a message if the folder of a named data set does not exist; a task reports an unnamed one itself."""
    root = data_set.root
    if data_set.name is None or str(root).startswith(HUB_PREFIX) or is_data(root):
        return None
    return f"data folder {root} of the data set {data_set.name} does not exist; correct --data {data_set}."
