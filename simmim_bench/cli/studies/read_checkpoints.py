"""Read the checkpoints of a study file, one for each row."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simmim_bench.cli.studies.definition import (
    BASELINES,
    IMAGES,
    LARGEST_SEED,
    MOST_SEEDS,
    StudyCheckpoint,
    StudyTask,
)
from simmim_bench.cli.studies.sections import Section, read_section, resolve_path
from simmim_bench.data.named import NAME
from simmim_bench.tasks import TASKS, variants_of

GIVEN = ("ckpt", "tasks")
LABELLED = ("arch", "task", "recipe", "overrides", "data", "seeds", "vary", "tasks")
PRETRAINED = (*LABELLED, "teacher", "init_from")
VARIED = ("arch", "recipe", "data", "teacher", "init_from")  # all else in `vary` changes the recipe
TRAINING_TASKS = ("imagenet",)  # tasks whose model is a checkpoint that can be transferred
NAMED_CKPTS = ("random:", "timm:", "hub:")


def read_checkpoints(
    top: Section, data: Mapping[str, Mapping[str, Path]], tasks: Sequence[StudyTask]
) -> list[StudyCheckpoint]:
    """Read the checkpoints, one for each row; a row may refer to those above it, and to some of the tasks."""
    found: dict[str, StudyCheckpoint] = {}
    for name, value in top.entries("checkpoints", "checkpoints: {NAME: {arch: ARCH}}").items():
        place = f"{top.at('checkpoints')}.{name}"
        section = read_section(place, value, top.folder, "{arch: vit_s} or {ckpt: FILE}")
        for one, of_variant in _variants_of(name, section):
            if one in found:
                raise top.error("checkpoints", f"two rows have the name {one}; rename one.")
            if one.startswith(BASELINES):
                raise top.error("checkpoints", f"{one} is the name of a baseline; use another.")
            read = _read_checkpoint(one, of_variant, data, list(found))
            found[one] = replace(read, key=name, tasks=_read_tasks(of_variant, tasks))
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
        own = {key: value for key, value in changes.items() if key in VARIED}
        other = {key: value for key, value in changes.items() if key not in VARIED}
        overrides = {**_mapping(base.get("overrides")), **other}
        values = {**base, **own, **({"overrides": overrides} if overrides else {})}
        first_key, first = next(iter(changes.items()))
        shown = "x".join(map(str, first)) if isinstance(first, list) else str(first)
        row = f"{name}-{first_key}-{shown}"
        if not NAME.fullmatch(row):
            raise section.error(
                "vary",
                f"{row} cannot name a row; begin each mapping with a setting of a short value.",
            )
        yield row, replace(section, values=values)


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _read_checkpoint(
    name: str, section: Section, data: Mapping[str, Mapping[str, Path]], before: Collection[str]
) -> StudyCheckpoint:
    if "ckpt" in section.values:
        section.check_keys(GIVEN)
        text = section.required("ckpt", "FILE")
        given = text if text.startswith(NAMED_CKPTS) else str(resolve_path(section.folder, text))
        return StudyCheckpoint(name=name, key=name, place=section.place, ckpt=given)
    task = section.names("task", TRAINING_TASKS)
    section.check_keys((*PRETRAINED, "ckpt") if task is None else LABELLED)
    return StudyCheckpoint(
        name=name,
        key=name,
        place=section.place,
        arch=section.required("arch", "vit_s"),
        task=None if task is None else task[0],
        recipe=section.text("recipe"),
        overrides=section.overrides("overrides"),
        data=_read_images(section, data, (IMAGES, "imagenet") if task is None else ("imagenet",)),
        seeds=section.numbers("seeds", 0, MOST_SEEDS, LARGEST_SEED),
        teacher=_read_source(section, "teacher", before),
        init_from=_read_source(section, "init_from", before),
    )


def _read_tasks(section: Section, tasks: Sequence[StudyTask]) -> tuple[str, ...] | None:
    """Return the names of the tasks that score a checkpoint; `fewshot` stands for all of its fractions."""
    names = {task.name: [task.name] for task in tasks}
    for task in TASKS.values():
        given = [one.name for one in variants_of(task) if one.name in names]
        if given:
            names.setdefault(task.name, given)
    chosen = section.names("tasks", names)
    return None if chosen is None else tuple(one for name in chosen for one in names[name])


def _read_images(
    section: Section, data: Mapping[str, Mapping[str, Path]], layouts: Sequence[str]
) -> Path:
    """Return the images that a checkpoint is trained on, in the first layout that a data set has."""
    usable = {
        name: next(folders[layout] for layout in layouts if layout in folders)
        for name, folders in data.items()
        if not folders.keys().isdisjoint(layouts)
    }
    wanted = " or ".join(f"{layout}: DIR" for layout in layouts)
    given = section.names("data", list(data))
    if given is None:
        if len(usable) != 1:
            known = f"name one of {', '.join(usable)}" if usable else f"add one with {wanted}"
            raise section.error("data", f"missing; {known}.")
        return next(iter(usable.values()))
    if len(given) > 1 or given[0] not in usable:
        raise section.error("data", f"a checkpoint is trained on one data set that has {wanted}.")
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
