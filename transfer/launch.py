"""Run transfers: from a request to finished runs, with one seed or several, and a baseline's runs.

A `TransferRequest` is a task with its options, for any checkpoint. `resolve_transfer` reads the checkpoint and
resolves the recipe: a `ResolvedTransfer`. `plan_transfer` adds seeds and run directories: a `TransferPlan`, whose
seeds `run_plan` runs one by one. The task's runner receives a `RunContext` and a `TransferJob`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.named import DataSet, check_data_sets
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext, best_device
from simmim_bench.errors import UsageError
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.overrides import override
from simmim_bench.recipe import Recipe, deviations, find_recipe
from simmim_bench.results.record import Record, read_record
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.default_folder import choose_folder
from simmim_bench.runs.options import RunOptions
from simmim_bench.runs.run_check import check_run_dir, describe_run
from simmim_bench.runs.run_dir import open_run
from simmim_bench.runs.status import RunStatus, run_status
from simmim_bench.tasks import OPTIONS, TASKS, check_options, given_options, record_name
from simmim_bench.training.precision import describe_slow_precision
from transfer.fewshot import check_draw, check_limit
from transfer.images import check_images, default_overrides
from transfer.job import TransferJob
from transfer.recipes import (
    RECIPES,
    DefaultRecipe,
    check_recipe_type,
    choose_recipe,
    default_recipe,
    pretraining_recipe,
)
from transfer.tasks import load_function, runner_of


@dataclass(frozen=True, kw_only=True)
class TransferRequest:
    """A task with its options, for any checkpoint.

    Attributes:
        task: key of `simmim_bench.tasks.TASKS`.
        options: the options that every run has.
        task_options: options of the task by parameter name; None, and a flag that is off, count as
            not given.

    Raises:
        UsageError: an option that the task does not take.
    """

    task: str
    options: RunOptions
    task_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        allowed = TASKS[self.task].options
        given = given_options(self.task_options)
        check_options(self.task, given)
        defaults = {name: OPTIONS[name].default for name in allowed if OPTIONS[name].default}
        object.__setattr__(self, "task_options", {**defaults, **given})

    @property
    def record_name(self) -> str:
        """The task as records name it, such as `fewshot-1%`."""
        return record_name(self.task, self.task_options)

    @property
    def folder(self) -> str:
        """The record's name, and the name of the data set if it has one, as the path of a folder."""
        task, name = self.record_name.replace("%", "pct"), self.options.data_name
        return task if name is None else f"{task}/{name}"

    def with_option(self, name: str, value: Any) -> TransferRequest:
        """Return the request with another value of a task option."""
        return replace(self, task_options={**self.task_options, name: value})


def requests_by_data_set(
    request: TransferRequest, data_sets: Sequence[DataSet]
) -> list[TransferRequest]:
    """Return a request for each data set. With --out, the runs on several are in `OUT/NAME`.

    Args:
        request: the request, without the defaults that planning adds; its data set is ignored.

    Raises:
        UsageError: the task or an option takes one data set, or a name is missing or not unique.
        DataError: the folder of a named data set does not exist.
    """
    task = TASKS[request.task]
    check_data_sets(data_sets, task=task.name, several=task.takes_several_data_sets)
    if len(data_sets) > 1 and "split" in request.task_options:
        raise UsageError(
            f"--split lists images of one data set, not of {len(data_sets)}; run {task.name} once for each --data."
        )
    out = request.options.out
    if out is not None and len(data_sets) > 1 and "features" in task.options:
        # The features of all sets lie where those of one set do: next to --out.
        request = request.with_option(
            "features", request.task_options.get("features", out.parent / "features")
        )
    return [
        replace(
            request,
            options=replace(
                request.options,
                data=one.root,
                data_name=one.name,
                out=out if out is None or len(data_sets) == 1 else out / str(one.name),
            ),
        )
        for one in data_sets
    ]


@dataclass(frozen=True, kw_only=True)
class ResolvedTransfer:
    """A transfer with its checkpoint read and its recipe resolved; only seed and run directory remain to be chosen.

    Attributes:
        recipe_reason: why the recipe was chosen, for the log.
        deviates: every difference from the named recipe.
        arguments: what else determines the result, besides recipe and seed; kept in `recipe.json`.
    """

    request: TransferRequest
    checkpoint: Checkpoint
    recipe: Recipe
    recipe_reason: str
    deviates: dict[str, Any]
    arguments: dict[str, Any]

    def run_description(self, seed: int) -> dict[str, Any]:
        """Return what `recipe.json` says of the run of a seed."""
        return describe_run(self.recipe, self.deviates, {**self.arguments, "seed": seed})


