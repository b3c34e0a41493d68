"""The options that every command with a run directory has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options that every run has.

    Attributes:
        data: the data set's folder, or `hfds:NAME`.
        data_name: the name of the data set in records, as of `--data NAME=DIR`; None without one.
        data_title: what tables call the data set, where the name of its folder says nothing; None without one.
        recipe: name of the recipe; None for the default.
        out: run directory; None for the default below `runs/`.
        resume, overwrite: what to do where the run directory is not empty.
        overrides: `key=value` texts that change the recipe.
        as_json: print results as JSON.
        quiet: no log and no progress on stderr.
        deterministic: use deterministic kernels alone.
        loggers: names of further loggers of the figures; see `runs.loggers`.
    """

    data: Path
    recipe: str | None = None
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    seed: int = 0
    overrides: tuple[str, ...] = ()
    as_json: bool = False
    quiet: bool = False
    deterministic: bool = False
    data_name: str | None = None
    data_title: str | None = None
    loggers: tuple[str, ...] = ()
