"""Read a study file.

Names are checked against each other and against the registry of tasks; architectures, recipes and their settings are
checked when the study is planned (`rows.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from simmim_bench.cli.studies.definition import (
    BASELINES,
    FIGURES,
    IMAGES,
    LARGEST_SEED,
    Study,
    Subset,
)
from simmim_bench.cli.studies.read_checkpoints import read_checkpoints
from simmim_bench.cli.studies.read_tasks import read_tasks
from simmim_bench.cli.studies.sections import Section, read_section
from simmim_bench.data.named import HUB_PREFIX
from simmim_bench.errors import DataError
from simmim_bench.tasks import LAYOUTS
from simmim_bench.untrusted.yaml_text import read_yaml

SUBSET_KEYS = ("subset_of", "count", "seed")
MOST_IMAGES = 10**9
KEYS = ("out", "data", "checkpoints", "baselines", "tasks", "seed", "figures", "reference")


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        DataError: the file or a data set does not exist, or the file is not YAML.
        UsageError: a key or value that a study does not take.
    """
    folder = path.parent  # not absolute: runs keep the paths, and a whole tree may move
    top = read_section(str(path), read_yaml(path, "study"), folder, "data: {...}")
    top.check_keys(KEYS)
    out = top.path("out") or folder / "runs" / path.stem
    data, subsets = _read_data(top, out)
    tasks = read_tasks(top, data)
    checkpoints = read_checkpoints(top, data, tasks)
    baselines = top.names("baselines", BASELINES) or ()
    names = [*(one.name for one in checkpoints), *baselines]
    reference = top.names("reference", names)
    if reference is not None and len(reference) > 1:
        raise top.error("reference", f"{len(reference)} names; use one.")
    figures = top.names("figures", FIGURES)
    return Study(
        path=path,
        out=out,
        data=data,
        subsets=subsets,
        checkpoints=tuple(checkpoints),
        baselines=baselines,
        tasks=tuple(tasks),
        seed=top.number("seed", 0, LARGEST_SEED, 0),
        figures=FIGURES if figures is None else figures,
        reference=reference[0] if reference else None,
    )


def _read_data(top: Section, out: Path) -> tuple[dict[str, Mapping[str, Path]], tuple[Subset, ...]]:
    """Read the folders of the data sets, which have to exist, and the subsets that the study writes."""
    found: dict[str, Mapping[str, Path]] = {}
    subsets = []
    for name, value in top.entries("data", "data: {NAME: {imagenet: DIR}}").items():
        section = top.section(f"data.{name}", value, "{imagenet: DIR}")
        if "subset_of" in section.values:
            subset = _read_subset(section, found, out / "data" / name)
            subsets.append(subset)
            found[name] = {IMAGES: subset.folder}
        else:
            found[name] = _read_folders(section)
    return found, tuple(subsets)


def _read_folders(section: Section) -> dict[str, Path]:
    layouts = (*LAYOUTS, IMAGES)
    section.check_keys((*layouts, "subset_of"))
    folders = {layout: path for layout in layouts if (path := section.path(layout))}
    for layout, path in folders.items():
        on_hub = layout == IMAGES and str(path).startswith(HUB_PREFIX)
        if not on_hub and not path.exists():
            raise DataError(f"{section.at(layout)}: {path} does not exist.")
    if not folders:
        raise section.error(layouts[0], f"no folder; add one of {', '.join(layouts)}.")
    return folders


def _read_subset(section: Section, data: Mapping[str, Mapping[str, Path]], folder: Path) -> Subset:
    section.check_keys(SUBSET_KEYS)
    usable = {
        name: found
        for name, folders in data.items()
        if (found := folders.get("imagenet", folders.get(IMAGES))) is not None
    }
    of = section.names("subset_of", usable)
    if of is None or len(of) != 1:
        raise section.error("subset_of", "name one data set above.")
    if "count" not in section.values:
        raise section.error("count", "missing; add the number of images.")
    return Subset(
        source=usable[of[0]],
        count=section.number("count", 1, MOST_IMAGES, 1),
        seed=section.number("seed", 0, LARGEST_SEED, 0),
        folder=folder,
    )
