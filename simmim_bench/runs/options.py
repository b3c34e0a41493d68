"""The options that every run has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options that every run has."""

    data: Path
    recipe: str | None = None
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    seed: int = 0
    overrides: tuple[str, ...] = ()
    as_json: bool = False
    quiet: bool = False
