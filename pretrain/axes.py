"""The axes of SimMIM's ablation study (arXiv 2111.09886, section 4.1), and the grid of recipes along them.

`build_grid` turns a recipe and axes into cells. Each cell is a variant of the recipe; a published score of the same
choices is attached where one is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from itertools import product
from typing import Any, get_args

from pretrain.build import check_sizes
from pretrain.design import (
    DEFAULT_TOKENS,
    Design,
    EncoderInput,
    Loss,
    Scope,
    target_sizes,
    target_stride,
)
from pretrain.heads import HEADS
from pretrain.recipes import PretrainRecipe, default_recipe
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import find_spec
from simmim_bench.results.ablation import AblationCell, Grid, PublishedScore

Option = tuple[str, dict[str, Any]]

RATIOS = (
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
)  # SimMIM, table 1, with masking units of 32 pixels
IGPT_CLUSTERS = 512  # iGPT's palette, as SimMIM uses it in section 4.1.4
AS_GIVEN = "as given"


def _masking(recipe: PretrainRecipe) -> list[Option]:
    """Return all strategies; random ones with units of 1/8 to 2 times the recipe's: SimMIM's 4 to 64 for 32 pixels."""
    own = recipe.mask_patch_size
    units = [own * times // 8 for times in (1, 2, 4, 8, 16) if own * times % 8 == 0]
    random = [
        ("random", unit) for unit in units if unit > 1
    ]  # units of 1 equal the strategy "pixels"
    others = [("square", own), ("block", own // 2), ("block", own), ("regions", own)]
    return [
        ("pixels", {"masking": "pixels"}),
        *(
            (f"{masking} {unit}", {"masking": masking, "mask_patch_size": unit})
            for masking, unit in [*random, *others, ("multimodal", own)]
        ),
    ]


def _ratio(recipe: PretrainRecipe) -> list[Option]:
    return [(f"ratio {ratio}", {"mask_ratio": ratio}) for ratio in RATIOS]


def _head(recipe: PretrainRecipe) -> list[Option]:
    return [(head.replace("_", " "), {"head": head}) for head in HEADS]


def _resolution(recipe: PretrainRecipe) -> list[Option]:
    """Return one option per resolution; sizes that give the same number of points along the shorter side are merged."""
    spec = find_spec(recipe.arch).at(recipe.img_size, recipe.window_size)
    full = min(recipe.img_size)
    wanted = [recipe.target_size, *sorted(target_sizes(spec))]
    options: dict[str, dict[str, Any]] = {}
    for size in (0 if size == full else size for size in wanted):
        points = size
        with suppress(UsageError):  # `build_grid` reports the impossible cell by name
            points = full // target_stride(replace(recipe, target_size=size).design, spec)
        options.setdefault(f"{points} points", {"target_size": size})
    return list(options.items())


def _target(recipe: PretrainRecipe) -> list[Option]:
    """Return the targets, each at the recipe's resolution or the finest coarser one that a head supports.

    Teacher targets are included if the recipe has a teacher.
    """
    alone = {"teacher": None, "tokenizer": None, "pixel_weight": 0.0, "tokens": DEFAULT_TOKENS}
    plain = {**alone, "norm_target": 0}
    classes = {**plain, "loss": "l1"}  # the default; classes use the cross-entropy
    taught = {**plain, "teacher": recipe.teacher}
    options: list[Option] = [
        ("pixels", {**alone, "target": "pixels"}),
        ("patch norm", {**plain, "target": "patch_norm"}),
        ("8 bins", {**classes, "target": "bins", "bins": 8}),
        ("256 bins", {**classes, "target": "bins", "bins": 256}),
        ("512 clusters", {**classes, "target": "clusters", "clusters": IGPT_CLUSTERS}),
        ("512 tokens", {**classes, "target": "tokens"}),
    ]
    if recipe.teacher is not None:
        options += [
            ("teacher's features", {**taught, "target": "teacher_features"}),
            (
                "teacher's features and pixels",
                {**taught, "target": "teacher_features", "pixel_weight": 1.0},
            ),
            ("teacher's pixels", {**taught, "target": "teacher_pixels"}),  # needs a SimMIM head
        ]
    return [(name, changes | _fitting_size(recipe, changes)) for name, changes in options]


def _fitting_size(recipe: PretrainRecipe, changes: dict[str, Any]) -> dict[str, Any]:
    """Return a lower `target_size` if the target has too many outputs at the recipe's resolution."""
    spec = find_spec(recipe.arch).at(recipe.img_size, recipe.window_size)
    own = recipe.target_size or min(recipe.img_size)
    for size in sorted(target_sizes(spec), reverse=True):
        reduced: dict[str, Any] = {} if size == own else {"target_size": size}
        try:
            check_sizes(replace(recipe, **changes, **reduced))
        except UsageError:
            continue
        if size <= own:
            return reduced
    return {}