def resolve_transfer(
    request: TransferRequest, ckpt: str, checkpoint: Checkpoint | None = None
) -> ResolvedTransfer:
    """Read the checkpoint and resolve the recipe.

    Args:
        checkpoint: the checkpoint that CKPT names, where it has been read already.

    Raises:
        UsageError: an unknown recipe, a recipe of another task, or an override that it does not take.
        DataError: a checkpoint that cannot be read, or that takes other images than the task reads.
    """
    options, task = request.options, request.task
    found = None if options.recipe is None else find_recipe(RECIPES, options.recipe)
    checkpoint = checkpoint or read_checkpoint(ckpt)
    overrides = options.overrides
    if found is not None:
        named, reason = DefaultRecipe(found, "as requested")
    else:
        pretraining = pretraining_recipe(checkpoint.provenance)
        named, reason = choose_recipe(task, checkpoint.spec, pretraining)
        geometric = default_overrides(named, checkpoint.pixel_format)
        if geometric:
            reason += f", with {' '.join(geometric)} for {checkpoint.pixel_format}"
        overrides = (*geometric, *overrides)
    recipe = override(named, overrides)
    check_recipe_type(task, recipe)
    split = request.task_options.get("split")
    check_draw(task, recipe, split)
    check_limit(recipe, split)
    check_images(task, recipe, checkpoint)
    arguments: dict[str, Any] = {
        "task": task,
        "ckpt": ckpt,
        "sha256": checkpoint.sha256,
        "data": str(options.data),
    }
    if options.data_name is not None:
        arguments["data_name"] = options.data_name
    for name, value in request.task_options.items():
        if OPTIONS[name].affects_result:
            arguments[name] = str(value)
    return ResolvedTransfer(
        request=request,
        checkpoint=checkpoint,
        recipe=recipe,
        recipe_reason=reason,
        deviates=deviations(recipe, named),
        arguments=arguments,
    )


@dataclass(frozen=True, kw_only=True)
class TransferPlan:
    """The runs of one checkpoint: a run directory for each seed."""

    transfer: ResolvedTransfer
    ckpt: str
    seeds: Sequence[int]
    run_dirs: Sequence[Path]


def plan_transfer(
    request: TransferRequest,
    ckpt: str,
    seeds: Sequence[int],
    root: Path = Path("runs"),
    *,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
) -> TransferPlan:
    """Choose the run directories and the folder of the frozen features.

    With --out, one seed runs in it and several run below it, and the features are kept next to it. Without
    --out, both are below `root/CKPT`: the runs in `TASK`, or in `TASK/DATA` where that holds runs on other data.

    Args:
        root: the folder that holds a folder per checkpoint.
        checkpoint: the checkpoint that CKPT names, where it has been read already.
        resume: whether runs without --out must not start anew while there are some on other data.

    Raises:
        UsageError: the folder of the runs is itself a run, or see `choose_folder` and `resolve_transfer`.
        DataError: see `resolve_transfer`.
    """
    out = request.options.out
    # runs/vit_b is transferred below runs/vit_b's own name, not below runs/runs-vit_b.
    parent = root / slug(ckpt).removeprefix("runs-") if out is None else out.parent
    if "features" in TASKS[request.task].options and "features" not in request.task_options:
        request = request.with_option("features", parent / "features")
    if out is not None and len(seeds) == 1:
        run_dirs = [out]
    else:
        folder = out or _default_folder(parent / request.folder, request.options, resume=resume)
        if (folder / "recipe.json").is_file():
            raise UsageError(
                f"{folder} is itself a run and cannot hold the runs of several seeds; choose another --out."
            )
        run_dirs = [folder / f"seed{seed}" for seed in seeds]
    transfer = resolve_transfer(request, ckpt, checkpoint)
    return TransferPlan(transfer=transfer, ckpt=ckpt, seeds=seeds, run_dirs=run_dirs)


def _default_folder(plain: Path, options: RunOptions, *, resume: bool) -> Path:
    """Return the folder of the runs without --out: the plain one, or one below it where that is of other data."""
    data, name = options.data, options.data_name
    return choose_folder(plain, lambda word: plain / word, data, name, resume=resume)


def plan_baseline(request: TransferRequest, plan: TransferPlan, baseline: str) -> TransferPlan:
    """Plan the baseline's runs for a checkpoint's plan: same task, recipe, data and seeds.

    Without --out they lie where a transfer of the baseline itself would, so that several checkpoints share
    them; with --out they lie next to it.

    Args:
        request: the request that `plan` was made from; without the defaults that planning adds.
        baseline: a CKPT, or "random" for random weights of the checkpoint's architecture.

    Raises:
        UsageError, DataError: see `plan_transfer`.
    """
    checkpoint, options = plan.transfer.checkpoint, request.options
    spec, pretraining = checkpoint.spec, pretraining_recipe(checkpoint.provenance)
    other, other_checkpoint = baseline, None
    if baseline == "random":
        other = random_baseline(checkpoint)
        other_checkpoint = read_checkpoint(other).for_images_of(checkpoint)
    overrides = options.overrides
    if options.recipe is None:
        default = default_recipe(request.task, spec, pretraining)
        overrides = (*default_overrides(default, checkpoint.pixel_format), *overrides)
    out = options.out
    options = replace(
        options,
        recipe=options.recipe or default.name,
        overrides=overrides,
        out=None if out is None else out.with_name(f"{out.name}-from-{slug(other)}"),
        resume=True,
        overwrite=False,
    )
    return plan_transfer(
        replace(request, options=options), other, plan.seeds, checkpoint=other_checkpoint
    )


