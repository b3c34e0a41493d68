"""Check arguments before torch and the frameworks are imported, which takes seconds.

What passes here may still be refused later: a checkpoint is read, and a data set is listed, by what uses it. Of
several processes rank 0 alone reports a path that does not exist, once they are connected: nothing is checked here.
Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.data.named import HUB_PREFIX, DataSet, is_data, missing_folder
from simmim_bench.data.split_folders import (
    SPLIT_FOLDERS,
    describe_missing_split,
    is_label_file,
    split_folder,
)
from simmim_bench.errors import DataError
from simmim_bench.launcher import is_one_of_several
from simmim_bench.tasks import LAYOUTS, TASKS
from simmim_bench.untrusted.json_text import read_json

if TYPE_CHECKING:
    from simmim_bench.models.spec import BackboneSpec

SCHEMES = ("random:", "timm:", "hub:", "py:", "list:")
CKPT_FORMS = (
    "use a checkpoint or run directory, a weights file, random:ARCH, timm:NAME, hub:ORG/NAME or "
    "py:package.module:factory."
)


def _exists(path: Path) -> bool:
    """Return whether a path exists, and True in one of several processes."""
    return is_one_of_several() or path.exists()


def check_ckpt(ckpt: str) -> None:
    """Check that a CKPT that is a path exists.

    Raises:
        DataError: it does not.
    """
    if not ckpt.startswith(SCHEMES) and not _exists(Path(ckpt)):
        raise DataError(f"checkpoint {ckpt} does not exist; {CKPT_FORMS}")


def check_images(path: Path, option: str = "--data") -> None:
    """Check that images to pretrain on, or to plot, exist.

    Raises:
        DataError: they do not.
    """
    if not str(path).startswith(HUB_PREFIX) and not _exists(path):
        raise DataError(
            f"data folder {path} does not exist; correct {option}: a folder of images or of tar shards, a tar file, "
            f"a label file, or {HUB_PREFIX}NAME."
        )


def check_folder(folder: Path, option: str) -> None:
    """Check that the folder of a data set exists.

    Raises:
        DataError: it does not.
    """
    if not is_data(folder):
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{option} {folder} {what}; pass the data set's folder.")


def missing_folders(
    data_sets: Mapping[str, Path], val_fraction: float | None = None
) -> Iterator[str]:
    """Yield what is missing of data sets without reading them, one line each.

    Args:
        data_sets: folders, label files, or `hfds:NAME`, by layout.
        val_fraction: the fraction of the training images that is the validation split, where it is held out.
    """
    for layout, root in data_sets.items():
        if str(root).startswith(HUB_PREFIX):
            continue
        try:
            check_folder(root, f"--{layout}")
        except DataError as error:
            yield str(error)
            continue
        if layout != "imagenet" or is_label_file(root) or val_fraction is not None:
            continue
        for split in SPLIT_FOLDERS:
            folder = split_folder(root, split)
            if not folder.is_dir():
                yield describe_missing_split(folder)


def check_data(task: str, data_sets: Sequence[DataSet]) -> None:
    """Check that the folders of a task's data sets exist.

    Raises:
        DataError: one does not.
    """
    layout = LAYOUTS[TASKS[task].data].summary if task in TASKS else "CLASS/*"
    for one in data_sets:
        if not is_one_of_several() and (missing := missing_folder(one)) is not None:
            raise DataError(missing)
        if not str(one.root).startswith(HUB_PREFIX) and not _exists(one.root):
            raise DataError(
                f"data folder {one.root} does not exist; correct --data: a folder with {layout}."
            )


def check_transfer(task: str, ckpt: str, recipe: str | None, overrides: Sequence[str]) -> None:
    """Check the checkpoint's path, the recipe's name and type, and the overrides.

    Raises:
        UsageError: an unknown recipe, one of another task, or an override that its type does not take.
        DataError: the checkpoint does not exist.
    """
    from simmim_bench.overrides import override, parse_overrides
    from simmim_bench.recipe import find_recipe
    from transfer.recipes import RECIPES, check_recipe_type
    from transfer.tasks import TASK_RECIPES

    if recipe is not None:
        named = find_recipe(RECIPES, recipe)
        check_recipe_type(task, named)
        override(named, overrides)
    else:  # which default it is depends on the checkpoint; its type does not
        parse_overrides(TASK_RECIPES[task].recipe_types[0], f"the recipes of {task}", overrides)
    check_ckpt(ckpt)


def spec_of(ckpt: str | None) -> tuple[BackboneSpec, str | None] | None:
    """Return the architecture of a CKPT and its pretraining recipe, where they can be read without torch."""
    from simmim_bench.models.archs import ARCHS
    from transfer.recipes import pretraining_recipe

    arch, provenance = None, dict[str, Any]()
    if ckpt is not None and ckpt.startswith("random:"):
        arch = ckpt.removeprefix("random:")
    elif ckpt is not None:
        for folder in (Path(ckpt), Path(ckpt, "checkpoints", "last")):
            with suppress(DataError, KeyError, TypeError):
                meta = read_json(folder / "meta.json", "checkpoint file", finite=False)
                arch, provenance = str(meta["spec"]["arch"]), dict(meta["provenance"])
    if arch not in ARCHS:
        return None
    return ARCHS[arch], pretraining_recipe(_mapping(provenance))


def _mapping(provenance: Any) -> Mapping[str, Any]:
    return provenance if isinstance(provenance, Mapping) else {}