def _loss(recipe: PretrainRecipe) -> list[Option]:
    return [(loss.replace("_", " "), {"loss": loss}) for loss in get_args(Loss)]


def _scope(recipe: PretrainRecipe) -> list[Option]:
    return [(f"{scope} pixels", {"scope": scope}) for scope in get_args(Scope)]


def _encoder_input(recipe: PretrainRecipe) -> list[Option]:
    return [(given, {"encoder_input": given}) for given in get_args(EncoderInput)]


AXES: dict[str, Callable[[PretrainRecipe], list[Option]]] = {
    "masking": _masking,
    "ratio": _ratio,
    "head": _head,
    "resolution": _resolution,
    "target": _target,
    "loss": _loss,
    "scope": _scope,
    "encoder-input": _encoder_input,
}

# SimMIM's published scores of Swin-B, 100 epochs at 192 pixels, by deviation from its default choices. Its tables list
# more; these could be read in its repository, or are quoted consistently by several papers.
_QUOTED = "arXiv 2111.09886, section 4.1, as others quote it"
PUBLISHED: tuple[tuple[dict[str, Any], PublishedScore], ...] = (
    ({}, PublishedScore(82.8, "SimMIM: README.md (Main Results)")),
    ({"mask_ratio": 0.5}, PublishedScore(83.0, _QUOTED)),
    ({"scope": "all"}, PublishedScore(81.7, _QUOTED)),
)


def build_grid(recipe: PretrainRecipe, axes: Sequence[str]) -> Grid:
    """Build the grid of all combinations of the axes' options.

    The first cell is the recipe itself, which the other cells are compared with. Cells that its arch or its teacher
    does not support are left out and listed with the reason.

    Raises:
        UsageError: the recipe itself is invalid.
    """
    check_sizes(recipe)
    cells: dict[str, AblationCell] = {}
    left_out: dict[str, str] = {}
    own = recipe.to_json()
    for options in product(*(AXES[axis](recipe) for axis in axes)):
        name = ", ".join(name for name, _ in options)
        try:
            variant = _variant(recipe, [changes for _, changes in options])
        except UsageError as error:
            left_out[name] = str(error)
            continue
        cells[name] = _cell(name, variant, own)
    own_cells = [cell for cell in cells.values() if not cell.changes]
    first = own_cells[:1] or [_cell(AS_GIVEN, recipe, own)]
    return Grid(tuple(axes), (*first, *(c for c in cells.values() if c.changes)), left_out)


def _variant(recipe: PretrainRecipe, options: Sequence[dict[str, Any]]) -> PretrainRecipe:
    """Return the recipe with the changes of all options, after checking it.

    Raises:
        UsageError: two options contradict each other, or the arch or the teacher does not support the variant.
    """
    merged: dict[str, Any] = {}
    for changes in options:
        for key, value in changes.items():
            if merged.setdefault(key, value) != value:
                raise UsageError(f"{key} would be both {merged[key]} and {value}.")
    variant = replace(recipe, **merged)
    check_sizes(variant)
    if variant.target == "teacher_pixels" and merged.get("target") == variant.target:
        check_teaches_pixels(variant.teacher)
    return variant


def check_teaches_pixels(teacher: str | None) -> None:
    """Check that a teacher reconstructs pixels.

    Raises:
        UsageError: the teacher has no SimMIM head.
        DataError: the teacher cannot be read.
    """
    assert teacher is not None
    if not teacher.startswith(("timm:", "random:", "hub:", "py:")):
        state = read_checkpoint(teacher).state or {}
        if any(name.startswith("decoder.") for name in state):
            return
    raise UsageError(
        f"teacher {teacher} has no SimMIM head and reconstructs no pixels; use a SimMIM pretraining checkpoint."
    )


def _cell(name: str, recipe: PretrainRecipe, own: dict[str, Any]) -> AblationCell:
    changes = {key: value for key, value in recipe.to_json().items() if value != own[key]}
    return AblationCell(name=name, recipe=recipe, changes=changes, published=_published(recipe))


def _published(recipe: PretrainRecipe) -> PublishedScore | None:
    """Return the score published for the same choices, regardless of arch and images; None if there is none."""
    chosen = {**asdict(recipe.design), "masking": recipe.masking, "mask_ratio": recipe.mask_ratio}
    paper = {f.name: f.default for f in fields(Design)} | {"masking": "random", "mask_ratio": 0.6}
    if recipe.mask_patch_size != default_recipe(recipe.arch).mask_patch_size:
        return None
    differs = {key: value for key, value in chosen.items() if value != paper[key]}
    return next((published for changes, published in PUBLISHED if changes == differs), None)
