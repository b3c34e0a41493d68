"""From what `simmim-bench pretrain` is asked to a run: its recipe, its directory, how that stands.

In: an arch, a recipe's name, overrides, a place. Out: a checkpoint directory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pretrain.recipes import RECIPES, PretrainRecipe, default_recipe, for_arch
from pretrain.train import TrainOptions, pretrain
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.files import read_json
from simmim_bench.recipe import deviations, find_recipe, override
from simmim_bench.runs.run_dir import describe_run, open_run
from simmim_bench.runs.status import RunStatus, run_status


def resolve(
    *, arch: str, recipe: str | None, overrides: Iterable[str]
) -> tuple[PretrainRecipe, PretrainRecipe]:
    """Give the recipe with its overrides, and the named one; the arch's own where none is named.

    Raises:
        UsageError: an unknown arch or recipe, or an override that it does not take.
    """
    named = default_recipe(arch) if recipe is None else for_arch(find_recipe(RECIPES, recipe), arch)
    return override(named, overrides), named


def start(
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
) -> Path:
    """Pretrain in a directory; with `resume`, a run that is finished is left as it is.

    Returns:
        The checkpoint directory.
    """
    deviates = deviations(recipe, named)
    with open_run(
        out,
        recipe=recipe,
        deviates=deviates,
        arguments=_arguments(data, seed, init_from),
        display=display,
        resume=resume,
        overwrite=overwrite,
        dist=dist,
    ) as run:
        return pretrain(
            recipe=recipe,
            deviates=deviates,
            data=data,
            run=run,
            seed=seed,
            init_from=init_from,
            resume=resume,
            dist=dist,
            options=options,
        )


def look(
    *, place: Path, recipe: PretrainRecipe, named: PretrainRecipe, data: Path, seed: int
) -> tuple[RunStatus, str]:
    """Say how a run directory stands, and why where it is in the way."""
    description = describe_run(recipe, deviations(recipe, named), _arguments(data, seed, None))
    return run_status(place, description, is_finished=_is_finished)


def _arguments(data: Path, seed: int, init_from: str | None) -> dict[str, Any]:
    return {"data": str(data), "seed": seed, "init_from": init_from}


def _is_finished(place: Path) -> bool:
    meta = place / "checkpoints" / "last" / "meta.json"
    return meta.is_file() and "wall_time_s" in read_json(meta, "checkpoint file")["provenance"]
