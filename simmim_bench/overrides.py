"""Change recipes by `key=value` texts, each value parsed as the type of its field.

Nothing here loads torch.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable
from typing import Any

from simmim_bench.errors import UsageError, nearest
from simmim_bench.recipe import ABOUT, AnyRecipe, Recipe

# Names of keys in other programs, and what they are called here
ALIASES = {
    "lr": "base_lr",
    "learning_rate": "base_lr",
    "workers": "num_workers",
    "wd": "weight_decay",
}
UNTRAINED = (
    "epochs",
    "max_iters",
    "batch_size",
    "base_lr",
)  # keys of what is trained by gradient steps


def override(recipe: AnyRecipe, assignments: Iterable[str]) -> AnyRecipe:
    """Return a recipe with fields changed by `key=value` texts, each value parsed as its field's type.

    Raises:
        UsageError: a text without "=", an unknown key, or a value of the wrong type.
    """
    changes = parse_overrides(type(recipe), f"recipe '{recipe.name}'", assignments)
    return dataclasses.replace(recipe, **changes)


def parse_overrides(kind: type[Recipe], what: str, assignments: Iterable[str]) -> dict[str, Any]:
    """Return the values of `key=value` texts by key, each parsed as the type of its field.

    Args:
        kind: the type of the recipe.
        what: the recipe, for messages.

    Raises:
        UsageError: a text without "=", an unknown key, or a value of the wrong type.
    """
    kinds = typing.get_type_hints(kind)
    keys = [f.name for f in dataclasses.fields(kind) if f.name not in ABOUT]
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"override '{assignment}' has no value; write -o {key}=VALUE.")
        if key not in keys:
            raise UsageError(f"unknown override key '{key}' for {what}; {_instead(key, keys)}")
        changes[key] = _parse(key, text, kinds[key])
    return changes


def _instead(key: str, keys: Iterable[str]) -> str:
    """Return a hint for an unknown key: the one that does what it would, or the nearest."""
    keys = tuple(keys)
    if key == "epochs" and "max_iters" in keys:
        return "it counts iterations: use -o max_iters=N."
    if key == "limit":
        return "it uses all images; use a smaller data set, such as a subset of the annotations."
    other = ALIASES.get(key)
    if other in keys:
        return f"use -o {other}=..."
    if key in UNTRAINED and "max_iters" not in keys and "epochs" not in keys:
        return "it fits no weights step by step, and has no " + ", ".join(UNTRAINED) + "."
    return nearest(key, keys)


def _parse(key: str, text: str, kind: Any) -> Any:
    """Parse a text as a field's type: int, float, bool, str, a Literal, a tuple of them, or `| None`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if text.lower() in ("none", "null"):
            return None
        return _parse(key, text, next(a for a in arguments if a is not type(None)))
    if origin is typing.Literal:
        if text not in arguments:
            allowed = ", ".join(argument or "''" for argument in arguments)
            raise UsageError(f"{key}={text} is not one of the allowed values: {allowed}.")
        return text
    if origin is tuple:
        parts = [
            part.strip()
            for part in text.strip("()[] ").replace("x", ",").split(",")
            if part.strip()
        ]
        if not parts and text.strip() not in ("()", "[]"):
            raise UsageError(f"{key}= has no values; write {key}=A,B.")
        if Ellipsis not in arguments and len(parts) == 1:
            parts = parts * len(arguments)  # img_size=64 means (64, 64)
        if Ellipsis not in arguments and len(parts) != len(arguments):
            raise UsageError(f"{key}={text} has {len(parts)} values; it takes {len(arguments)}.")
        return tuple(_parse(key, part, arguments[0]) for part in parts)
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise UsageError(f"{key}={text} is not a boolean; use true or false.")
        return text.lower() in ("true", "1", "yes")
    try:
        value = kind(text)
    except ValueError as error:
        raise UsageError(f"{key}={text} is not of type {kind.__name__}.") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{key}={text} is not a finite number.")
    return value
