"""Whether a run can use a directory: its description, `recipe.json`, is compared with that of an earlier run there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import escape
from simmim_bench.recipe import ABOUT, MACHINE, Recipe
from simmim_bench.runs.lock import LOCK
from simmim_bench.untrusted.json_text import read_json


def describe_run(
    recipe: Recipe, deviates: dict[str, Any], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of a run's `recipe.json`, in JSON's types."""
    description = {
        "recipe": recipe.to_json(),
        "recipe_sha256": recipe.sha256(),
        "deviates": deviates,
        "arguments": arguments,
    }
    plain: dict[str, Any] = json.loads(json.dumps(description))
    return plain


def check_run_dir(
    path: Path, description: dict[str, Any], *, resume: bool, overwrite: bool
) -> None:
    """Check that a run can use a directory.

    Args:
        description: content of the run's `recipe.json`, as `describe_run` returns it.

    Raises:
        UsageError: the directory is not empty, or a resumed run was started with another recipe or
            arguments.
        DataError: the description of the run to resume cannot be read.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other; use one of them.")
    if escape(str(path)) != str(path):  # safetensors opens no such file
        raise UsageError(f"--out {path} is not a name in UTF-8; choose another --out.")
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out {path} is a file; choose a directory.")
    if not is_occupied(path):
        return
    if resume:
        before = read_json(path / "recipe.json", "run description", finite=False)
        if not isinstance(before, dict):
            raise DataError(
                f"run description {path / 'recipe.json'} is damaged; start anew with another --out."
            )
        changed = _changes(before, description)
        if changed:
            raise UsageError(
                f"{path} was started with another {' and '.join(changed)}; resume with the same command, "
                "or start anew with another --out."
            )
    elif not overwrite:
        raise UsageError(f"{path} is not empty; {_advice(path, description)}")
    elif not (path / "recipe.json").is_file():
        raise UsageError(
            f"{path} is not a run directory (no recipe.json), so --overwrite does not replace it; choose another --out."
        )


def _advice(path: Path, description: dict[str, Any]) -> str:
    """Return what can be done about an occupied directory: only what would not be refused in turn."""
    if not (path / "recipe.json").is_file():
        return "it is not a run directory (no recipe.json). Choose another --out."
    changed = None
    with suppress(DataError):  # a damaged description, which --resume does not accept
        before = read_json(path / "recipe.json", "run description", finite=False)
        changed = _changes(before, description) if isinstance(before, dict) else None
    if changed == []:
        return "continue with --resume, replace it with --overwrite, or choose another --out."
    what = f"it was started with another {' and '.join(changed)}. " if changed else ""
    return f"{what}Replace it with --overwrite, or choose another --out."


def is_occupied(path: Path) -> bool:
    """Return whether a directory holds more than a process that was killed at its start leaves."""
    if not path.is_dir():
        return False
    return any(p.name != LOCK and not p.match(".recipe.json.*.tmp") for p in path.iterdir())


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name what shapes a run and has changed, with both values."""
    changed = []
    if before.get("recipe_sha256") != now["recipe_sha256"]:
        fields = _differences(before, now, "recipe", leave_out=(*ABOUT, *MACHINE))
        changed.append(f"recipe ({', '.join(fields) or 'of another version'})")
    elif before.get("deviates") != now["deviates"]:
        changed.append(f"named recipe (deviates {before.get('deviates')}, now {now['deviates']})")
    return changed + _differences(before, now, "arguments")


def _differences(
    before: dict[str, Any], now: dict[str, Any], section: str, leave_out: Sequence[str] = ()
) -> list[str]:
    old, new = before.get(section), now[section]
    old = old if isinstance(old, dict) else {}
    return [
        f"{key} {old.get(key)}, now {new.get(key)}"
        for key in dict.fromkeys([*old, *new])
        if key not in leave_out and old.get(key) != new.get(key)
    ]
