"""What `simmim-bench doctor` is asked to check, validated before anything slow starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.cli.options import all_recipes
from simmim_bench.data.named import DataSet, check_unique
from simmim_bench.errors import UsageError

if TYPE_CHECKING:
    from simmim_bench.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """What to check, after the command line has been validated.

    Attributes:
        data_sets: folders by layout.
        data: images to pretrain on, as `pretrain` takes them, and named data sets, as `transfer` does.
        recipe: the recipe to estimate, with its overrides.
        out: folder that runs will be written to.
        val_fraction: the fraction of the training images to hold out; None to read validation images.
        every_file: whether to read every file of large splits, too.
        shift_sets: the sets of `transfer shift`.
        classifier: the classifier that these should fit, as `transfer shift --ckpt`.
    """

    data_sets: Mapping[str, Path]
    data: tuple[DataSet, ...]
    ckpt: str | None
    arch: str | None
    recipe: Recipe | None
    out: Path
    every_file: bool
    val_fraction: float | None = None
    shift_sets: tuple[DataSet, ...] = ()
    classifier: str | None = None

    @property
    def images(self) -> Path | None:
        """The images to pretrain on."""
        return next((one.root for one in self.data if one.name is None), None)

    @property
    def is_pretraining(self) -> bool:
        """Whether the recipe is one of pretraining, which names its architecture."""
        return hasattr(self.recipe, "arch")


def check_request(
    name: str | None, overrides: tuple[str, ...], *, arch: str | None, **given: Any
) -> DoctorRequest:
    """Validate the command line before anything slow starts.

    Raises:
        UsageError: an unknown recipe, architecture or override, or an option without the one it needs.
    """
    from simmim_bench.models.archs import find_spec
    from simmim_bench.overrides import override
    from simmim_bench.recipe import find_recipe

    if arch is not None:
        find_spec(arch)
        if given["ckpt"] is None and name is None:
            raise UsageError(f"--arch {arch} needs --ckpt or --recipe; add one of them.")
    if given["classifier"] is not None and not given["shift_sets"]:
        raise UsageError(f"--classifier {given['classifier']} needs --shift NAME=DIR; add it.")
    if sum(one.name is None for one in given["data"]) > 1:
        raise UsageError(
            "--data DATA is given more than once; write NAME=DIR for data sets of classes."
        )
    check_unique([one.name for one in given["data"]])
    if overrides and name is None:
        raise UsageError(f"-o {overrides[0]} needs --recipe; add it.")
    recipe = None if name is None else override(find_recipe(all_recipes(), name), overrides)
    request = DoctorRequest(recipe=recipe, arch=arch, **given)
    if request.val_fraction is None:
        fraction = getattr(recipe, "val_fraction", None)
        request = dataclasses.replace(request, val_fraction=fraction)
    if recipe is not None and not request.is_pretraining and arch is None and request.ckpt is None:
        raise UsageError(
            f"--recipe {name} fits any backbone; choose one with --arch or with --ckpt."
        )
    return request
