"""Read --config FILE: the settings of a recipe in YAML, or the `recipe.json` that a run has written.

Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_bench.api.keys import assignments
from simmim_bench.errors import UsageError
from simmim_bench.recipe import ABOUT


@dataclass(frozen=True)
class Config:
    """What a configuration file sets.

    Attributes:
        overrides: `key=value` texts, as -o takes them.
        recipe: name of the recipe; None where the file names none.
        arch: architecture of a pretraining whose recipe.json it is; else None.
        path: the file; None for no file.
    """

    overrides: tuple[str, ...] = ()
    recipe: str | None = None
    arch: str | None = None
    path: Path | None = None

    def check_arch(self, arch: str) -> None:
        """Check that the file is of an architecture.

        Raises:
            UsageError: it is the recipe.json of another one.
        """
        if self.arch not in (None, arch):
            raise UsageError(
                f"--config {self.path} is of --arch {self.arch}, not of {arch}; use the same."
            )


def read_config(path: Path) -> Config:
    """Read a configuration file.

    Keys with several values are lists; keys of a suite's tasks are `TASK: {KEY: VALUE}` or `TASK.KEY: VALUE`.

    Raises:
        DataError: the file cannot be read.
        UsageError: it is not a mapping of keys to values.
    """
    content = _parse(path)
    recorded = content.get("recipe")
    if isinstance(recorded, Mapping):  # the recipe.json of a run
        values = {str(key): value for key, value in recorded.items() if key not in ABOUT}
        arch = values.pop("arch", None)
        name = str(recorded.get("name", "")).partition("@")[0]
        return Config(tuple(assignments(values, f"--config {path}")), name or None, arch, path)
    values = {str(key): value for key, value in content.items() if key != "recipe"}
    return Config(
        tuple(assignments(values, f"--config {path}")),
        None if recorded is None else str(recorded),
        path=path,
    )


def _parse(path: Path) -> Mapping[str, Any]:
    from simmim_bench.untrusted.yaml_text import read_yaml

    content = read_yaml(path, "--config")  # JSON is YAML
    if not isinstance(content, Mapping):
        raise UsageError(
            f"--config {path} holds no settings; write `key: value` lines, such as `epochs: 10`."
        )
    return content
