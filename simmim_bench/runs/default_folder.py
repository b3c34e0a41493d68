"""The default folder of a run: the plain one for the first data set, one with the data's name for every other.

Nothing here loads torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from simmim_bench.data.named import HUB_PREFIX, DataSet
from simmim_bench.errors import DataError, UsageError
from simmim_bench.untrusted.json_text import read_json

MAX_NAME = 64  # characters
SEED_FOLDER = re.compile(r"seed\d+")


def choose_folder(
    plain: Path,
    of_data: Callable[[str], Path],
    data: Path,
    data_name: str | None = None,
    *,
    resume: bool = False,
) -> Path:
    """Return the folder of the runs on a data set: the one that holds runs on it, else a free one.

    Args:
        plain: the folder of the first data set: a run directory, or the folder of those of several seeds.
        of_data: returns the folder of another data set from a name of its path.
        data: the data set, a path or `hfds:NAME`.
        data_name: its name in `--data NAME=DIR`.
        resume: whether an earlier run is to be continued.

    Raises:
        UsageError: with `resume`, there are runs, but none on the data set; such as of data that has been moved.
    """
    folders = [plain, *map(of_data, _names(data))]
    key = (_identity(str(data)), data_name)
    found = [_data_sets_in(folder) for folder in folders]
    for folder, inside in zip(folders, found, strict=True):
        if key in inside:
            return folder
    occupied = [folder for folder, inside in zip(folders, found, strict=True) if inside]
    if resume and occupied:
        root, name = min(found[folders.index(occupied[0])], key=str)
        raise UsageError(
            f"no run on {DataSet(data, data_name)} to resume: {occupied[0]} has a run on {DataSet(Path(root), name)}. "
            "Resume that one with its --data (a link there, if the data was moved), or one in another folder with its "
            "--out; without --resume a new run starts."
        )
    free = (folder for folder, inside in zip(folders, found, strict=True) if not inside)
    return next(free, folders[-1])


def _names(data: Path) -> Iterator[str]:
    """Yield names for a data set's folder, from the last part of its path to the whole path."""
    parts = Path(_identity(str(data))).parts
    for first in range(len(parts) - 1, -1, -1):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts[first:])).strip("-.")[-MAX_NAME:]
        if name and not SEED_FOLDER.fullmatch(name):
            yield name


def _data_sets_in(folder: Path) -> set[tuple[str, str | None]]:
    """Return the data sets of the runs in a folder and in its `seedN`, with their names in `--data`."""
    found = set()
    inside = folder.glob("seed*") if folder.is_dir() else ()
    for run_dir in (folder, *(path for path in inside if SEED_FOLDER.fullmatch(path.name))):
        with suppress(DataError, KeyError, TypeError):  # no run, or a damaged one
            arguments = read_json(run_dir / "recipe.json", "run description", finite=False)[
                "arguments"
            ]
            found.add((_identity(str(arguments["data"])), arguments.get("data_name")))
    return found


def _identity(data: str) -> str:
    """Return the absolute path of a data set; a data set of Hugging Face stays as it is."""
    return data if data.startswith(HUB_PREFIX) else os.path.abspath(data)
