"""Which checkpoints a suite has rows for, and what is known of those that are not read.

Each --ckpt is a checkpoint, a list file, or all public checkpoints of `simmim_bench.methods`. A list file ends in
`.txt` and has one CKPT per line, written as after --ckpt, so that paths are relative to the working directory; empty
lines, and what follows a `#` at the start of a line or after a space, are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.download import check_download, find_download
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import BenchError, DataError, UsageError
from simmim_bench.methods import ALL_METHODS, find_listed, read_methods, select_ckpts
from simmim_bench.untrusted.paths import read_bytes
from simmim_bench.untrusted.text import visible
from transfer.suite.options import SuiteOptions

LIST_SUFFIX = ".txt"
MAX_BYTES = 1 << 20
COMMENT = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True)
class Row:
    """A checkpoint to plan.

    Attributes:
        place: line of the list that names it; empty where --ckpt does.
    """

    ckpt: str
    place: str = ""


@dataclass(frozen=True)
class UnreadRow:
    """A checkpoint without steps, or without those of one task.

    Attributes:
        place: line of the list that names it; empty where --ckpt does.
        error: why it cannot be used; None where a dry run would have to download it.
        task: name of the only task that is left out; None for all.
    """

    ckpt: str
    place: str
    error: BenchError | None = None
    task: str | None = None

    @property
    def state(self) -> str:
        """The row's state, in words."""
        return "to download" if self.error is None else "blocked"

    @property
    def download_mb(self) -> float | None:
        """Expected size of its download in megabytes; None where it is not known, or nothing is downloaded."""
        listed = find_listed(self.ckpt)
        return None if listed is None or self.error is not None else listed.download_mb

    @property
    def obstacle(self) -> str:
        """Why it is blocked, and which line names it; empty if it is not blocked."""
        if self.error is None:
            return ""
        listed = find_listed(self.ckpt)
        if listed is not None and listed.url and not Path(self.ckpt).exists():
            return f"{self.ckpt} does not exist; download it from {listed.url}"
        return f"{self.error} ({self.place})"

    def to_json(self) -> dict[str, Any]:
        """Return the plain form, with the keys of a planned step."""
        return {
            "ckpt": self.ckpt,
            "task": self.task,
            "data_name": None,
            "recipe": None,
            "deviates": {},
            "seeds": {},
            "runs": [],
            "state": self.state,
            "obstacle": self.obstacle or None,
            "estimate": None,
            "command": None,
            "download_mb": self.download_mb,
        }


def list_rows(options: SuiteOptions) -> list[Row]:
    """List the checkpoints of a suite; one that is named several times is one row.

    Raises:
        UsageError: a pattern of --only matches no checkpoint.
        DataError: a list cannot be read, or has no checkpoint.
    """
    rows = dict[str, Row]()
    for text in options.ckpts:
        for row in _expand(text):
            rows.setdefault(row.ckpt, row)
    return [rows[ckpt] for ckpt in select_ckpts(list(rows), options.only)]


def _expand(text: str) -> Iterator[Row]:
    """Yield the rows that a --ckpt stands for."""
    path = Path(text)
    if text == ALL_METHODS:
        yield from (Row(one.ckpt, ALL_METHODS) for one in read_methods())
    elif text.startswith("list:"):
        raise UsageError(f"{text} is no list that is shipped; use {ALL_METHODS} or a file.")
    elif path.suffix.lower() == LIST_SUFFIX and not path.is_dir():
        yield from _read_list(path)
    else:
        yield Row(text)


def _read_list(path: Path) -> Iterator[Row]:
    """Yield the rows of a list file.

    Raises:
        DataError: the file cannot be read, is not UTF-8, names another list or code, or has no checkpoint.
    """
    content = read_bytes(path, "list of checkpoints", MAX_BYTES)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {number} is not UTF-8; save the list as UTF-8.") from error
    empty = True
    for number, line in enumerate(lines, 1):
        ckpt = COMMENT.sub("", line).strip()
        if not ckpt:
            continue
        if ckpt == ALL_METHODS or ckpt.lower().endswith(LIST_SUFFIX):
            raise DataError(
                f"{path}, line {number} names another list, {visible(ckpt)[:100]}; pass it with a --ckpt of its own."
            )
        if ckpt.startswith("py:"):  # a list may be a stranger's
            raise DataError(
                f"{path}, line {number} names code to run, {visible(ckpt)[:100]}; pass it with a --ckpt of its own."
            )
        empty = False
        yield Row(ckpt, f"{path}, line {number}")
    if empty:
        raise DataError(f"{path} lists no checkpoint; write one CKPT per line, as after --ckpt.")


def read_rows(
    rows: list[Row],
    *,
    download: bool,
    log: Callable[[str], None],
    expected: Mapping[str, Checkpoint] | None = None,
) -> tuple[dict[str, Checkpoint], list[UnreadRow]]:
    """Read the checkpoints of the rows, and keep everything but their weights.

    Args:
        download: whether to download missing weights; without, their rows are not read.
        expected: checkpoints that do not exist yet, which are not read.

    Returns:
        The checkpoints by CKPT, and the rows that are not read.

    Raises:
        BenchError: a checkpoint that --ckpt names cannot be read; one of a list blocks its row alone.
    """
    found, unread = dict[str, Checkpoint](), list[UnreadRow]()
    for number, row in enumerate(rows, 1):
        if expected and row.ckpt in expected:
            found[row.ckpt] = expected[row.ckpt]
            continue
        try:
            missing = find_download(row.ckpt)
            check_download(row.ckpt)
            if missing and not download:
                unread.append(UnreadRow(row.ckpt, row.place))
                continue
            if missing or (row.place and len(rows) > 1):
                log(
                    f"suite: reading {row.ckpt} ({number} of {len(rows)})"
                    + (f", downloading {missing}" if missing else "")
                )
            found[row.ckpt] = replace(read_checkpoint(row.ckpt), state=None)
        except BenchError as error:
            if not row.place:
                raise
            unread.append(UnreadRow(row.ckpt, row.place, error))
    return found, unread
