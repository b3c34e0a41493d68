"""Which tasks a suite runs, and the settings that TASK=VALUE texts give to single tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from simmim_bench.errors import UsageError, nearest
from simmim_bench.tasks import TASKS, variants, variants_of
from transfer.suite.options import SuiteOptions
from transfer.tasks import TASK_RECIPES

MOST_SEEDS = 100
# of every task: --precision, --limit and --val-fraction of a suite
SHARED_KEYS = ("precision", "limit", "val_fraction")


def choose_tasks(options: SuiteOptions) -> list[str]:
    """Return the record names of the requested tasks that have their data, in a suite's order.

    Raises:
        UsageError: no data set, an unknown task, or one without its data set.
    """
    every = variants()
    if not options.data_sets and not options.named:
        layouts = dict.fromkeys(task.data for task in TASKS.values())
        flags = [f"--{layout}" for layout in layouts]
        raise UsageError(f"no data set: pass {', '.join(flags[:-1])} or {flags[-1]}.")
    known = [name for name, variant in every.items() if options.data_sets_of(variant)]
    requested = [name.strip() for text in options.tasks for name in text.split(",") if name.strip()]
    if not requested:
        return known
    names = {name for text in requested for name in find_tasks("--tasks", text)}
    for name in sorted(names - set(known)):
        raise UsageError(
            f"--tasks {name} needs a data set; pass its folder with --{every[name].task.data}."
        )
    return [name for name in known if name in names]


def read_seeds(texts: Iterable[str], names: Sequence[str]) -> dict[str, int]:
    """Parse N and TASK=N texts into a number of seeds by record name.

    Raises:
        UsageError: a number outside 1 to 100, or a task that is not in the plan.
    """
    return _by_task("--seeds", texts, names, _read_count, applies_to_all=True)


def read_recipes(texts: Iterable[str], names: Sequence[str]) -> dict[str, str]:
    """Parse TASK=NAME texts into recipe names by record name.

    Raises:
        UsageError: a text without a task, or a task that is not in the plan.
    """
    return _by_task("--recipe", texts, names, str)


def describe_without(texts: Iterable[str], names: Sequence[str]) -> Iterator[str]:
    """Yield a line for each setting of all tasks that some tasks of the plan do not have."""
    for text in texts:
        key = text.partition("=")[0]
        without = [name for name in names if not _has_key(name, key)]
        if key in SHARED_KEYS and without:
            yield f"suite: {text} is not for {', '.join(without)}, whose recipes have no {key}"


def _has_key(name: str, key: str) -> bool:
    """Return whether the recipes of a task have a key."""
    kind = TASK_RECIPES[variants()[name].task.name].recipe_types[0]
    return key in {field.name for field in dataclasses.fields(kind)}


def read_overrides(texts: Iterable[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Parse TASK.KEY=VALUE texts into KEY=VALUE overrides by record name.

    A text of one of `SHARED_KEYS` without a task is for all tasks whose recipes have the key; TASK.KEY wins.

    Raises:
        UsageError: a text without a task, a task that is not in the plan, or a setting that no task has.
    """
    found: dict[str, list[str]] = {}
    for text in sorted(texts, key=lambda text: text.partition("=")[0] not in SHARED_KEYS):
        task, dot, assignment = text.partition(".")
        if (key := text.partition("=")[0]) in SHARED_KEYS:
            having = [name for name in names if _has_key(name, key)]
            if not having:
                raise UsageError(f"-o {text}: no task of the plan has {key}; remove it.")
            for name in having:
                found.setdefault(name, []).append(text)
            continue
        if not dot or "=" in task:
            raise UsageError(f"-o {text} names no task; write -o {names[0]}.{text}.")
        for name in _in_plan("-o", task, names):
            found.setdefault(name, []).append(assignment)
    return found


def find_tasks(option: str, text: str) -> tuple[str, ...]:
    """Return the record names that a text means: one, or all variants of a task."""
    every = variants()
    if text in every:
        return (text,)
    if text in TASKS:
        return tuple(variant.name for variant in variants_of(TASKS[text]))
    raise UsageError(f"{option}: unknown task '{text}'; {nearest(text, [*every, *TASKS])}")


def _in_plan(option: str, text: str, names: Sequence[str]) -> list[str]:
    found = [name for name in find_tasks(option, text) if name in names]
    if not found:
        raise UsageError(f"{option}: {text} is not in the plan, which has {', '.join(names)}.")
    return found


def _by_task(
    option: str,
    texts: Iterable[str],
    names: Sequence[str],
    read: Callable[[str], Any],
    *,
    applies_to_all: bool = False,
) -> dict[str, Any]:
    """Parse TASK=VALUE texts; a bare VALUE applies to all tasks where that is allowed, in any order."""
    general, special = dict[str, Any](), dict[str, Any]()
    for text in texts:
        task, equals, value = text.partition("=")
        if equals:
            special |= dict.fromkeys(_in_plan(option, task, names), read(value))
        elif applies_to_all:
            general |= dict.fromkeys(names, read(text))
        else:
            raise UsageError(f"{option} {text} names no task; write {option} {names[0]}={text}.")
    return general | special


def _read_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_SEEDS:
        raise UsageError(f"--seeds {text} is not a number from 1 to {MOST_SEEDS}.")
    return int(text)
