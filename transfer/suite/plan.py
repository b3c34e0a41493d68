"""The plan of a suite: every task of its checkpoints, the status of each, and the expected cost of the rest.

Each step is a command of its own. A run lies where `simmim-bench transfer` without --out puts it, below the
suite's folder, so that single transfers and suites share their results. Planning writes nothing.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.display import format_duration
from simmim_bench.errors import DataError, UsageError
from simmim_bench.leaderboard.find import find_records
from simmim_bench.results.record import Record
from simmim_bench.runs.options import RunOptions
from simmim_bench.runs.status import RunStatus
from simmim_bench.tasks import OPTIONS, TaskVariant, variants
from transfer.launch import (
    ResolvedTransfer,
    TransferPlan,
    TransferRequest,
    plan_transfer,
    random_baseline,
    transfer_status,
)
from transfer.recipes import default_recipe, pretraining_recipe
from transfer.suite.options import SuiteOptions
from transfer.suite.selection import choose_tasks, read_overrides, read_recipes, read_seeds
from transfer.tasks import runner_of


@dataclass(frozen=True, kw_only=True)
class SuiteStep:
    """The work of one process: a task of a checkpoint, with one seed or several.

    Attributes:
        name: the task as records name it.
        transfer: the checkpoint without its weights, the recipe and the options.
        run_dirs: the run directory of each seed.
        log: file with the process's output.
        split_by_seed: whether every seed of the task is a step of its own.
    """

    name: str
    ckpt: str
    transfer: ResolvedTransfer
    seeds: tuple[int, ...]
    run_dirs: tuple[Path, ...]
    log: Path
    split_by_seed: bool

    def __str__(self) -> str:
        return f"{self.name} of {self.ckpt}{self.only_seed}"

    @property
    def only_seed(self) -> str:
        """The step's seed in parentheses, where every seed of the task is a step of its own."""
        return f" (seed {self.seeds[0]})" if self.split_by_seed else ""

    @property
    def exclusive_resource(self) -> str | None:
        """The checkpoint whose frozen features the step shares with others; one step computes them."""
        return self.ckpt if runner_of(self.transfer.recipe).shares_features else None

    def statuses(self) -> list[tuple[RunStatus, str]]:
        """Return the status of each seed's run, and why it is blocked where it is."""
        return [
            transfer_status(self.transfer, run_dir, seed)
            for run_dir, seed in zip(self.run_dirs, self.seeds, strict=True)
        ]

    def arguments(self) -> list[str]:
        """Return the arguments of `simmim-bench` for the seeds that are left, from first to last."""
        states = [state for state, _ in self.statuses()]
        left = [i for i, state in enumerate(states) if state != "done"] or [0, len(states) - 1]
        first, last = left[0], left[-1]
        out = ["--out", str(self.run_dirs[first])]
        if first < last:
            out = ["--out", str(self.run_dirs[first].parent), "--seeds", str(last - first + 1)]
        words = command_words(self.transfer.request, self.ckpt)
        return [*words, "--seed", str(self.seeds[first]), *out, "--resume"]

    def command(self) -> str:
        """Return the command that runs the step alone, ready to be pasted into a shell."""
        return shlex.join(["simmim-bench", *self.arguments()])


@dataclass(frozen=True)
class Estimate:
    """The expected cost of a step, and what the expectation rests on."""

    seconds: float | None
    source: str

    def __str__(self) -> str:
        return f"unknown ({self.source})" if self.seconds is None else format_duration(self.seconds)


@dataclass(frozen=True)
class PlannedStep:
    """A step with its status and expected cost."""

    step: SuiteStep
    seeds: tuple[RunStatus, ...]
    obstacle: str
    estimate: Estimate

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
            "recipe": step.transfer.recipe.name,
            "deviates": step.transfer.deviates,
            "seeds": {str(seed): state for seed, state in zip(step.seeds, self.seeds, strict=True)},
            "runs": [str(run_dir) for run_dir in step.run_dirs],
            "state": self.state,
            "obstacle": self.obstacle or None,
            "estimate": asdict(self.estimate),
            "command": step.command(),
        }


