"""From what `simmim-bench transfer` is asked to finished runs: one, several seeds, a baseline's beside them.

In: a task, a CKPT and the command's options. Out: run directories with their records.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.errors import UsageError
from simmim_bench.recipe import deviations, find_recipe, override
from simmim_bench.results.record import Record, read_record
from simmim_bench.runs.options import RunOptions
from simmim_bench.runs.run_dir import check_run_dir, describe_run, open_run
from transfer.recipes import RECIPES, TransferRecipe, check_kind, default_recipe
from transfer.run import run_transfer

COMPARED = ("imagenet", "linear", "knn", "fewshot")  # tasks whose score is a top-1 over images


@dataclass(frozen=True, kw_only=True)
class TransferRequest:
    """What a transfer is asked beyond its CKPT.

    Attributes:
        fraction, split: the training images of `fewshot`, of which it takes 1 % by default; see
            `run_transfer`.
        features: folder of kept features.
        accumulate, grad_checkpointing: how `coco` saves memory; see `run_coco`.
        label_maps: whether `ade20k` keeps the maps that it predicts.

    Raises:
        UsageError: a fraction or a split for a task that sees all training images, or another option that
            is for another task.
    """

    task: str
    options: RunOptions
    fraction: str | None = None
    split: Path | None = None
    features: Path | None = None
    accumulate: int | None = None
    grad_checkpointing: bool = False
    label_maps: bool = False

    def __post_init__(self) -> None:
        given = {"--fraction": self.fraction, "--split": self.split}
        for option, value in given.items():
            if value is not None and self.task != "fewshot":
                raise UsageError(
                    f"{option} {value} is for fewshot; {self.task} learns from all training images."
                )
        of_one_task = {
            "--accumulate": ("coco", self.accumulate is not None),
            "--grad-checkpointing": ("coco", self.grad_checkpointing),
            "--label-maps": ("ade20k", self.label_maps),
        }
        for option, (task, present) in of_one_task.items():
            if present and self.task != task:
                raise UsageError(f"{option} is for {task}, not for {self.task}; leave it away.")

    @property
    def percent(self) -> float:
        """How much of the training images `fewshot` sees."""
        return float((self.fraction or "1%").rstrip("%"))

    @property
    def name(self) -> str:
        """The task with its fraction, as a folder's name."""
        return f"{self.task}-{self.percent:g}pct" if self.task == "fewshot" else self.task


@dataclass(frozen=True, kw_only=True)
class ResolvedTransfer:
    """A transfer that is ready to run, but for its seed and its folder."""

    checkpoint: Checkpoint
    recipe: TransferRecipe
    deviates: dict[str, Any]
    arguments: dict[str, Any]


