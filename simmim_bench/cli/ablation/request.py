"""Check the command line of `simmim-bench ablate`, and build the study that it requests."""

from __future__ import annotations

from pathlib import Path

from simmim_bench.cli.ablation.study import AblationStudy
from simmim_bench.errors import DataError, UsageError
from simmim_bench.tasks import variants


def make_study(
    *,
    axes: tuple[str, ...],
    arch: str,
    data: Path,
    task: str,
    transfer_data: Path | None,
    recipe: str | None,
    overrides: tuple[str, ...],
    transfer_recipe: str | None,
    transfer_overrides: tuple[str, ...],
    seeds: int,
    seed: int,
    out: Path | None,
) -> AblationStudy:
    """Validate the command line before any work."""
    from pretrain.recipes import resolve_recipe

    for axis in axes:
        if axes.count(axis) > 1:
            raise UsageError(f"axis {axis} is given twice; give it once.")
    transfer_data = _check_folders(data, task, transfer_data, out)
    resolved, named = resolve_recipe(arch=arch, recipe=recipe, overrides=overrides)
    from pretrain.axes import build_grid  # loads torch

    out = out or Path("runs", "ablate", arch)
    words = ["ablate", *axes, "--arch", arch, "--data", str(data), "--transfer", task]
    words += ["--transfer-data", str(transfer_data), "--out", str(out)]
    chosen = ["--recipe", recipe] if recipe else []
    chosen += [word for text in overrides for word in ("-o", text)]
    words += chosen
    words += ["--transfer-recipe", transfer_recipe] if transfer_recipe else []
    words += [word for text in transfer_overrides for word in ("-t", text)]
    return AblationStudy(
        arch=arch,
        grid=build_grid(resolved, axes),
        recipe=resolved,
        named=named,
        data=data,
        task=task,
        transfer_data=transfer_data,
        transfer_recipe=transfer_recipe,
        transfer_overrides=transfer_overrides,
        seeds=tuple(range(seed, seed + seeds)),
        out=out,
        words=tuple(words),
        recipe_words=("--arch", arch, *chosen),
    )


def _check_folders(data: Path, task: str, transfer_data: Path | None, out: Path | None) -> Path:
    """Check the folders of the data and of the runs; return the transfer's data set."""
    is_hub = str(data).startswith("hfds:")
    if not is_hub and not data.exists():
        raise DataError(
            f"--data {data} does not exist; pass a folder of images, or anything else `pretrain` takes."
        )
    if transfer_data is None:
        if variants()[task].task.data != "imagenet" or is_hub or not data.is_dir():
            raise UsageError(
                f"--transfer {task} cannot learn from --data {data}; pass its data set with --transfer-data DIR."
            )
        transfer_data = data
    if not transfer_data.is_dir():
        raise DataError(
            f"--transfer-data {transfer_data} does not exist; pass a folder in the task's layout."
        )
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; choose a directory.")
    return transfer_data