def random_baseline(checkpoint: Checkpoint) -> str:
    """Return the CKPT of random weights of a checkpoint's architecture.

    Raises:
        UsageError: no name stands for its network.
    """
    spec = checkpoint.spec
    ckpt = f"random:{spec.arch}"
    if isinstance(spec, ExternalSpec):
        known = read_checkpoint(ckpt).spec if spec.family == "timm" else None
        if not isinstance(known, ExternalSpec) or known.arguments != spec.arguments:
            whose = (
                "a function of yours builds" if known is None else "has other arguments than timm's"
            )
            raise UsageError(
                f"--baseline random has no random weights of {checkpoint.name}, whose network {whose}; remove it, or "
                "pass the CKPT of a baseline."
            )
    return ckpt


def slug(ckpt: str) -> str:
    """Convert a CKPT to a folder's name."""
    return ckpt.strip("/").replace(":", "-").replace("/", "-")


def check_run_dirs(plan: TransferPlan) -> None:
    """Check, before any work starts, that every planned run can use its directory.

    Raises:
        UsageError: a directory that holds something else, or a run that was started differently.
        DataError: the description of an earlier run cannot be read.
    """
    options = plan.transfer.request.options
    for run_dir, seed in zip(plan.run_dirs, plan.seeds, strict=True):
        check_run_dir(
            run_dir,
            plan.transfer.run_description(seed),
            resume=options.resume,
            overwrite=options.overwrite,
        )


def is_recorded(run_dir: Path) -> bool:
    """Return whether a run has ended with a record.

    Raises:
        DataError: the record is damaged.
    """
    path = run_dir / "record.json"
    if not path.is_file():
        return False
    read_record(path)
    return True


def transfer_status(transfer: ResolvedTransfer, run_dir: Path, seed: int) -> tuple[RunStatus, str]:
    """Return the status of a seed's run directory, and why it is blocked where it is."""
    return run_status(run_dir, transfer.run_description(seed), is_finished=is_recorded)


def run_transfer(
    transfer: ResolvedTransfer,
    run_dir: Path,
    *,
    seed: int,
    display: Display,
    dist: DistContext | None = None,
) -> Record | None:
    """Run a transfer in a directory; with `resume`, a finished run is left as it is.

    Returns:
        The record, on rank 0.

    Raises:
        MissingFrameworkError: Detectron2 or MMSegmentation is not installed.
        DataError: images, annotations or weights that cannot be used.
        DivergedError: the loss is not finite.
    """
    options = transfer.request.options
    with open_run(
        run_dir,
        recipe=transfer.recipe,
        deviates=transfer.deviates,
        arguments={**transfer.arguments, "seed": seed},
        display=display,
        resume=options.resume,
        overwrite=options.overwrite,
        dist=dist,
        loggers=options.loggers,
    ) as run:
        if options.resume and (run_dir / "record.json").is_file():
            run.log(f"{run_dir} is finished")
            record = read_record(run_dir / "record.json")
            if warning := describe_kept_title(record, options.data_title):
                run.log(f"{transfer.request.task}: warning: {warning}")
            return record
        run.log(
            f"{transfer.request.task}: recipe={transfer.recipe.name} ({transfer.recipe_reason})"
        )
        context = RunContext(
            run=run,
            seed=seed,
            resume=options.resume,
            dist=dist or DistContext(device=best_device()),
        )
        precision = getattr(transfer.recipe, "precision", "auto")
        for warning in describe_slow_precision(precision, context.dist.device):
            run.log(f"{transfer.request.task}: warning: {warning}")
        if transfer.checkpoint.warning:
            run.log(f"{transfer.request.task}: warning: {transfer.checkpoint.warning}")
        job = TransferJob(
            task=transfer.request.task,
            checkpoint=transfer.checkpoint,
            data=options.data,
            data_name=options.data_name,
            data_title=options.data_title,
            recipe=transfer.recipe,
            deviates=transfer.deviates,
            options=transfer.request.task_options,
        )
        scored: Record | None = load_function(runner_of(transfer.recipe).run)(context, job)
        return scored


def describe_kept_title(record: Record, title: str | None) -> str | None:
    """Return a warning where a finished run keeps another name of its data than the one of `--data-name`."""
    kept = record.data.get("title")
    if title is None or title == kept:
        return None
    known = "no name of its data" if kept is None else f"the name {kept}"
    return (
        f"the record keeps {known}, not --data-name {title}, since the run is finished; run it again with "
        "--overwrite to change the name"
    )


def run_plan(
    plan: TransferPlan, *, display: Display, dist: DistContext | None = None
) -> list[Record]:
    """Run a transfer with every seed, each in its run directory.

    Returns:
        The records, on rank 0.
    """
    records = []
    description = f"{plan.transfer.request.folder}, seeds"
    with display.task(description, len(plan.seeds)) as task:
        for run_dir, seed in zip(plan.run_dirs, plan.seeds, strict=True):
            records.append(
                run_transfer(plan.transfer, run_dir, seed=seed, display=display, dist=dist)
            )
            task.advance()
    return [record for record in records if record is not None]
