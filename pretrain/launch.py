"""Run `simmim-bench pretrain`: resolve its recipe, open its run directory, and report the run's status."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.recipes import PretrainRecipe
from pretrain.train import TrainOptions, pretrain
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext, best_device
from simmim_bench.recipe import deviations
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_check import describe_run
from simmim_bench.runs.run_dir import open_run
from simmim_bench.runs.status import RunStatus, run_status
from simmim_bench.untrusted.json_text import read_json


def run_pretraining(
    *,
    recipe: PretrainRecipe,
    named: PretrainRecipe,
    data: Path,
    out: Path,
    seed: int,
    display: Display,
    dist: DistContext | None = None,
    init_from: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    options: TrainOptions | None = None,
    loggers: Sequence[str] = (),
) -> Path:
    """Pretrain in a run directory; with `resume`, a finished run is left unchanged.

    Args:
        named: the recipe before its overrides.
        dist: the processes of the run; None for a single one.
        init_from: CKPT of the initial weights; None to initialise them from the seed.
        loggers: names of further loggers of the figures; see `simmim_bench.runs.loggers`.

    Returns:
        The checkpoint directory.
    """
    deviates = deviations(recipe, named)
    dist = dist or DistContext(device=best_device())
    with open_run(
        out,
        recipe=recipe,
        deviates=deviates,
        arguments=_arguments(data, seed, init_from),
        display=display,
        resume=resume,
        overwrite=overwrite,
        dist=dist,
        loggers=loggers,
    ) as run:
        return pretrain(
            RunContext(run=run, seed=seed, resume=resume, dist=dist),
            recipe=recipe,
            deviates=deviates,
            data=data,
            init_from=init_from,
            options=options,
        )


def pretraining_status(
    *,
    run_dir: Path,
    recipe: PretrainRecipe,
    named: PretrainRecipe,
    data: Path,
    seed: int,
    init_from: str | None = None,
) -> tuple[RunStatus, str]:
    """Return the status of a run directory, and the reason where it is blocked."""
    description = describe_run(recipe, deviations(recipe, named), _arguments(data, seed, init_from))
    return run_status(run_dir, description, is_finished=_is_finished)


def _arguments(data: Path, seed: int, init_from: str | None) -> dict[str, Any]:
    return {"data": str(data), "seed": seed, "init_from": init_from}


def _is_finished(run_dir: Path) -> bool:
    meta = run_dir / "checkpoints" / "last" / "meta.json"
    return (
        meta.is_file()
        and "wall_time_s" in read_json(meta, "checkpoint file", finite=False)["provenance"]
    )
