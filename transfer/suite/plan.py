"""The plan of a suite: every task of some checkpoints, what is done of it, and what the rest will cost.

In: checkpoints, data sets, what single tasks are to do differently. Out: steps in the order in which they
are done, each a command of its own. A run lies where `simmim-bench transfer` without --out puts it, below
another root, so that single transfers and suites share their results. Nothing here writes.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.display import format_duration
from simmim_bench.errors import DataError, UsageError, nearest
from simmim_bench.leaderboard.find import find_records
from simmim_bench.results.record import Record, read_record
from simmim_bench.runs.options import RunOptions
from simmim_bench.runs.run_dir import describe_run
from simmim_bench.runs.status import RunStatus, run_status
from simmim_bench.tasks import GROUPS, KINDS
from transfer.frozen.recipes import FrozenRecipe
from transfer.launch import TransferRequest, plan, prepare
from transfer.recipes import TransferRecipe
from transfer.suite.options import SuiteOptions


@dataclass(frozen=True, kw_only=True)
class SuiteStep:
    """One process's work: a task of a checkpoint, with one seed or several.

    Attributes:
        name: the task as records call it.
        places, descriptions: of each seed, its run directory and what its recipe.json says.
        log: what the process says.
        words: the arguments of `simmim-bench`, but for seeds and --out.
    """

    name: str
    ckpt: str
    arch: str
    data: Path
    recipe: TransferRecipe
    deviates: dict[str, Any]
    seeds: tuple[int, ...]
    run_dirs: tuple[Path, ...]
    descriptions: tuple[dict[str, Any], ...]
    log: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} of {self.ckpt}{self.only_seed}"

    @property
    def only_seed(self) -> str:
        """Which seed it is, where a task's seeds are a step each."""
        return f" (seed {self.seeds[0]})" if self.log.stem != "suite" else ""

    @property
    def exclusive_resource(self) -> str | None:
        """The checkpoint whose frozen features it shares with other steps: one makes the pass."""
        return self.ckpt if isinstance(self.recipe, FrozenRecipe) else None

    def look(self) -> list[tuple[RunStatus, str]]:
        """Say of each seed how it stands, and why where it is in the way."""
        return [
            run_status(place, description, is_finished=is_recorded)
            for place, description in zip(self.run_dirs, self.descriptions, strict=True)
        ]

    def arguments(self) -> list[str]:
        """Give the arguments of `simmim-bench` for what is left: from the first seed to the last."""
        states = [state for state, _ in self.look()]
        left = [i for i, state in enumerate(states) if state != "done"] or [0, len(states) - 1]
        first, last = left[0], left[-1]
        out = ["--out", str(self.run_dirs[first])]
        if first < last:
            out = ["--out", str(self.run_dirs[first].parent), "--seeds", str(last - first + 1)]
        return [*self.words, "--seed", str(self.seeds[first]), *out, "--resume"]

    def command(self) -> str:
        """Give the command that does it alone, to be pasted into a shell."""
        return shlex.join(["simmim-bench", *self.arguments()])


def is_recorded(place: Path) -> bool:
    """Say whether a run has ended with a record.

    Raises:
        DataError: the record is damaged.
    """
    if not (place / "record.json").is_file():
        return False
    read_record(place / "record.json")
    return True


@dataclass(frozen=True)
class Estimate:
    """What a step will cost, and how that is known."""

    seconds: float | None
    source: str

    def __str__(self) -> str:
        return f"unknown ({self.source})" if self.seconds is None else format_duration(self.seconds)


@dataclass(frozen=True)
class Planned:
    """A step as it stands."""

    step: SuiteStep
    seeds: tuple[RunStatus, ...]
    obstacle: str
    estimate: Estimate

    @property
    def state(self) -> str:
        """How the step stands, in words."""
        for state in ("in the way", "running elsewhere"):
            if state in self.seeds:
                return state
        done = self.seeds.count("done")
        if done == len(self.seeds):
            return "done"
        if done:
            return f"{done} of {len(self.seeds)} seeds done"
        return "resumable" if "resumable" in self.seeds else "to do"

    def to_json(self) -> dict[str, Any]:
        """Give the plain form."""
        step = self.step
        return {
            "ckpt": step.ckpt,
            "task": step.name,
            "recipe": step.recipe.name,
            "deviates": step.deviates,
            "seeds": {str(seed): state for seed, state in zip(step.seeds, self.seeds, strict=True)},
            "runs": [str(place) for place in step.run_dirs],
            "state": self.state,
            "obstacle": self.obstacle or None,
            "estimate": asdict(self.estimate),
            "command": step.command(),
        }


