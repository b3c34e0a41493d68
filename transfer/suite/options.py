"""What a suite is asked to do, as the command line or a caller gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """The checkpoints, data sets and changed settings of a suite.

    Attributes:
        ckpts: checkpoints, list files of them, or "list:methods" for all public ones; see `transfer.suite.rows`.
        only: patterns that select some of them; see `simmim_bench.methods.select_ckpts`.
        data_sets: folders by data layout; tasks whose data set is missing are left out.
        baseline: "random" for a row of random weights of each architecture.
        tasks: task names, or comma-separated lists of them; empty for all.
        seeds: N for all tasks, TASK=N for one.
        seed: the first seed.
        recipes: TASK=NAME.
        overrides: TASK.KEY=VALUE.
        task_options: values of the options that `simmim_bench.tasks.OPTIONS` offers to suites; each
            goes to the tasks that take it.
        deterministic: every step uses deterministic kernels alone.
    """

    ckpts: tuple[str, ...]
    data_sets: dict[str, Path]
    out: Path = Path("runs")
    only: tuple[str, ...] = ()
    baseline: str | None = None
    tasks: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    seed: int = 0
    recipes: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    task_options: Mapping[str, Any] = field(default_factory=dict)
    deterministic: bool = False
