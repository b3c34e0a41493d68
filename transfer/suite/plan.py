"""The plan of a suite: every task of its checkpoints, the status of each, the expected cost of the rest, and power.

Each step is a command of its own. A run lies where `simmim-bench transfer` without --out puts it, below the
suite's folder, so that single transfers and suites share their results. Planning writes nothing
but the weights that it downloads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.named import DataSet
from simmim_bench.errors import DataError, UsageError
from simmim_bench.jobs.forecast import Forecast as StepForecast
from simmim_bench.jobs.forecast import demo_share
from simmim_bench.leaderboard.at_hand import read_at_hand
from simmim_bench.leaderboard.forecast import Forecast
from simmim_bench.runs.options import RunOptions
from simmim_bench.runs.status import RunStatus
from simmim_bench.tasks import TaskVariant, variants
from transfer.launch import TransferPlan, TransferRequest, plan_transfer, random_baseline
from transfer.recipes import default_recipe, pretraining_recipe
from transfer.suite.cost import Estimate, estimate_cost
from transfer.suite.memory import needs_of
from transfer.suite.options import SuiteOptions, check_folders
from transfer.suite.power import forecast_steps, protocol_of
from transfer.suite.rows import Row, UnreadRow, list_rows, read_rows
from transfer.suite.selection import choose_tasks, read_overrides, read_recipes, read_seeds
from transfer.suite.step import SuiteStep
from transfer.tasks import runner_of


@dataclass(frozen=True)
class PlannedStep:
    """A step with its status and expected cost.

    Attributes:
        forecast: what the runner expects of the step.
        power: for each column of its task, the difference that the plan can show; empty where it is not asked for.
    """

    step: SuiteStep
    seeds: tuple[RunStatus, ...]
    obstacle: str
    estimate: Estimate
    forecast: StepForecast
    power: tuple[Forecast, ...] = ()

    @property
    def state(self) -> str:
        """The status of the whole step, in words."""
        for state in ("blocked", "running elsewhere"):
            if state in self.seeds:
                return state
        done = self.seeds.count("done")
        if done == len(self.seeds):
            return "done"
        if done:
            return f"{done} of {len(self.seeds)} seeds done"
        return "resumable" if "resumable" in self.seeds else "to do"

    def to_json(self) -> dict[str, Any]:
        """Return the plain form."""
        step = self.step
        return {
            "ckpt": step.ckpt,
            "task": step.name,
            "data_name": step.transfer.request.options.data_name,
            "recipe": step.transfer.recipe.name,
            "deviates": step.transfer.deviates,
            "seeds": {str(seed): state for seed, state in zip(step.seeds, self.seeds, strict=True)},
            "runs": [str(run_dir) for run_dir in step.run_dirs],
            "state": self.state,
            "obstacle": self.obstacle or None,
            "estimate": asdict(self.estimate),
            "memory": asdict(self.forecast.need),
            "power": [forecast.to_json() for forecast in self.power],
            "command": step.command(),
        }


@dataclass(frozen=True)
class SuitePlan:
    """The steps of a suite, and the rows that have none because their checkpoints are not read.

    Attributes:
        places: how many steps run at a time, in words; "" for one, or under SLURM.
        device: name of the device that the steps use; None where it is not known.
    """

    steps: tuple[PlannedStep, ...]
    unread: tuple[UnreadRow, ...]
    places: str = ""
    device: str | None = None

    @property
    def exit_code(self) -> int:
        """The exit code for the first row that is blocked; 0 where none is."""
        return next((row.error.exit_code for row in self.unread if row.error is not None), 0)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the plain form: the steps, then the rows without."""
        return [one.to_json() for one in self.steps] + [row.to_json() for row in self.unread]


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
    steps, folders = list[SuiteStep](), dict[Path, str]()
    rows = list_rows(options)
    places = {row.ckpt: row.place for row in rows}
    found, unread = read_rows(rows, download=download, log=log)
    baselines = dict[str, Row]()
    if options.baseline == "random":
        for ckpt, checkpoint in found.items():
            try:
                baseline = random_baseline(checkpoint)
                _check_images(ckpt, checkpoint)
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
                recipe = _baseline_recipe(every[name].task.name, checkpoint, checkpoints)
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
            steps += _steps_of(name, plan, folder)
    return steps, unread


def _check_images(ckpt: str, checkpoint: Checkpoint) -> None:
    """Check that `random:ARCH` reads the images of a checkpoint.

    Raises:
        UsageError: it reads RGB of 8 bits, and the checkpoint does not.
    """
    if not checkpoint.pixel_format.is_rgb:
        raise UsageError(
            f"--baseline random reads RGB images of 8 bits, but {ckpt} takes {checkpoint.pixel_format}; use "
            "`simmim-bench transfer TASK --baseline random`, which reads them as the checkpoint does."
        )


def _baseline_recipe(
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
            recipe=recipe,
            overrides=tuple(overrides),
            resume=True,
            deterministic=options.deterministic,
        ),
    )


def _steps_of(name: str, plan: TransferPlan, folder: Path) -> Iterator[SuiteStep]:
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


def plan_steps(
    steps: Sequence[SuiteStep],
    out: Path,
    device: str | None,
    *,
    power: bool,
    log: Callable[[str], None],
    processes: int = 1,
    estimate_memory: bool = False,
) -> list[PlannedStep]:
    """Add the status, the expected cost and the power to every step.

    Args:
        out: the folder whose records tell what similar runs have cost and how their scores vary.
        device: name of the device that the runs will use; None where it is not known.
        power: whether to forecast the differences that the plan can show.
        log: called with a warning for every record that cannot be used.
        processes: of a step.
        estimate_memory: whether to estimate the memory of steps that no similar run tells.
    """

    def warn(text: str) -> None:
        if power:
            log(f"suite: warning: {text}")

    at_hand = read_at_hand(out, warn)
    records = list(at_hand.records.values())
    forecasts = forecast_steps(steps, at_hand) if power else {}
    planned = []
    needs = needs_of(steps, records, device, processes=processes, estimate=estimate_memory)
    for step, need in zip(steps, needs, strict=True):
        statuses = step.statuses()
        states = tuple(state for state, _ in statuses)
        left = len(states) - states.count("done")
        cost = estimate_cost(step, left, records, device)
        planned.append(
            PlannedStep(
                step=step,
                seeds=states,
                obstacle=next((why for _, why in statuses if why), ""),
                estimate=cost,
                forecast=StepForecast(
                    kind=step.kind,
                    seconds=cost.seconds,
                    share=demo_share(step.kind, left),
                    need=need,
                ),
                power=forecasts.get(protocol_of(step), ()),
            )
        )
    return planned


def check_obstacles(plan: SuitePlan) -> None:
    """Refuse to start while a run that was started differently is in a step's run directory, or without any step.

    Raises:
        UsageError: naming every blocked step.
        BenchError: every row is blocked.
    """
    found = [f"{one.step}: {one.obstacle}" for one in plan.steps if one.obstacle]
    if found:
        raise UsageError(
            f"{len(found)} of {len(plan.steps)} steps are blocked; nothing was started. {' '.join(found)}"
        )
    errors = [row.error for row in plan.unread if row.error is not None]
    if errors and not plan.steps and len(errors) == len(plan.unread):
        raise type(errors[0])(  # with its exit code
            f"all {len(errors)} rows are blocked; nothing was started. The first: {plan.unread[0].obstacle}"
        )