def list_steps(options: SuiteOptions) -> list[SuiteStep]:
    """List the steps of a suite, checkpoint by checkpoint.

    A task on frozen features does all its seeds in one process; one that trains for hours has a step a seed.

    Raises:
        UsageError: an unknown task, recipe or override, one of a task that is not in the plan, or two CKPTs
            whose runs would lie in one place.
        DataError: a data set is not there, or a checkpoint cannot be read.
    """
    names = _chosen(options)
    for data in {KINDS[name].data for name in names}:
        if not options.data_sets[data].is_dir():
            raise DataError(f"--{data} {options.data_sets[data]} is not there; give its folder.")
    seeds = _by_task("--seeds", options.seeds, names, _count, everywhere=True)
    recipes = _by_task("--recipe", options.recipes, names, str)
    overrides = _overrides(options.overrides, names)
    archs = {ckpt: read_checkpoint(ckpt).spec.arch for ckpt in options.ckpts}
    ckpts = list(archs)
    if options.baseline == "random":
        ckpts = list(dict.fromkeys([*(f"random:{arch}" for arch in archs.values()), *ckpts]))
    steps, homes = [], dict[Path, str]()
    for ckpt in ckpts:
        checkpoint = read_checkpoint(ckpt)
        for name in names:
            kind = KINDS[name]
            request = TransferRequest(
                task=kind.task,
                fraction=kind.fraction,
                accumulate=options.accumulate if name == "coco" else None,
                grad_checkpointing=options.grad_checkpointing and name == "coco",
                label_maps=options.label_maps and name == "ade20k",
                options=RunOptions(
                    data=options.data_sets[kind.data],
                    recipe=recipes.get(name),
                    overrides=tuple(overrides.get(name, ())),
                    resume=True,
                ),
            )
            prepared = prepare(request, ckpt, checkpoint)
            numbers = range(options.seed, options.seed + seeds.get(name, 1))
            planned = plan(request, ckpt, numbers, options.out)
            folder = planned.run_dirs[0].parent
            if homes.setdefault(folder, ckpt) != ckpt:
                raise UsageError(
                    f"the runs of {homes[folder]} and {ckpt} would both lie in {folder}; give them in suites "
                    "with an --out each."
                )
            together = isinstance(prepared.recipe, FrozenRecipe)
            for group in [tuple(numbers)] if together else [(seed,) for seed in numbers]:
                alone = len(group) < len(numbers)
                steps.append(
                    SuiteStep(
                        name=name,
                        ckpt=ckpt,
                        arch=checkpoint.spec.arch,
                        data=request.options.data,
                        recipe=prepared.recipe,
                        deviates=prepared.deviates,
                        seeds=group,
                        run_dirs=tuple(folder / f"seed{seed}" for seed in group),
                        descriptions=tuple(
                            describe_run(
                                prepared.recipe,
                                prepared.deviates,
                                {**prepared.arguments, "seed": seed},
                            )
                            for seed in group
                        ),
                        log=folder / (f"suite-seed{group[0]}.log" if alone else "suite.log"),
                        words=tuple(_words(planned.request, ckpt)),
                    )
                )
    return steps


def _words(request: TransferRequest, ckpt: str) -> list[str]:
    options = request.options
    words = ["transfer", request.task, "--ckpt", ckpt, "--data", str(options.data)]
    words += ["--fraction", request.fraction] if request.fraction else []
    words += ["--recipe", options.recipe] if options.recipe else []
    words += [word for override in options.overrides for word in ("-o", override)]
    words += (
        ["--features", str(request.features)]
        if request.task in ("linear", "knn", "fewshot")
        else []
    )
    words += ["--accumulate", str(request.accumulate)] if request.accumulate else []
    words += ["--grad-checkpointing"] if request.grad_checkpointing else []
    return words + (["--label-maps"] if request.label_maps else [])