def list_steps(options: SuiteOptions) -> list[SuiteStep]:
    """List the steps of a suite, checkpoint by checkpoint.

    A task on frozen features runs all its seeds in one step; one that trains for hours has a step per seed.

    Raises:
        UsageError: an unknown task, recipe or override, one of a task that is not in the plan, or two
            checkpoints whose runs would share a folder.
        DataError: a data set does not exist, or a checkpoint cannot be read.
    """
    every = variants()
    names = choose_tasks(options)
    for layout in {every[name].task.data for name in names}:
        if not options.data_sets[layout].is_dir():
            raise DataError(
                f"--{layout} {options.data_sets[layout]} does not exist; pass the data set's folder."
            )
    seeds = read_seeds(options.seeds, names)
    recipes = read_recipes(options.recipes, names)
    overrides = read_overrides(options.overrides, names)
    steps, folders = list[SuiteStep](), dict[Path, str]()
    checkpoints = _read_checkpoints(options)
    for ckpt, checkpoint in checkpoints.items():
        for name in names:
            recipe = recipes.get(name)
            if recipe is None and ckpt not in options.ckpts:
                recipe = _baseline_recipe(every[name].task.name, checkpoint, checkpoints)
            request = _request(options, every[name], recipe, overrides.get(name, ()))
            numbers = range(options.seed, options.seed + seeds.get(name, 1))
            plan = plan_transfer(request, ckpt, numbers, options.out, checkpoint=checkpoint)
            folder = plan.run_dirs[0].parent
            if folders.setdefault(folder, ckpt) != ckpt:
                raise UsageError(
                    f"the runs of {folders[folder]} and {ckpt} would share the folder {folder}; run two suites "
                    "with different --out."
                )
            steps += _steps_of(name, plan, folder)
    return steps


def _read_checkpoints(options: SuiteOptions) -> dict[str, Checkpoint]:
    """Read each checkpoint once, and keep everything but its weights; baselines come first."""
    found = {ckpt: replace(read_checkpoint(ckpt), state=None) for ckpt in options.ckpts}
    if options.baseline != "random":
        return found
    baselines = dict.fromkeys(map(random_baseline, found.values()))
    return {ckpt: read_checkpoint(ckpt) for ckpt in baselines} | found


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
    options: SuiteOptions, variant: TaskVariant, recipe: str | None, overrides: Sequence[str]
) -> TransferRequest:
    """Build the request of one task variant from the suite's options."""
    task = variant.task
    shared = {name: value for name, value in options.task_options.items() if name in task.options}
    return TransferRequest(
        task=task.name,
        task_options={**shared, **variant.options},
        options=RunOptions(
            data=options.data_sets[task.data],
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


def command_words(request: TransferRequest, ckpt: str) -> list[str]:
    """Return the arguments of `simmim-bench` that repeat a request, without seeds and --out."""
    options = request.options
    words = ["transfer", request.task, "--ckpt", ckpt, "--data", str(options.data)]
    words += ["--recipe", options.recipe] if options.recipe else []
    words += [word for override in options.overrides for word in ("-o", override)]
    words += ["--deterministic"] if options.deterministic else []
    for name, value in request.task_options.items():
        words += OPTIONS[name].words(value)
    return words


def plan_steps(steps: Sequence[SuiteStep], out: Path, device: str | None) -> list[PlannedStep]:
    """Add the status and the expected cost to every step.

    Args:
        out: the folder whose records tell what similar runs have cost.
        device: name of the device that the runs will use; None where it is not known.
    """
    records = list(_records(out).values())
    planned = []
    for step in steps:
        statuses = step.statuses()
        states = tuple(state for state, _ in statuses)
        left = len(states) - states.count("done")
        planned.append(
            PlannedStep(
                step=step,
                seeds=states,
                obstacle=next((why for _, why in statuses if why), ""),
                estimate=_estimate(step, left, records, device),
            )
        )
    return planned


def _records(out: Path) -> dict[Path, Record]:
    """Read the records of the suite's earlier runs, if there are any."""
    return find_records([out]).records if any(out.glob("*/*/*/record.json")) else {}


def _estimate(
    step: SuiteStep, seeds: int, records: Sequence[Record], device: str | None
) -> Estimate:
    """Expect what the same recipe has cost for the same architecture, data and device."""
    if not seeds:
        return Estimate(0.0, "done")
    transfer = step.transfer
    similar = [
        record.wall_time_s
        for record in records
        if record.task == step.name
        and record.recipe["sha256"] == transfer.recipe.sha256()
        and record.checkpoint.get("arch") == transfer.checkpoint.spec.arch
        and record.data.get("root") == str(transfer.request.options.data)
        and device in (None, record.environment.get("device"))
    ]
    if similar:
        return Estimate(seeds * statistics.fmean(similar), f"mean of {len(similar)} similar runs")
    recipe = transfer.recipe
    # Every random crop of a frozen protocol is another pass of decoding and of the backbone.
    work = {key: getattr(recipe, key, 0) for key in ("epochs", "crops", "max_iters")}
    shown = ", ".join(f"{key} {value}" for key, value in work.items() if value) or "no training"
    return Estimate(None, f"no similar run yet; {shown}")


def check_obstacles(planned: Sequence[PlannedStep]) -> None:
    """Refuse to start while a run that was started differently is in a step's run directory.

    Raises:
        UsageError: naming every blocked step.
    """
    found = [f"{one.step}: {one.obstacle}" for one in planned if one.obstacle]
    if found:
        raise UsageError(
            f"{len(found)} of {len(planned)} steps are blocked; nothing was started. {' '.join(found)}"
        )
