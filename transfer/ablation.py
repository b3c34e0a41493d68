"""What an ablation asks of transfers: one run of a cell, how it stands, and how it compares.

In: a CKPT, a place, and the options of a transfer by name. Out: records, states, differences.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DataError
from simmim_bench.models.archs import find_spec
from simmim_bench.recipe import find_recipe
from simmim_bench.runs.options import RunOptions
from simmim_bench.runs.run_dir import describe_run
from simmim_bench.runs.status import RunStatus, run_status
from transfer.compare import compare_runs
from transfer.launch import COMPARED, TransferRequest, prepare, start
from transfer.recipes import RECIPES, default_recipe
from transfer.suite.plan import is_recorded


def run_transfer_of(
    *,
    ckpt: str,
    out: Path,
    features: Path,
    seed: int,
    options: dict[str, Any],
    display: Display,
    dist: DistContext,
) -> None:
    """Transfer a cell's checkpoint; a run that is finished is left as it is."""
    start(_asked(options, features), ckpt, out, seed=seed, display=display, dist=dist)


def transfer_status(
    *, place: Path, ckpt: str, seed: int, options: dict[str, Any]
) -> tuple[RunStatus, str]:
    """Say how the transfer of a checkpoint stands, and why where it is in the way."""
    try:
        prepared = prepare(_asked(options, None), ckpt, _read(ckpt, _stamp(ckpt)))
    except DataError as error:
        return "in the way", str(error)
    arguments = {**prepared.arguments, "seed": seed}
    description = describe_run(prepared.recipe, prepared.deviates, arguments)
    return run_status(place, description, is_finished=is_recorded)


@functools.cache
def _read(ckpt: str, stamp: int) -> Checkpoint:
    """Read what is known of a checkpoint, but for its weights; once, as long as its stamp is the same."""
    return dataclasses.replace(read_checkpoint(ckpt), state=None)


def _stamp(ckpt: str) -> int:
    """Give when a run's last checkpoint was written; 0 where there is none."""
    try:
        return (Path(ckpt) / "checkpoints" / "last" / "meta.json").stat().st_mtime_ns
    except OSError:
        return 0


def transfer_name(*, arch: str, options: dict[str, Any]) -> str:
    """Name the recipe that a transfer takes."""
    if options["recipe"] is None:
        return default_recipe(options["task"], find_spec(arch)).name
    return find_recipe(RECIPES, options["recipe"]).name


def over_own(
    *, task: str, ours: Sequence[Path], theirs: Sequence[Path]
) -> tuple[float, float, float] | None:
    """Give the difference in points with its 95 % interval; None where a task has no top-1."""
    if task not in COMPARED:
        return None
    difference = compare_runs(ours, theirs)
    return difference.points, difference.low, difference.high


def _asked(options: dict[str, Any], features: Path | None) -> TransferRequest:
    return TransferRequest(
        task=options["task"],
        fraction=options["fraction"],
        features=features,
        options=RunOptions(
            data=options["data"],
            recipe=options["recipe"],
            overrides=options["overrides"],
            resume=True,
        ),
    )
