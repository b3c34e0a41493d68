"""What a suite is asked to do, as the command line or a caller gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.named import DataSet, check_unique, is_data, missing_folder
from simmim_bench.errors import DataError, UsageError
from simmim_bench.tasks import TaskVariant, variants


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """The checkpoints, data sets and changed settings of a suite.

    Attributes:
        ckpts: checkpoints, list files of them, or "list:methods" for all public ones; see `transfer.suite.rows`.
        only: patterns that select some of them; see `simmim_bench.methods.select_ckpts`.
        data_sets: folders by data layout; tasks whose data set is missing are left out.
        data_titles: what tables call the data sets, by data layout; by default the names of the folders.
        named: named data sets, for the tasks that take several.
        baseline: "random" for a row of random weights of each architecture.
        tasks: task names, or comma-separated lists of them; empty for all.
        seeds: N for all tasks, TASK=N for one.
        seed: the first seed.
        recipes: TASK=NAME.
        overrides: TASK.KEY=VALUE; KEY=VALUE of `selection.SHARED_KEYS` for all tasks that have the key.
        task_options: values of the options that `simmim_bench.tasks.OPTIONS` offers to suites; each
            goes to the tasks that take it.
        deterministic: every step uses deterministic kernels alone.
        loggers: names of further loggers of every step; see `simmim_bench.runs.loggers`.
        overwrite: replace the runs of the suite's steps, finished or not.
        expected: what is known of checkpoints, by CKPT, that do not exist yet; without weights.
    """

    ckpts: tuple[str, ...]
    data_sets: dict[str, Path]
    data_titles: Mapping[str, str] = field(default_factory=dict)
    named: tuple[DataSet, ...] = ()
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
    loggers: tuple[str, ...] = ()
    overwrite: bool = False
    expected: Mapping[str, Checkpoint] = field(default_factory=dict)

    def data_sets_of(self, variant: TaskVariant) -> list[DataSet]:
        """Return the data sets that a task runs on, the unnamed one first."""
        folder = self.data_sets.get(variant.task.data)
        unnamed = [] if folder is None else [DataSet(folder)]
        return [*unnamed, *(self.named if variant.task.takes_several_data_sets else ())]


def check_folders(options: SuiteOptions, names: Sequence[str]) -> None:
    """Check that the folders of the data sets of some tasks exist.

    Args:
        names: the tasks' record names.

    Raises:
        UsageError: a data set of --data has no name, or two have the same.
        DataError: a folder does not exist.
    """
    every = variants()
    for layout in {every[name].task.data for name in names} & set(options.data_sets):
        if not is_data(options.data_sets[layout]):
            raise DataError(
                f"--{layout} {options.data_sets[layout]} does not exist; pass the data set's folder."
            )
    for data_set in options.named:
        if data_set.name is None:
            raise UsageError(
                f"--data {data_set.root} has no name, which a suite needs; write --data NAME={data_set.root}."
            )
    check_unique([data_set.name for data_set in options.named])
    for fault in filter(None, map(missing_folder, options.named)):
        raise DataError(fault)
