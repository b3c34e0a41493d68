"""Convert and check the arguments of the Python interface. Nothing here loads torch.

The command line's parser does the same for its options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias

from simmim_bench.api.keys import SHORT_KEYS, Overrides, check_count, override_texts
from simmim_bench.data.named import DataSet, name_data_set, read_data_set
from simmim_bench.errors import UsageError, nearest
from simmim_bench.runs.loggers import check_loggers
from simmim_bench.runs.options import RunOptions
from simmim_bench.shift_sets import SHIFT_TASK
from simmim_bench.tasks import OPTIONS, SWITCH, TASKS, TaskOption

AnyPath: TypeAlias = "str | PathLike[str]"
MAX_SEED = 2**32 - 1


def read_ckpt(ckpt: AnyPath) -> str:
    """Return a CKPT as the command line takes it; `~` at its start is the home folder."""
    text = _path_text(ckpt, "ckpt")
    return str(Path(text).expanduser()) if text.startswith("~") else text


def read_path(path: AnyPath) -> Path:
    """Return a path; `~` at its start is the home folder."""
    return Path(_path_text(path, "the path")).expanduser()


def _path_text(path: AnyPath, what: str) -> str:
    """Return a path as text.

    Raises:
        UsageError: it is neither a str nor a path.
    """
    if not isinstance(path, str | PathLike):
        raise UsageError(f"{what} {path!r} is not a path; pass a str or a pathlib.Path.")
    return fspath(path)


def read_optional_path(path: AnyPath | None) -> Path | None:
    """Return a path, or None."""
    return None if path is None else read_path(path)


def read_data(data: AnyPath | Mapping[str, AnyPath]) -> tuple[DataSet, ...]:
    """Return the data sets of a `data` argument: a folder, `hfds:NAME`, `NAME=DIR`, or folders by name.

    Raises:
        UsageError: an invalid name, or no data set.
    """
    if isinstance(data, Mapping):
        if not data:
            raise UsageError("data={} names no data set; pass a folder, or folders by name.")
        return tuple(name_data_set(name, read_path(root)) for name, root in data.items())
    one = read_data_set(_path_text(data, "data"))
    return (DataSet(one.root.expanduser(), one.name),)


def read_run_options(
    data: DataSet,
    *,
    data_title: str | None = None,
    recipe: str | None = None,
    out: AnyPath | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    overrides: Overrides | None = None,
    deterministic: bool = False,
    log: str | Iterable[str] = (),
    quiet: bool = False,
    **short: Any,
) -> RunOptions:
    """Return the options of a run from keyword arguments.

    Args:
        data: the data set, or the first of several.
        data_title: what tables call it; None for the name of its folder.
        log: names of further loggers of the figures.
        short: values by their name in `SHORT_KEYS`; None where not given.

    Raises:
        UsageError: a value out of range, or two values for one key.
        MissingFrameworkError: the package of a logger is not installed.
    """
    check_seed(seed)
    return RunOptions(
        data=data.root,
        data_name=data.name,
        data_title=data_title,
        recipe=recipe,
        out=None if out is None else read_path(out),
        resume=resume,
        overwrite=overwrite,
        seed=seed,
        overrides=override_texts(overrides, **short),
        deterministic=deterministic,
        loggers=check_loggers(names_of(log)),
        quiet=quiet,
    )


def names_of(values: str | Iterable[str]) -> tuple[str, ...]:
    """Return one name or several as a tuple."""
    return (values,) if isinstance(values, str) else tuple(values)


def check_task(task: str, tasks: Iterable[str]) -> None:
    """Check the name of a task.

    Raises:
        UsageError: it is not one of the tasks.
    """
    known = tuple(tasks)
    if task not in known:
        raise UsageError(f"unknown task {task!r}; {nearest(str(task), known)}")


def check_seed(seed: int) -> None:
    """Check a seed.

    Raises:
        UsageError: it is not an integer from 0 to 2^32 - 1.
    """
    check_count("seed", seed, 0, MAX_SEED)


def read_task_options(
    given: Mapping[str, Any], function: str, *, in_suite: bool = False
) -> dict[str, Any]:
    """Return the values of task options, such as `fraction="1%"`, as the command line passes them.

    Args:
        given: keyword arguments that the function does not name.
        function: name of the function, for messages.
        in_suite: whether only options that a suite offers are known.

    Raises:
        UsageError: an unknown name, or a value that the option does not take.
    """
    known = {name: o for name, o in OPTIONS.items() if o.in_suite or not in_suite}
    values = {}
    for name, value in given.items():
        if name not in known:
            names = (*known, *SHORT_KEYS, "overrides", "recipe", "seed", "out")
            raise UsageError(f"{function} has no option {name}; {nearest(name, names)}")
        values[name] = None if value is None else _option_value(known[name], value)
    return values


def _option_value(option: TaskOption, value: Any) -> Any:
    """Return the value of a task option in the type of its kind."""
    if option.kind in ("flag", "switch"):
        if not isinstance(value, bool):
            raise UsageError(f"{option.name}={value!r} is not a boolean; use True or False.")
        return value if option.kind == "flag" else SWITCH[value]
    if option.kind == "count":
        check_count(option.name, value, 1)
        return value
    if option.kind == "path":
        return read_path(value)
    if value not in option.kind:
        raise UsageError(
            f"{option.name}={value!r} is not one of the allowed values: {', '.join(option.kind)}."
        )
    return value


def transfer_tasks() -> tuple[str, ...]:
    """Return the tasks of `transfer`: those of the registry, and `shift`."""
    return (*TASKS, SHIFT_TASK)