def _chosen(options: SuiteOptions) -> list[str]:
    """Give the tasks that are asked for and have their data, in order."""
    if not options.data_sets:
        raise UsageError("no data to learn from; give --imagenet, --coco or --ade20k.")
    known = [name for name, kind in KINDS.items() if kind.data in options.data_sets]
    request = [name.strip() for text in options.tasks for name in text.split(",") if name.strip()]
    if not request:
        return known
    names = {name for text in request for name in _find_tasks("--tasks", text)}
    for name in sorted(names - set(known)):
        raise UsageError(f"--tasks {name} needs the data of --{KINDS[name].data}; give its folder.")
    return [name for name in known if name in names]


def _find_tasks(option: str, text: str) -> tuple[str, ...]:
    """Give the tasks that a name means: itself, or both of `fewshot`."""
    if text not in KINDS and text not in GROUPS:
        raise UsageError(f"{option}: unknown task '{text}'; {nearest(text, [*KINDS, *GROUPS])}")
    return GROUPS.get(text, (text,))


def _in_plan(option: str, text: str, names: Sequence[str]) -> list[str]:
    found = [name for name in _find_tasks(option, text) if name in names]
    if not found:
        raise UsageError(f"{option}: {text} is not in the plan; it has {', '.join(names)}.")
    return found


def _by_task(
    option: str,
    texts: Iterable[str],
    names: Sequence[str],
    read: Callable[[str], Any],
    *,
    everywhere: bool = False,
) -> dict[str, Any]:
    """Read TASK=VALUE texts; a bare VALUE is every task's where that is allowed, whatever the order."""
    general, special = dict[str, Any](), dict[str, Any]()
    for text in texts:
        task, equals, value = text.partition("=")
        if equals:
            special |= dict.fromkeys(_in_plan(option, task, names), read(value))
        elif everywhere:
            general |= dict.fromkeys(names, read(text))
        else:
            raise UsageError(f"{option} {text} names no task; write {option} {names[0]}={text}.")
    return general | special


def _overrides(texts: Iterable[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Read TASK.KEY=VALUE texts."""
    found: dict[str, list[str]] = {}
    for text in texts:
        task, dot, assignment = text.partition(".")
        if not dot or "=" in task:
            raise UsageError(f"-o {text} names no task; write -o {names[0]}.{text}.")
        for name in _in_plan("-o", task, names):
            found.setdefault(name, []).append(assignment)
    return found


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise UsageError(f"--seeds {text} is not a number from 1 to 100.")
    return int(text)


def look_over(steps: Sequence[SuiteStep], out: Path, device: str | None) -> list[Planned]:
    """Say how every step stands and what it will cost.

    Args:
        out: the folder whose records say what such runs have cost.
        device: what the runs will be on; None where nobody knows.
    """
    records = list(_records(out).values())
    planned = []
    for step in steps:
        seen = step.look()
        states = tuple(state for state, _ in seen)
        left = len(states) - states.count("done")
        planned.append(
            Planned(
                step=step,
                seeds=states,
                obstacle=next((why for _, why in seen if why), ""),
                estimate=_estimate(step, left, records, device),
            )
        )
    return planned


def _records(out: Path) -> dict[Path, Record]:
    """Read the records of a suite's runs, were there any."""
    return find_records([out]).records if any(out.glob("*/*/*/record.json")) else {}


def _estimate(
    step: SuiteStep, seeds: int, records: Sequence[Record], device: str | None
) -> Estimate:
    """Expect what the same recipe has cost for the same arch, data and device."""
    if not seeds:
        return Estimate(0.0, "done")
    alike = [
        record.wall_time_s
        for record in records
        if record.task == step.name
        and record.recipe["sha256"] == step.recipe.sha256()
        and record.checkpoint.get("arch") == step.arch
        and record.data.get("root") == str(step.data)
        and device in (None, record.environment.get("device"))
    ]
    if alike:
        return Estimate(seeds * statistics.fmean(alike), f"mean of {len(alike)} runs like it")
    recipe = step.recipe
    work = {key: getattr(recipe, key) for key in ("epochs", "max_iters") if hasattr(recipe, key)}
    shown = ", ".join(f"{key} {value}" for key, value in work.items()) or "no training"
    return Estimate(None, f"no run like it yet; {shown}")


def check_obstacles(planned: Sequence[Planned]) -> None:
    """Refuse to start while a run that was started differently lies in a place.

    Raises:
        UsageError: with all of them.
    """
    found = [f"{one.step}: {one.obstacle}" for one in planned if one.obstacle]
    if found:
        raise UsageError(
            f"{len(found)} of {len(planned)} steps cannot start, so none did. {' '.join(found)}"
        )
