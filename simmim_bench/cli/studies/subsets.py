"""Data sets of a study that are a part of another one's training images, as folders of links.

The images are the first ones of a random order, so that a smaller subset is a part of a larger one of the same seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from simmim_bench.cli.studies.definition import Subset
from simmim_bench.data.listing import list_tree
from simmim_bench.data.split_folders import split_folder
from simmim_bench.data.target_folder import relative_link
from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import cannot_write, replacing_directory, write_json
from simmim_bench.untrusted.json_text import read_json


def write_subsets(subsets: Iterable[Subset]) -> None:
    """Write the subsets that do not exist yet.

    Raises:
        UsageError: another subset is in the folder of one.
        DataError: a data set has too few images, or a folder cannot be written.
    """
    for subset in subsets:
        check_subset(subset)
        if not subset.folder.is_dir():
            _write_subset(subset)


def check_subset(subset: Subset) -> None:
    """Check that no other subset is in the folder of one.

    Raises:
        UsageError: another one is.
    """
    mark = _mark(subset)
    if not subset.folder.is_dir() or not mark.is_file():
        return
    known = read_json(mark, "description of a subset")
    if known != _describe(subset):
        raise UsageError(
            f"{subset.folder} holds another subset ({known}) than the study has ({_describe(subset)}); give the new "
            "one another name."
        )


def _write_subset(subset: Subset) -> None:
    source, out = subset.source, subset.folder
    train, val = (split_folder(source, split) for split in ("train", "val"))
    folder = train if train.is_dir() else source
    listed, _ = list_tree(folder)
    if len(listed) < subset.count:
        raise DataError(
            f"{folder} has {len(listed):,} images in files, but a subset needs {subset.count:,}; use fewer."
        )
    order = np.random.default_rng(subset.seed).permutation(len(listed))
    try:
        write_json(_mark(subset), _describe(subset))
        with replacing_directory(out) as temporary:
            for name in listed.names.take(np.sort(order[: subset.count])):
                path = folder.relative_to(source) / name
                (temporary / path).parent.mkdir(parents=True, exist_ok=True)
                (temporary / path).symlink_to(relative_link(source / path, out / path))
            if val.is_dir() and train.is_dir():
                (temporary / val.name).symlink_to(relative_link(val, out / val.name))
    except OSError as error:
        raise cannot_write(out, error, option="out") from error


def _mark(subset: Subset) -> Path:
    return subset.folder.with_name(f"{subset.folder.name}.json")


def _describe(subset: Subset) -> dict[str, str | int]:
    return {"of": subset.source.name, "count": subset.count, "seed": subset.seed}
