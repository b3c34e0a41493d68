"""Read the parts of a YAML file with errors that name the file and key, the value and what is allowed."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_bench.data.named import HUB_PREFIX, NAME
from simmim_bench.errors import UsageError, nearest
from simmim_bench.untrusted.text import shorten, visible
from simmim_bench.untrusted.yaml_text import setting_text

CODE = "py:"


@dataclass(frozen=True)
class Section:
    """A mapping in a YAML file.

    Attributes:
        place: the file and the keys that lead to the mapping, as errors name them.
        folder: the folder that paths are relative to.
    """

    place: str
    values: Mapping[str, Any]
    folder: Path

    def error(self, key: str, problem: str) -> UsageError:
        """Return the error for a key with a problem."""
        return UsageError(f"{self.at(key)}: {problem}")

    def at(self, key: str) -> str:
        """Return the place of a key."""
        return f"{self.place}.{key}" if ": " in self.place else f"{self.place}: {key}"

    def check_keys(self, allowed: Collection[str]) -> None:
        """Refuse keys that are not allowed, with the nearest one that is."""
        for key in self.values:
            if key not in allowed:
                raise self.error(_show(key), f"unknown key; {nearest(str(key), allowed)}")

    def text(self, key: str) -> str | None:
        """Return a text; None if the key is missing."""
        value = self.values.get(key)
        if value is not None and not (isinstance(value, str) and value):
            raise self.error(key, f"{_show(value)} is not a text.")
        self._refuse_code(key, value)
        return value

    def _refuse_code(self, key: str, value: Any) -> None:
        if isinstance(value, str) and value.startswith(CODE):  # the file may be a stranger's
            raise self.error(
                key,
                f"{_show(value)} names code to run, which a file may not; run its tasks with `simmim-bench suite`.",
            )

    def required(self, key: str, example: str) -> str:
        """Return a text that must be given."""
        found = self.text(key)
        if found is None:
            raise self.error(key, f"missing; add it, such as {key}: {example}.")
        return found

    def path(self, key: str) -> Path | None:
        """Return a path, which the file gives relative to its folder; `hfds:NAME` is left unchanged."""
        found = self.text(key)
        return None if found is None else resolve_path(self.folder, found)

    def number(self, key: str, low: int, high: int, default: int) -> int:
        """Return a whole number."""
        value = self.values.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, f"{_show(value)} is not a whole number from {low} to {high}.")
        return value

    def numbers(self, key: str, first: int, most: int, high: int) -> tuple[int, ...]:
        """Return whole numbers: those of a list, or as many from `first` on as a number says; one by default."""
        value = self.values.get(key, 1)
        if type(value) is int and 1 <= value <= most:
            return tuple(range(first, first + value))
        listed = value if isinstance(value, list) else []
        different = len({*map(repr, listed)}) == len(listed)
        if 1 <= len(listed) <= most and different and all(_is_seed(one, high) for one in listed):
            return tuple(listed)
        raise self.error(
            key,
            f"{_show(value)} is neither a number from 1 to {most} nor a list of different seeds, such as [0, 1, 2].",
        )

    def names(self, key: str, known: Collection[str]) -> tuple[str, ...] | None:
        """Return one name or a list of names, all of them known; None if the key is missing."""
        value = self.values.get(key)
        if value is None:
            return None
        names = value if isinstance(value, list) else [value]
        for name in names:
            if name not in known:
                raise self.error(key, f"unknown name {_show(name)}; {nearest(str(name), known)}")
        return tuple(dict.fromkeys(names))

    def overrides(self, key: str) -> tuple[str, ...]:
        """Return a mapping of settings as `key=value` texts; a list becomes values separated by commas."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, dict):
            raise self.error(key, f"{_show(value)} is not a mapping, such as {{epochs: 10}}.")
        return tuple(f"{name}={self._setting(key, name, one)}" for name, one in value.items())

    def _setting(self, key: str, name: str, value: Any) -> str:
        text = setting_text(value)
        if text is None:
            raise self.error(f"{key}.{_show(name)}", f"{_show(value)} is not a value.")
        self._refuse_code(f"{key}.{_show(name)}", text)
        return text

    def section(self, key: str, value: Any, example: str = "") -> Section:
        """Return a mapping below a key; nothing is an empty one."""
        return read_section(self.at(key), {} if value is None else value, self.folder, example)

    def entries(self, key: str, example: str) -> dict[str, Any]:
        """Return a mapping of names to values, which has at least one."""
        value = self.values.get(key)
        if not isinstance(value, dict) or not value:
            given = "missing" if value is None else f"{_show(value)} is not a mapping of names"
            raise self.error(key, f"{given}; write {example}.")
        for name in value:
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise self.error(
                    key,
                    f"{_show(name)} is not a name, which has up to 64 letters, digits, dots, underscores and hyphens "
                    "and begins with a letter or digit.",
                )
        return value


def read_section(place: str, value: Any, folder: Path, example: str = "") -> Section:
    """Return a value as a section.

    Raises:
        UsageError: it is not a mapping.
    """
    if not isinstance(value, dict):
        more = f", such as {example}" if example else ""
        raise UsageError(f"{place}: {_show(value)} is not a mapping{more}.")
    return Section(place, value, folder)


def resolve_path(folder: Path, text: str) -> Path:
    """Return the path that a text means in a file of a folder; `hfds:NAME` is left unchanged."""
    if text.startswith(HUB_PREFIX):
        return Path(text)
    return Path(os.path.normpath(folder / Path(text).expanduser()))


def _is_seed(value: Any, high: int) -> bool:
    return type(value) is int and 0 <= value <= high


def _show(value: Any) -> str:
    return visible(shorten(str(value), 60))
