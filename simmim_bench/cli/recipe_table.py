"""Describe the keys of a recipe: value, type or choices, default, and meaning, from its types' docstrings.

`recipes show` and the option --help-recipe print the table. Nothing here loads torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from simmim_bench.cli.recipe_options import KEY_OPTIONS
from simmim_bench.recipe import ABOUT, Recipe

WIDTH = 100
_ENTRY = re.compile(r"    (\w+(?:, \w+)*): (.*)")


def meanings(kind: type[Recipe]) -> dict[str, str]:
    """Return what each field of a type of recipe means, as the `Attributes:` of its docstrings describe it.

    The description of several fields together, `epochs, warmup_epochs: ...`, is that of each.
    """
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if dataclasses.is_dataclass(one) and one.__doc__:
            found |= dict(_attributes(inspect.cleandoc(one.__doc__)))
    return found


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield the entries of the section `Attributes:`."""
    names, lines = list[str](), list[str]()
    for line in [*docstring.partition("\nAttributes:\n")[2].splitlines(), "    end: "]:
        entry = _ENTRY.fullmatch(line)
        if entry is None:
            lines.append(line.strip())
            continue
        text = " ".join(filter(None, lines))
        yield from ((name, text) for name in names)
        names, lines = entry[1].split(", "), [entry[2]]


def describe_type(kind: Any) -> str:
    """Return a field's type as -o takes its value, such as `int`, `cosine|multistep` or `int,int`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return "|".join("none" if one is type(None) else describe_type(one) for one in arguments)
    if origin is typing.Literal:
        return "|".join(argument or "''" for argument in arguments)
    if origin is tuple:
        if Ellipsis in arguments:
            one = describe_type(arguments[0])
            return f"({one}),..." if "|" in one else f"{one},..."
        return ",".join(map(describe_type, arguments))
    return str(kind.__name__)


def recipe_table(recipe: Recipe, named: Recipe | None = None) -> list[str]:
    """Return the lines of the table of a recipe's keys.

    Args:
        named: the recipe before -o, whose values are then shown where they differ.
    """
    kind = type(recipe)
    kinds, meaning, flags = typing.get_type_hints(kind), meanings(kind), _flags()
    fields = [field for field in dataclasses.fields(kind) if field.name not in ABOUT]
    shown = {field.name: json.dumps(getattr(recipe, field.name)) for field in fields}
    width, value_width = max(map(len, shown)), min(32, max(map(len, shown.values())))
    lines = []
    for field in fields:
        key, value = field.name, shown[field.name]
        notes = []
        if named is not None and getattr(named, key) != getattr(recipe, key):
            notes.append(f"{named.name}: {json.dumps(getattr(named, key))}")
        if key in recipe.sources:
            notes.append(recipe.source_of(key))
        lines.append(f"{key:<{width}}  {value:<{value_width}}  {'; '.join(notes)}".rstrip())
        what = [describe_type(kinds[key])]
        if field.default is not dataclasses.MISSING:
            what.append(f"default {json.dumps(field.default)}")
        if key in flags:
            what.append(flags[key])
        text = f"{', '.join(what)}: {meaning.get(key, '')}"
        lines += textwrap.wrap(
            text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
        )
    return lines


def _flags() -> dict[str, str]:
    return {option.key: option.flag for option in KEY_OPTIONS.values()}