def prepare(
    request: TransferRequest, ckpt: str, checkpoint: Checkpoint | None = None
) -> ResolvedTransfer:
    """Read the checkpoint and resolve the recipe.

    Args:
        checkpoint: what CKPT names, where it has been read.

    Raises:
        UsageError: an unknown recipe, one of another task, or an override that it does not take.
        DataError: a checkpoint that cannot be read.
    """
    options = request.options
    found = None if options.recipe is None else find_recipe(RECIPES, options.recipe)
    checkpoint = checkpoint or read_checkpoint(ckpt)
    named = found or default_recipe(request.task, checkpoint.spec)
    recipe = override(named, options.overrides)
    check_kind(request.task, recipe)
    arguments: dict[str, Any] = {
        "task": request.task,
        "ckpt": ckpt,
        "sha256": checkpoint.sha256,
        "data": str(options.data),
        **({"fraction": f"{request.percent:g}%"} if request.task == "fewshot" else {}),
        **({"split": str(request.split)} if request.split is not None else {}),
    }
    return ResolvedTransfer(
        checkpoint=checkpoint,
        recipe=recipe,
        deviates=deviations(recipe, named),
        arguments=arguments,
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of one CKPT, a place for each seed."""

    request: TransferRequest
    ckpt: str
    seeds: Sequence[int]
    run_dirs: Sequence[Path]


def plan(
    request: TransferRequest, ckpt: str, seeds: Sequence[int], root: Path = Path("runs")
) -> Plan:
    """Say where runs and kept features lie.

    That is in --out for one seed and below it for several, with the features beside it; without --out in
    the folder of this CKPT and task in any case.

    Args:
        root: where the folders of CKPTs lie.

    Raises:
        UsageError: the folder of the runs is a run itself.
    """
    out = request.options.out
    home = root / slug(ckpt).removeprefix("runs-") if out is None else out.parent
    request = replace(request, features=request.features or home / "features")
    if out is not None and len(seeds) == 1:
        return Plan(request=request, ckpt=ckpt, seeds=seeds, run_dirs=[out])
    folder = out or home / request.name
    if (folder / "recipe.json").is_file():
        raise UsageError(
            f"{folder} is a run itself and takes no runs of several seeds; choose another --out."
        )
    run_dirs = [folder / f"seed{seed}" for seed in seeds]
    return Plan(request=request, ckpt=ckpt, seeds=seeds, run_dirs=run_dirs)


def plan_baseline(request: TransferRequest, ckpt: str, baseline: str, seeds: Sequence[int]) -> Plan:
    """Plan the runs that those of a checkpoint are compared with, under the same recipe.

    They lie where a transfer of the baseline itself would, so that several checkpoints share them, or
    beside --out.

    Args:
        baseline: a CKPT, or "random" for random weights of the checkpoint's arch.

    Raises:
        UsageError: the task gives no top-1, or the folder of the runs is a run itself.
    """
    if request.task not in COMPARED:
        raise UsageError(
            f"--baseline compares top1, which {request.task} does not give; transfer random:ARCH to it as well "
            "and read both rows of the leaderboard."
        )
    spec, options = read_checkpoint(ckpt).spec, request.options
    other = f"random:{spec.arch}" if baseline == "random" else baseline
    out = options.out
    options = replace(
        options,
        recipe=options.recipe or default_recipe(request.task, spec).name,
        out=None if out is None else out.with_name(f"{out.name}-from-{slug(other)}"),
        resume=True,
        overwrite=False,
    )
    return plan(replace(request, options=options), other, seeds)


def slug(ckpt: str) -> str:
    """Make a folder's name of a CKPT."""
    return ckpt.strip("/").replace(":", "-").replace("/", "-")


def check_run_dirs(planned: Plan) -> None:
    """Refuse, before any work starts, a place that a planned run could not go into.

    Raises:
        UsageError: a folder that holds something else, or a run that was started differently.
        DataError: a checkpoint or the description of a run cannot be read.
    """
    options, prepared = planned.request.options, prepare(planned.request, planned.ckpt)
    for place, seed in zip(planned.run_dirs, planned.seeds, strict=True):
        arguments = {**prepared.arguments, "seed": seed}
        check_run_dir(
            place,
            describe_run(prepared.recipe, prepared.deviates, arguments),
            resume=options.resume,
            overwrite=options.overwrite,
        )


def start(
    request: TransferRequest,
    ckpt: str,
    out: Path,
    *,
    seed: int,
    display: Display,
    dist: DistContext | None = None,
) -> Record | None:
    """Run a transfer in a directory; with `resume`, one that is finished is left as it is.

    Returns:
        The record, on the main process.
    """
    options, prepared = request.options, prepare(request, ckpt)
    with open_run(
        out,
        recipe=prepared.recipe,
        deviates=prepared.deviates,
        arguments={**prepared.arguments, "seed": seed},
        display=display,
        resume=options.resume,
        overwrite=options.overwrite,
        dist=dist,
    ) as run:
        if options.resume and (out / "record.json").is_file():
            run.log(f"{out} is finished")
            return read_record(out / "record.json")
        return run_transfer(
            request.task,
            checkpoint=prepared.checkpoint,
            data=options.data,
            run=run,
            recipe=prepared.recipe,
            deviates=prepared.deviates,
            seed=seed,
            resume=options.resume,
            fraction=request.percent / 100,
            split=request.split,
            features=request.features,
            dist=dist,
            accumulate=request.accumulate,
            grad_checkpointing=request.grad_checkpointing,
            label_maps=request.label_maps,
        )


def start_seeds(
    planned: Plan, *, display: Display, dist: DistContext | None = None
) -> list[Record]:
    """Run a transfer with every seed, each in its place.

    Returns:
        The records, on the main process.
    """
    request, ckpt, records = planned.request, planned.ckpt, []
    with display.task(f"{request.name}, seeds", len(planned.seeds)) as task:
        for place, seed in zip(planned.run_dirs, planned.seeds, strict=True):
            records.append(start(request, ckpt, place, seed=seed, display=display, dist=dist))
            task.advance()
    return [record for record in records if record is not None]


def over_seeds(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Give the mean and sample standard deviation, in percent, of every metric that all records have."""
    return {
        metric: {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values),
        }
        for metric in records[0].metrics
        if all(metric in record.metrics for record in records)
        for values in ([record.metrics[metric] for record in records],)
    }
