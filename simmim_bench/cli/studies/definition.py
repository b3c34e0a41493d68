"""A study as its file describes it: data sets, checkpoints, baselines, tasks and figures.

Names are checked against each other and against the registry of tasks; architectures, recipes and their settings are
checked when the study is planned (`plan.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simmim_bench.cli.studies.sections import Section, read_section, resolve_path
from simmim_bench.cli.yaml_file import read_yaml
from simmim_bench.data.named import HUB_PREFIX
from simmim_bench.errors import DataError
from simmim_bench.tasks import LAYOUTS, OPTIONS, TASKS, Task, variants, variants_of

MOST_SEEDS = 100
LARGEST_SEED = 2**32 - 1
IMAGES = "images"  # a layout for pretraining alone
BASELINES = ("random",)
FIGURES = ("epochs", "width", "images", "cost")
KEYS = ("out", "data", "checkpoints", "baselines", "tasks", "seed", "figures", "reference")
PRETRAINED = (*("arch", "recipe", "overrides", "data", "seeds", "teacher", "init_from", "vary"),)
TASK_KEYS = ("recipe", "overrides", "seeds", "data", "options")
NAMED_CKPTS = ("random:", "timm:", "hub:", "py:")


@dataclass(frozen=True, kw_only=True)
class StudyCheckpoint:
    """A row's checkpoints: to pretrain, one per seed, or a given one.

    Attributes:
        key: its name in the file, which stands for several rows where a setting varies.
        place: where the file describes them, for errors.
        ckpt: CKPT of a given one; None for those to pretrain, which the other fields describe.
        data: the images to pretrain on.
        teacher, init_from: name of another row, or a CKPT.
    """

    name: str
    key: str
    place: str
    ckpt: str | None = None
    arch: str = ""
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    data: Path = Path()
    seeds: tuple[int, ...] = ()
    teacher: str | None = None
    init_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class StudyTask:
    """A task of every row.

    Attributes:
        name: the task as records name it.
        place: where the file describes it, for errors.
        recipes: a recipe's name by architecture; "" is for all others.
        seeds: number of seeds for each checkpoint.
        data: the names of its data sets.
        options: of the task, such as `accumulate`.
    """

    name: str
    place: str
    recipes: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    seeds: int = 1
    data: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file, validated.

    Attributes:
        out: the folder of all runs, the leaderboard and the report.
        data: folders by layout, by the name of the data set.
        seed: the first seed of the tasks.
        figures: the figures of the report; those that the rows do not vary are left out.
        reference: name of the row that the others are compared with; None for the first checkpoint.
    """

    path: Path
    out: Path
    data: Mapping[str, Mapping[str, Path]]
    checkpoints: tuple[StudyCheckpoint, ...]
    baselines: tuple[str, ...]
    tasks: tuple[StudyTask, ...]
    seed: int
    figures: tuple[str, ...]
    reference: str | None

    def with_layout(self, layout: str) -> list[str]:
        """Return the names of the data sets in a layout."""
        return [name for name, folders in self.data.items() if layout in folders]


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        DataError: the file or a data set does not exist, or the file is not YAML.
        UsageError: a key or value that a study does not take.
    """
    folder = path.parent.resolve()
    top = read_section(str(path), read_yaml(path, "study"), folder, "data: {...}")
    top.check_keys(KEYS)
    data = _read_data(top)
    checkpoints = _read_checkpoints(top, data)
    tasks = _read_tasks(top, data)
    baselines = top.names("baselines", BASELINES) or ()
    if not checkpoints:
        raise top.error("checkpoints", "missing; write checkpoints: {NAME: {arch: ARCH}}.")
    names = [*(one.name for one in checkpoints), *baselines]
    reference = top.names("reference", names)
    if reference is not None and len(reference) > 1:
        raise top.error("reference", f"{len(reference)} names; use one.")
    figures = top.names("figures", FIGURES)
    return Study(
        path=path,
        out=top.path("out") or folder / "runs" / path.stem,
        data=data,
        checkpoints=tuple(checkpoints),
        baselines=baselines,
        tasks=tuple(tasks),
        seed=top.number("seed", 0, LARGEST_SEED, 0),
        figures=FIGURES if figures is None else figures,
        reference=reference[0] if reference else None,
    )


def _read_data(top: Section) -> dict[str, dict[str, Path]]:
    """Read the folders of the data sets, which have to exist."""
    found: dict[str, dict[str, Path]] = {}
    layouts = (*LAYOUTS, IMAGES)
    for name, value in top.entries("data", "data: {NAME: {imagenet: DIR}}").items():
        section = read_section(f"{top.at('data')}.{name}", value, top.folder, "{imagenet: DIR}")
        section.check_keys(layouts)
        folders = {layout: path for layout in layouts if (path := section.path(layout))}
        for layout, path in folders.items():
            if str(path).startswith(HUB_PREFIX) and layout == IMAGES:
                continue
            if not path.exists():
                raise DataError(f"{section.at(layout)}: {path} does not exist.")
        if not folders:
            raise top.error(f"data.{name}", f"no folder; add one of {', '.join(layouts)}.")
        found[name] = folders
    return found


def _read_checkpoints(
    top: Section, data: Mapping[str, Mapping[str, Path]]
) -> list[StudyCheckpoint]:
    found: dict[str, StudyCheckpoint] = {}
    for name, value in top.entries("checkpoints", "checkpoints: {NAME: {arch: ARCH}}").items():
        place = f"{top.at('checkpoints')}.{name}"
        section = read_section(place, value, top.folder, "{arch: vit_s} or {ckpt: FILE}")
        for one, of_variant in _variants_of(name, section):
            if one in found or one in BASELINES:
                raise top.error("checkpoints", f"two rows have the name {one}; rename one.")
            read = _read_checkpoint(one, of_variant, data, list(found))
            found[one] = replace(read, key=name)
    return list(found.values())


def _variants_of(name: str, section: Section) -> Iterator[tuple[str, Section]]:
    """Yield the rows that a checkpoint stands for: one, or one for each value of `vary`."""
    vary = section.values.get("vary")
    if vary is None:
        yield name, section
        return
    settings = vary if isinstance(vary, list) else []
    if isinstance(vary, dict) and len(vary) == 1:
        ((key, values),) = vary.items()
        settings = [{key: value} for value in values] if isinstance(values, list) else []
    if not settings or not all(isinstance(one, dict) and one for one in settings):
        raise section.error(
            "vary",
            f"{vary} is neither one setting with its values, such as {{epochs: [10, 20]}}, nor a list of mappings, "
            "such as [{epochs: 10, warmup_epochs: 1}, {epochs: 20, warmup_epochs: 2}].",
        )
    base = {key: value for key, value in section.values.items() if key != "vary"}
    for changes in settings:
        own = {key: value for key, value in changes.items() if key in PRETRAINED}
        other = {key: value for key, value in changes.items() if key not in PRETRAINED}
        overrides = {**_mapping(base.get("overrides")), **other}
        values = {**base, **own, **({"overrides": overrides} if overrides else {})}
        first_key, first = next(iter(changes.items()))
        shown = "x".join(map(str, first)) if isinstance(first, list) else str(first)
        yield f"{name}-{first_key}-{shown}", replace(section, values=values)


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _read_checkpoint(
    name: str, section: Section, data: Mapping[str, Mapping[str, Path]], before: Collection[str]
) -> StudyCheckpoint:
    if "ckpt" in section.values:
        section.check_keys(("ckpt",))
        text = section.required("ckpt", "FILE")
        given = text if text.startswith(NAMED_CKPTS) else str(resolve_path(section.folder, text))
        return StudyCheckpoint(name=name, key=name, place=section.place, ckpt=given)
    section.check_keys((*PRETRAINED, "ckpt"))
    return StudyCheckpoint(
        name=name,
        key=name,
        place=section.place,
        arch=section.required("arch", "vit_s"),
        recipe=section.text("recipe"),
        overrides=section.overrides("overrides"),
        data=_read_images(section, data),
        seeds=section.numbers("seeds", 0, MOST_SEEDS, LARGEST_SEED),
        teacher=_read_source(section, "teacher", before),
        init_from=_read_source(section, "init_from", before),
    )


def _read_images(section: Section, data: Mapping[str, Mapping[str, Path]]) -> Path:
    """Return the images that a checkpoint is pretrained on."""
    usable = {
        name: found
        for name, folders in data.items()
        if (found := folders.get(IMAGES, folders.get("imagenet")))
    }
    given = section.names("data", list(data))
    if given is None:
        if len(usable) != 1:
            known = f"name one of {', '.join(usable)}" if usable else "add one with images: DIR"
            raise section.error("data", f"missing; {known}.")
        return next(iter(usable.values()))
    if len(given) > 1 or given[0] not in usable:
        raise section.error(
            "data", "a pretraining takes one data set that has images: DIR or imagenet: DIR."
        )
    return usable[given[0]]


def _read_source(section: Section, key: str, before: Collection[str]) -> str | None:
    """Return the name of an earlier row, or a CKPT."""
    text = section.text(key)
    if text is None or text in before or text.startswith(NAMED_CKPTS):
        return text
    path = resolve_path(section.folder, text)
    if not path.exists():
        known = f"one of {', '.join(before)}" if before else "a row"
        raise section.error(
            key,
            f"{text} is neither {known} above this one nor a checkpoint; {path} does not exist.",
        )
    return str(path)


def _read_tasks(top: Section, data: Mapping[str, Mapping[str, Path]]) -> list[StudyTask]:
    """Read the tasks, in the order in which suites run them."""
    every = variants()
    value = top.values.get("tasks")
    if isinstance(value, list):
        value = dict.fromkeys(map(str, value))
    if not isinstance(value, dict) or not value:
        raise top.error("tasks", "missing or no mapping; write tasks: {linear: {}, knn: {}}.")
    section = top.section("tasks", value)
    section.check_keys((*every, *TASKS))
    found: dict[str, StudyTask] = {}
    for name, settings in value.items():
        own = section.section(name, settings, "{seeds: 3}")
        own.check_keys(TASK_KEYS)
        of_name = [name] if name in every else [one.name for one in variants_of(TASKS[name])]
        for one in of_name:
            if one in found:
                raise section.error(name, f"{one} is given twice; give it once.")
            found[one] = _read_task(one, own, data)
    return [found[name] for name in every if name in found]


def _read_task(name: str, section: Section, data: Mapping[str, Mapping[str, Path]]) -> StudyTask:
    task = variants()[name].task
    fitting = [one for one, folders in data.items() if task.data in folders]
    chosen = section.names("data", fitting)
    if not fitting:
        raise section.error("data", f"no data set has {task.data}: DIR; add one, or remove {name}.")
    if not task.takes_several_data_sets and len(chosen or fitting) > 1:
        raise section.error("data", f"{name} takes one data set; name one of {', '.join(fitting)}.")
    recipe = section.values.get("recipe")
    recipes = {} if recipe is None else {"": recipe}
    if isinstance(recipe, dict):
        recipes = {str(arch): one for arch, one in recipe.items()}
    if not all(isinstance(one, str) for one in recipes.values()):
        raise section.error("recipe", "not a name, or a mapping such as {swin_t: NAME}.")
    return StudyTask(
        name=name,
        place=section.place,
        recipes=recipes,
        overrides=section.overrides("overrides"),
        seeds=section.number("seeds", 1, MOST_SEEDS, 1),
        data=chosen or tuple(fitting),
        options=_read_options(section, task),
    )


def _read_options(section: Section, task: Task) -> dict[str, Any]:
    """Return the values of the task's options that a suite offers."""
    options = section.section("options", section.values.get("options"))
    allowed = [name for name in task.options if OPTIONS[name].in_suite]
    if not allowed and options.values:
        raise section.error("options", f"{task.name} has none in a study; remove them.")
    options.check_keys(allowed)
    found: dict[str, Any] = {}
    for name, value in options.values.items():
        kind = OPTIONS[name].kind
        if kind == "count":
            found[name] = options.number(name, 1, LARGEST_SEED, 1)
        elif type(value) is not bool:
            raise options.error(name, f"{value} is not true or false.")
        else:
            found[name] = {True: "on", False: "off"}[value] if kind == "switch" else value
    return found
