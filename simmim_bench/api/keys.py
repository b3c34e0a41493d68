"""Changes of a recipe as the Python interface and the command line take them, converted to `key=value` texts.

Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from simmim_bench.errors import UsageError

# Short options, such as --batch-size or batch_size=, and the keys of recipes that they set.
SHORT_KEYS = {
    "epochs": "epochs",
    "batch_size": "batch_size",
    "lr": "base_lr",
    "img_size": "img_size",
    "workers": "num_workers",
    "precision": "precision",
    "limit": "limit",
    "val_fraction": "val_fraction",
}
LEAST = {"epochs": 1, "batch_size": 1, "workers": 0, "limit": 1}
Overrides = Mapping[str, Any] | Iterable[str]


def override_texts(overrides: Overrides | None, **short: Any) -> tuple[str, ...]:
    """Return overrides and short options as `key=value` texts.

    Args:
        overrides: values by key, such as `{"weight_decay": 0.05}`, or `key=value` texts. The keys of a suite are
            `{"linear.epochs": 30}` or `{"linear": {"epochs": 30}}`.
        short: values of short options by their name in `SHORT_KEYS`; None for those that are not given.

    Raises:
        UsageError: a value that no recipe takes or that is too small, or two values for one key.
    """
    if isinstance(overrides, str):
        raise UsageError(
            f"overrides={overrides!r} is a text; pass a mapping, such as {{'epochs': 10}}."
        )
    if isinstance(overrides, Mapping):
        overrides = assignments(overrides, "overrides")
    given = tuple(overrides or ())
    for name, value in short.items():
        if value is not None:
            if name in LEAST:
                check_count(name, value, LEAST[name])
            ((_, _, text),) = (one.partition("=") for one in assignments({name: value}, "options"))
            given = add_override(given, SHORT_KEYS[name], text, f"{name}={text}")
    return given


def assignments(values: Mapping[Any, Any], where: str, prefix: str = "") -> Iterator[str]:
    """Yield settings as `key=value` texts; those of a nested mapping as `name.key=value`.

    Args:
        where: where the settings are from, for messages.

    Raises:
        UsageError: a value that is no number, text or boolean, or list of them.
    """
    from simmim_bench.untrusted.yaml_text import setting_text

    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            yield from assignments(value, where, f"{key}.")
        else:
            text = setting_text(list(value) if isinstance(value, tuple) else value)
            if text is None:
                raise UsageError(
                    f"{where}: {prefix}{key} is not a number, a text, a boolean or a list of them."
                )
            yield f"{prefix}{key}={text}"


def add_override(given: tuple[str, ...], key: str, value: str, shown: str) -> tuple[str, ...]:
    """Add an option's `key=value` text, unless the key has the same value already.

    Args:
        shown: the option as the user wrote it, for messages.

    Raises:
        UsageError: the key has another value.
    """
    for text in given:
        name, _, other = text.partition("=")
        if name != key:
            continue
        if not _equal(value, other):
            raise UsageError(f"{shown} and -o {text} contradict each other; use one of them.")
        return given
    return (*given, f"{key}={value}")


def check_count(name: str, value: int | None, least: int, most: int | None = None) -> None:
    """Check an argument that is an integer, or None.

    Raises:
        UsageError: it is out of range, or of another type.
    """
    if value is None:
        return
    if type(value) is not int or value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise UsageError(f"{name}={value!r} is not an int of {limits}.")


def _equal(one: str, other: str) -> bool:
    """Return whether two texts are the same numbers or the same words."""
    parts = [text.strip("()[] ").replace("x", ",").split(",") for text in (one, other)]
    try:
        values = [[float(part) for part in text] for text in parts]
    except ValueError:
        return one == other
    most = max(map(len, values))
    first, second = (v * most if len(v) == 1 else v for v in values)
    return first == second
