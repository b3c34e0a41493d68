"""Read the tasks of a study file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_bench.cli.studies.definition import LARGEST_SEED, MOST_SEEDS, StudyTask
from simmim_bench.cli.studies.sections import Section
from simmim_bench.tasks import OPTIONS, TASKS, Task, variants, variants_of

KEYS = ("recipe", "overrides", "seeds", "data", "options")


def read_tasks(top: Section, data: Mapping[str, Mapping[str, Path]]) -> list[StudyTask]:
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
        own.check_keys(KEYS)
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
