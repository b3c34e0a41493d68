"""Run every transfer task on some checkpoints: `simmim_bench.suite` and `simmim-bench suite`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.api.arguments import check_ckpt, check_folder
from simmim_bench.api.display import open_display
from simmim_bench.api.keys import Overrides, assignments, check_count, override_texts
from simmim_bench.api.options import (
    AnyPath,
    check_seed,
    names_of,
    read_ckpt,
    read_path,
    read_task_options,
)
from simmim_bench.data.named import name_data_set, read_titles
from simmim_bench.imports import without_collection
from simmim_bench.jobs.options import JobOptions, SlurmOptions
from simmim_bench.library import as_library
from simmim_bench.recipe import Precision
from simmim_bench.runs.loggers import check_loggers
from simmim_bench.tasks import LAYOUTS, given_options

if TYPE_CHECKING:
    from transfer.suite.options import SuiteOptions
    from transfer.suite.plan import SuitePlan
    from transfer.suite.run import SuiteResult

BOARD = "leaderboard"  # folder of the tables, below that of the runs


@as_library()
def suite(
    ckpt: AnyPath | Iterable[AnyPath],
    *,
    imagenet: AnyPath | None = None,
    coco: AnyPath | None = None,
    ade20k: AnyPath | None = None,
    data: Mapping[str, AnyPath] | None = None,
    data_name: Mapping[str, str] | None = None,
    out: AnyPath = "runs",
    tasks: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
    baseline: str | None = None,
    seeds: int | Mapping[str, int] = 1,
    seed: int = 0,
    recipes: Mapping[str, str] | None = None,
    overrides: Overrides | None = None,
    precision: Precision | None = None,
    limit: int | None = None,
    val_fraction: float | None = None,
    workers: int | None = None,
    gpus_per_task: int = 1,
    exclusive: bool = False,
    slurm: SlurmOptions | None = None,
    overwrite: bool = False,
    deterministic: bool = False,
    log: str | Iterable[str] = (),
    quiet: bool = False,
    **task_options: Any,
) -> SuiteResult:
    """Run every transfer task on some checkpoints, and build the leaderboard of their records.

    Each step is a `transfer` in a separate process. Completed steps are skipped and interrupted ones are resumed, so
    that the same call continues a suite. A failed step does not stop the others.

    Args:
        ckpt: a checkpoint as of `transfer`, several, a list of checkpoints FILE.txt, or "list:methods".
        imagenet: data of imagenet, linear, attentive, knn and fewshot; tasks without data are left out.
        coco: data of coco.
        ade20k: data of ade20k.
        data: further named data sets for the tasks that take several, by name.
        data_name: what tables call the data sets, such as {"imagenet": "CIFAR-10"}, where a folder's name says nothing.
        out: folder of all runs, OUT/CKPT/TASK/seedN, and of OUT/leaderboard.
        tasks: the tasks to run, such as ["linear", "knn"]; by default all. "fewshot" means 1% and 10%.
        only: patterns of checkpoints of a list, such as "mae*".
        baseline: "random" for a row of random weights of each architecture.
        seeds: number of seeds of every task, or by task: {"linear": 3}.
        seed: the first seed.
        recipes: named recipes by task; by default those for the checkpoint.
        overrides: changed settings by task, such as {"linear": {"epochs": 30}} or {"linear.epochs": 30}.
        precision: as of `transfer`, of every task.
        limit: as of `transfer`, of every task that has the key.
        val_fraction: as of `transfer`, of every task that has the key.
        workers: steps at a time; by default as many as fit in memory.
        gpus_per_task: GPUs, and therefore processes, per step.
        exclusive: every step has its GPUs to itself.
        slurm: `simmim_bench.jobs.options.SlurmOptions`, to run each step as a SLURM job.
        overwrite: replace the runs of these checkpoints, tasks and seeds, finished or not.
        deterministic: use deterministic kernels alone, which are slower.
        log: "wandb", "mlflow" or "trackio", or several, which also receive the figures of every step.
        quiet: no log and no progress.
        task_options: options of tasks, as of `transfer`: `compile=`, `accumulate=`, `grad_checkpointing=`,
            `label_maps=`.

    Returns:
        The result: `result.records` by path, `result.failed` steps with their error and log, and `result.leaderboard`,
        the folder of the tables. `result.check()` raises an error where a step has failed.

    Raises:
        UsageError: an unknown name, or a step whose run directory holds something else; nothing was started.
        DataError: a checkpoint or a data set cannot be read.

    Example:
        >>> result = sb.suite("runs/pocket", imagenet="pocket/imagenet", tasks=["linear", "knn"], baseline="random")
        >>> result.check()
    """
    check_seed(seed)
    for name, value in {"gpus_per_task": gpus_per_task, "workers": workers}.items():
        check_count(name, value, 1)
    for value in seeds.values() if isinstance(seeds, Mapping) else (seeds,):
        check_count("seeds", value, 1)
    check_count("limit", limit, 1)
    names = [ckpt] if isinstance(ckpt, str | PathLike) else list(ckpt)
    by_task = tuple(assignments(seeds, "seeds")) if isinstance(seeds, Mapping) else (str(seeds),)
    folders = {"imagenet": imagenet, "coco": coco, "ade20k": ade20k}
    jobs = JobOptions(
        workers=workers, gpus_per_task=gpus_per_task, exclusive=exclusive, slurm=slurm
    )
    display = open_display(quiet)
    options, plan = plan_suite_of(
        jobs,
        data_sets={name: read_path(path) for name, path in folders.items() if path is not None},
        task_options=read_task_options(task_options, "suite", in_suite=True),
        log=display.log,
        ckpts=tuple(map(read_ckpt, names)),
        named=tuple(name_data_set(name, read_path(root)) for name, root in (data or {}).items()),
        data_titles=read_titles(tuple(assignments(data_name or {}, "data_name")), [*LAYOUTS]),
        out=read_path(out),
        only=names_of(only),
        baseline=baseline,
        tasks=names_of(tasks),
        seeds=by_task,
        seed=seed,
        recipes=tuple(assignments(recipes or {}, "recipes")),
        overrides=override_texts(
            overrides, precision=precision, limit=limit, val_fraction=val_fraction
        ),
        overwrite=overwrite,
        deterministic=deterministic,
        loggers=check_loggers(names_of(log)),
    )
    from transfer.suite.report import plan_text
    from transfer.suite.run import run_suite

    display.log(plan_text(plan))
    return run_suite(plan, jobs, options.out, options.out / BOARD, display)


def plan_suite_of(
    job_options: JobOptions,
    *,
    data_sets: Mapping[str, Path],
    task_options: Mapping[str, Any],
    log: Callable[[str], None],
    dry_run: bool = False,
    **options: Any,
) -> tuple[SuiteOptions, SuitePlan]:
    """Check the options of a suite, and list its steps with their status and expected cost.

    Args:
        data_sets: folders by layout.
        log: receives the messages of reading the checkpoints.
        dry_run: download nothing, and forecast the differences that the plan can show.
        options: further fields of `SuiteOptions`.

    Raises:
        UsageError, DataError: see `suite`.
    """
    for name, folder in data_sets.items():
        check_folder(folder, f"--{name}")
    for ckpt in options["ckpts"]:
        check_ckpt(ckpt)
    with without_collection():
        from transfer.suite.options import SuiteOptions
        from transfer.suite.run import plan_suite

    chosen = SuiteOptions(
        data_sets=dict(data_sets), task_options=given_options(task_options), **options
    )
    plan = plan_suite(chosen, job_options, download=not dry_run, power=dry_run, log=log)
    return chosen, plan
