"""From what `simmim-bench transfer` is asked to finished runs: one, several seeds, a baseline's beside them.

In: a task, a CKPT and the command's options. Out: run directories with their records.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simmim_bench.checkpoint import read_checkpoint
from simmim_bench.display import Display
from simmim_bench.errors import UsageError
from simmim_bench.options import RunOptions
from simmim_bench.recipe import deviations, find_recipe, override
from simmim_bench.record import Record, read_record
from simmim_bench.rundir import open_run
from simmim_bench.team import Team
from transfer.recipes import RECIPES, default_recipe
from transfer.run import run_transfer

COMPARED = ("imagenet", "linear", "knn", "fewshot")  # tasks whose score is a top-1 over images


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a transfer is asked beyond its CKPT.

    Attributes:
        fraction, split: the training images of `fewshot`; see `run_transfer`.
        features: folder of kept features.
        accumulate, grad_checkpointing: how `coco` saves memory; see `run_coco`.
        label_maps: whether `ade20k` keeps the maps that it predicts.
    """

    task: str
    options: RunOptions
    fraction: str = "1%"
    split: Path | None = None
    features: Path | None = None
    accumulate: int | None = None
    grad_checkpointing: bool = False
    label_maps: bool = False

    @property
    def name(self) -> str:
        """The task with its fraction, as a folder's name."""
        return (
            f"{self.task}-{self.fraction.rstrip('%')}pct" if self.task == "fewshot" else self.task
        )


def start(
    asked: Asked, ckpt: str, out: Path, *, seed: int, display: Display, team: Team | None = None
) -> Record | None:
    """Run a transfer in a directory; with `resume`, one that is finished is left as it is.

    Returns:
        The record, on the main process.
    """
    options = asked.options
    found = None if options.recipe is None else find_recipe(RECIPES, options.recipe)
    checkpoint = read_checkpoint(ckpt)
    named = found or default_recipe(asked.task, checkpoint.spec)
    recipe = override(named, options.overrides)
    deviates = deviations(recipe, named)
    arguments: dict[str, Any] = {
        "task": asked.task,
        "ckpt": ckpt,
        "sha256": checkpoint.sha256,
        "data": str(options.data),
        "seed": seed,
        **({"fraction": asked.fraction} if asked.task == "fewshot" else {}),
        **({"split": str(asked.split)} if asked.split is not None else {}),
    }
    with open_run(
        out,
        recipe=recipe,
        deviates=deviates,
        arguments=arguments,
        display=display,
        resume=options.resume,
        overwrite=options.overwrite,
        team=team,
    ) as run:
        if options.resume and (out / "record.json").is_file():
            run.log(f"{out} is finished")
            return read_record(out / "record.json")
        return run_transfer(
            asked.task,
            checkpoint=checkpoint,
            data=options.data,
            run=run,
            recipe=recipe,
            deviates=deviates,
            seed=seed,
            resume=options.resume,
            fraction=float(asked.fraction.rstrip("%")) / 100,
            split=asked.split,
            features=asked.features,
            team=team,
            accumulate=asked.accumulate,
            grad_checkpointing=asked.grad_checkpointing,
            label_maps=asked.label_maps,
        )


def start_seeds(
    asked: Asked,
    ckpt: str,
    out: Path,
    *,
    seeds: Sequence[int],
    display: Display,
    team: Team | None = None,
) -> list[Record]:
    """Run a transfer with every seed; several each in a folder of their own below `out`.

    Returns:
        The records, on the main process.
    """
    records = []
    with display.task(f"{asked.name}, seeds", len(seeds)) as task:
        for place, seed in zip(places(out, seeds), seeds, strict=True):
            records.append(start(asked, ckpt, place, seed=seed, display=display, team=team))
            task.advance()
    return [record for record in records if record is not None]


def places(out: Path, seeds: Sequence[int]) -> list[Path]:
    """Say where the runs of some seeds lie."""
    return [out] if len(seeds) == 1 else [out / f"seed{seed}" for seed in seeds]


def baseline_of(asked: Asked, ckpt: str, baseline: str) -> tuple[Asked, str]:
    """Say what a baseline starts from, and give it the recipe of the checkpoint it is compared with.

    Raises:
        UsageError: the task gives no top-1.
    """
    if asked.task not in COMPARED:
        raise UsageError(
            f"--baseline compares top1, which {asked.task} does not give; transfer random:ARCH to it as well "
            "and read both rows of the leaderboard."
        )
    spec = read_checkpoint(ckpt).spec
    recipe = asked.options.recipe or default_recipe(asked.task, spec).name
    options = replace(asked.options, recipe=recipe, resume=True, overwrite=False)
    return replace(asked, options=options), (
        f"random:{spec.arch}" if baseline == "random" else baseline
    )


def over_seeds(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Give every metric's mean and sample standard deviation over the records, in percent."""
    return {
        metric: {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values),
        }
        for metric in records[0].metrics
        for values in ([record.metrics[metric] for record in records],)
    }
