"""Shorten absolute paths in what is shared: they mean nothing on another machine and may contain user names."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

# `/DIR`, `~/DIR` or `file:///DIR`, alone or after `KEY=` or `--KEY=`.
PATH = re.compile(r"((?:--?)?[\w.-]+=)?(?:file://[^/]*)?(/.*|~[^/]*/.*)", re.DOTALL)
HOME = re.compile(r"(/home|/Users)/[^/\s'\":;,]+")  # of Linux and macOS, anywhere in a text


def shorten_paths(value: Any) -> Any:
    """Shorten every absolute path in a JSON value to its last two components, such as `data/coco`.

    A string counts as a path if it starts with `/`, `~/` or `file://`, alone or after `KEY=` or `--KEY=`. Home folders
    are removed from paths, so that no user's name is left, and replaced by `~` in other texts.
    """
    if isinstance(value, dict):
        return {HOME.sub("~", str(key)): shorten_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shorten_paths(inner) for inner in value]
    if not isinstance(value, str):
        return value
    found = PATH.fullmatch(value)
    if found is None:
        return HOME.sub("~", value)
    parts = PurePosixPath(found[2]).parts[1:]
    for name in ("home", "Users"):
        if name in parts:
            parts = parts[parts.index(name) + 2 :]
    return (found[1] or "") + ("/".join(parts[-2:]) or ".")
