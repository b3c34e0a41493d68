"""What a suite or an ablation consists of: steps, each one process's work."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from simmim_bench.runs.status import RunStatus


class Step(Protocol):
    """One process's work: one run or several."""

    @property
    def log(self) -> Path:
        """The file that the process writes to."""

    @property
    def exclusive_resource(self) -> str | None:
        """A resource that only one running step may use; None for no such resource."""

    def statuses(self) -> list[tuple[RunStatus, str]]:
        """Return the status of each of the step's runs, and the reason where it is blocked."""

    def arguments(self) -> list[str]:
        """Return the arguments of `simmim-bench` that do the remaining work."""


def progress_file(step: Step) -> Path:
    """Return the file to which a step's process writes its progress."""
    return step.log.with_suffix(".progress.json")


def is_done(step: Step) -> bool:
    """Return whether all runs of a step are done."""
    return all(status == "done" for status, _ in step.statuses())


def runs_elsewhere(step: Step) -> bool:
    """Return whether another process works on a run of a step."""
    return any(status == "running elsewhere" for status, _ in step.statuses())
