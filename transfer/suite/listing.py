"""The steps of a suite: every task of its checkpoints.

Each step is a command of its own. A run lies where `simmim-bench transfer` without --out puts it, below the
suite's folder, so that single transfers and suites share their results. Listing the steps writes nothing
but the weights that it downloads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.named import DataSet
from simmim_bench.errors import DataError, UsageError
from simmim_bench.runs.options import RunOptions
from simmim_bench.tasks import TaskVariant, variants
from transfer.launch import TransferPlan, TransferRequest, plan_transfer, random_baseline
from transfer.recipes import default_recipe, pretraining_recipe
from transfer.suite.options import SuiteOptions, check_folders
from transfer.suite.rows import Row, UnreadRow, list_rows, read_rows
from transfer.suite.selection import (
    choose_tasks,
    describe_without,
    read_overrides,
    read_recipes,
    read_seeds,
)
from transfer.suite.step import SuiteStep
from transfer.tasks import runner_of


def list_steps(
    options: SuiteOptions, *, download: bool, log: Callable[[str], None]
) -> tuple[list[SuiteStep], list[UnreadRow]]:
    """List the steps of a suite, checkpoint by checkpoint, and the rows that have none.

    A task on frozen features runs all its seeds in one step; one that trains for hours has a step per seed.

    Args:
        download: whether to download missing weights.

    Raises:
        UsageError: an unknown task, recipe or override, one of a task that is not in the plan, or two
            checkpoints whose runs would share a folder.
        DataError: a data set does not exist, or a checkpoint that --ckpt names cannot be read.
    """
    every = variants()
    names = choose_tasks(options)
    check_folders(options, names)
    seeds = read_seeds(options.seeds, names)
    recipes = read_recipes(options.recipes, names)
    overrides = read_overrides(options.overrides, names)
    for line in describe_without(options.overrides, names):
        log(line)
    steps, folders = list[SuiteStep](), dict[Path, str]()
    rows = list_rows(options)
    places = {row.ckpt: row.place for row in rows}
    found, unread = read_rows(rows, download=download, log=log, expected=options.expected)
    baselines = dict[str, Row]()
    if options.baseline == "random":
        for ckpt, checkpoint in found.items():
            try:
                baseline = random_baseline(checkpoint)
                check_baseline_images(ckpt, checkpoint)
            except UsageError as error:
                if not places[ckpt]:
                    raise
                unread.append(UnreadRow(f"the baseline of {ckpt}", places[ckpt], error))
                continue
            baselines.setdefault(baseline, Row(baseline, places[ckpt]))
    random, refused = read_rows(list(baselines.values()), download=download, log=log)
    unread += refused
    checkpoints = random | found
    work = [(name, one) for name in names for one in options.data_sets_of(every[name])]
    for ckpt, checkpoint in checkpoints.items():
        for name, data_set in work:
            recipe = recipes.get(name)
            if recipe is None and ckpt not in found:
                recipe = baseline_recipe(every[name].task.name, checkpoint, checkpoints)
            request = _request(options, every[name], data_set, recipe, overrides.get(name, ()))
            numbers = range(options.seed, options.seed + seeds.get(name, 1))
            try:
                plan = plan_transfer(request, ckpt, numbers, options.out, checkpoint=checkpoint)
            except (DataError, UsageError) as error:  # such as a backbone that the task cannot use
                if not (place := places.get(ckpt)):
                    raise
                unread.append(UnreadRow(ckpt, place, error, name))
                continue
            folder = plan.run_dirs[0].parent
            if folders.setdefault(folder, ckpt) != ckpt:
                raise UsageError(
                    f"the runs of {folders[folder]} and {ckpt} would share the folder {folder}; run two suites "
                    "with different --out."
                )
            provisional = ckpt in options.expected
            steps += (replace(one, provisional=provisional) for one in steps_of(name, plan, folder))
    return steps, unread


def check_baseline_images(ckpt: str, checkpoint: Checkpoint) -> None:
    """Check that `random:ARCH` reads the images of a checkpoint.

    Raises:
        UsageError: it reads RGB of 8 bits, and the checkpoint does not.
    """
    if not checkpoint.pixel_format.is_rgb:
        raise UsageError(
            f"--baseline random reads RGB images of 8 bits, but {ckpt} takes {checkpoint.pixel_format}; use "
            "`simmim-bench transfer TASK --baseline random`, which reads them as the checkpoint does."
        )


def baseline_recipe(
    task: str, baseline: Checkpoint, checkpoints: Mapping[str, Checkpoint]
) -> str | None:
    """Return the recipe of an added row of random weights: that of the first checkpoint of its architecture.

    Returns:
        Its name; None where it is the default of the baseline itself.
    """
    first = next(
        checkpoint
        for checkpoint in checkpoints.values()
        if checkpoint.spec.arch == baseline.spec.arch and checkpoint is not baseline
    )
    recipe = default_recipe(task, first.spec, pretraining_recipe(first.provenance))
    return None if recipe == default_recipe(task, baseline.spec) else recipe.name


def _request(
    options: SuiteOptions,
    variant: TaskVariant,
    data_set: DataSet,
    recipe: str | None,
    overrides: Sequence[str],
) -> TransferRequest:
    """Build the request of one task variant on one data set from the suite's options."""
    task = variant.task
    shared = {name: value for name, value in options.task_options.items() if name in task.options}
    return TransferRequest(
        task=task.name,
        task_options={**shared, **variant.options},
        options=RunOptions(
            data=data_set.root,
            data_name=data_set.name,
            data_title=None if data_set.name else options.data_titles.get(task.data),
            recipe=recipe,
            overrides=tuple(overrides),
            resume=True,
            deterministic=options.deterministic,
            loggers=options.loggers,
        ),
    )


def steps_of(name: str, plan: TransferPlan, folder: Path) -> Iterator[SuiteStep]:
    """Yield the steps of one task of one checkpoint."""
    numbers = tuple(plan.seeds)
    together = runner_of(plan.transfer.recipe).shares_features
    for group in [numbers] if together else [(seed,) for seed in numbers]:
        split_by_seed = len(group) < len(numbers)
        yield SuiteStep(
            name=name,
            ckpt=plan.ckpt,
            transfer=plan.transfer,
            seeds=group,
            run_dirs=tuple(folder / f"seed{seed}" for seed in group),
            log=folder / (f"suite-seed{group[0]}.log" if split_by_seed else "suite.log"),
            split_by_seed=split_by_seed,
        )
