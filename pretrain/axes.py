"""The axes of SimMIM's study (arXiv 2111.09886, section 4.1), and the grid that a recipe makes on them.

In: a recipe and axes. Out: cells, each a recipe that differs from the given one in what the axis is about, and
beside it the score that was published for SimMIM's own, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from itertools import product
from typing import Any, get_args

from pretrain.design import TOKENS, Design, EncoderInput, Loss, Scope, target_sizes, target_stride
from pretrain.heads import HEADS
from pretrain.recipes import PretrainRecipe, default_recipe
from pretrain.train import check_sizes
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import find_spec
from simmim_bench.results.ablation import AblationCell, Grid, Published

Option = tuple[str, dict[str, Any]]

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # SimMIM, table 1, of units of 32 pixels
IGPTS_CLUSTERS = 512  # its palette, as SimMIM's section 4.1.4 has it
AS_GIVEN = "as given"


def _masking(recipe: PretrainRecipe) -> list[Option]:
    """Strategies; random units an eighth to twice as large as the recipe's, SimMIM's 4 to 64 for 32 pixels."""
    own = recipe.mask_patch_size
    units = [own * times // 8 for times in (1, 2, 4, 8, 16) if own * times % 8 == 0]
    random = [("random", unit) for unit in units if unit > 1]  # units of one are single pixels
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
    """Points along the shorter side; a target that has them otherwise than asked is there once."""
    spec = find_spec(recipe.arch).at(recipe.img_size, recipe.window_size)
    full = min(recipe.img_size)
    wanted = [recipe.target_size, *sorted(target_sizes(spec))]
    options: dict[str, dict[str, Any]] = {}
    for size in (0 if size == full else size for size in wanted):
        points = size
        with suppress(UsageError):  # a cell that cannot be is left out by name
            points = full // target_stride(replace(recipe, target_size=size).design, spec)
        options.setdefault(f"{points} points", {"target_size": size})
    return list(options.items())


def _target(recipe: PretrainRecipe) -> list[Option]:
    """Targets, each at the recipe's resolution, or the finest below it that a head may have.

    Those of a teacher are there where the recipe has one.
    """
    alone = {"teacher": None, "tokenizer": None, "pixel_weight": 0.0, "tokens": TOKENS}
    plain = {**alone, "norm_target": 0}
    classes = {**plain, "loss": "l1"}  # whose loss is the cross-entropy
    taught = {**plain, "teacher": recipe.teacher}
    options: list[Option] = [
        ("pixels", {**alone, "target": "pixels"}),
        ("patch norm", {**plain, "target": "patch_norm"}),
        ("8 bins", {**classes, "target": "bins", "bins": 8}),
        ("256 bins", {**classes, "target": "bins", "bins": 256}),
        ("512 clusters", {**classes, "target": "clusters", "clusters": IGPTS_CLUSTERS}),
        ("512 tokens", {**classes, "target": "tokens"}),
    ]
    if recipe.teacher is not None:
        options += [
            ("teacher's features", {**taught, "target": "teacher_features"}),
            (
                "teacher's features and pixels",
                {**taught, "target": "teacher_features", "pixel_weight": 1.0},
            ),
            ("teacher's pixels", {**taught, "target": "teacher_pixels"}),  # of one with a head
        ]
    return [(name, changes | _fitting_size(recipe, changes)) for name, changes in options]


def _fitting_size(recipe: PretrainRecipe, changes: dict[str, Any]) -> dict[str, Any]:
    """Reduce the resolution where a target has too many numbers for it."""
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

# What SimMIM published of Swin-B, 100 epochs at 192 pixels, by what differs from its own choices. More is in its
# tables; this is what could be read in its repository, or is quoted alike by several.
_QUOTED = "arXiv 2111.09886, section 4.1, as others quote it"
PUBLISHED: tuple[tuple[dict[str, Any], Published], ...] = (
    ({}, Published(82.8, "SimMIM: README.md (Main Results)")),
    ({"mask_ratio": 0.5}, Published(83.0, _QUOTED)),
    ({"scope": "all"}, Published(81.7, _QUOTED)),
)


def make_grid(recipe: PretrainRecipe, axes: Sequence[str]) -> Grid:
    """Give the cells of every combination of the axes' options.

    The recipe's own cell comes first, which others are compared with. Cells that its arch or its teacher
    cannot have are left out, with the reason.

    Raises:
        UsageError: the recipe's own cell cannot be.
    """
    check_sizes(recipe)
    cells: dict[str, AblationCell] = {}
    left_out: dict[str, str] = {}
    own = recipe.to_json()
    for options in product(*(AXES[axis](recipe) for axis in axes)):
        name = ", ".join(name for name, _ in options)
        changes: dict[str, Any] = {}
        try:
            for _, one in options:
                for key, value in one.items():
                    if changes.setdefault(key, value) != value:
                        raise UsageError(f"{key} would be both {changes[key]} and {value}.")
            changed = replace(recipe, **changes)
            check_sizes(changed)
            if changed.target == "teacher_pixels" and changes.get("target") == changed.target:
                check_teaches_pixels(changed.teacher)
        except UsageError as error:
            left_out[name] = str(error)
            continue
        cells[name] = _cell(name, changed, own)
    own_cells = [cell for cell in cells.values() if not cell.changes]
    first = own_cells[:1] or [_cell(AS_GIVEN, recipe, own)]
    return Grid(tuple(axes), (*first, *(c for c in cells.values() if c.changes)), left_out)


def check_teaches_pixels(teacher: str | None) -> None:
    """Refuse a teacher that reconstructs nothing.

    Raises:
        UsageError: it has no SimMIM head.
        DataError: it cannot be read.
    """
    assert teacher is not None
    if not teacher.startswith(("timm:", "random:")):
        state = read_checkpoint(teacher).state or {}
        if any(name.startswith("decoder.") for name in state):
            return
    raise UsageError(f"teacher {teacher} has no SimMIM head and reconstructs no pixels.")


def _cell(name: str, recipe: PretrainRecipe, own: dict[str, Any]) -> AblationCell:
    changes = {key: value for key, value in recipe.to_json().items() if value != own[key]}
    return AblationCell(name=name, recipe=recipe, changes=changes, published=_published(recipe))


def _published(recipe: PretrainRecipe) -> Published | None:
    """Find what was published for the same choices, whatever the arch and the images."""
    chosen = {**asdict(recipe.design), "masking": recipe.masking, "mask_ratio": recipe.mask_ratio}
    paper = {f.name: f.default for f in fields(Design)} | {"masking": "random", "mask_ratio": 0.6}
    if recipe.mask_patch_size != default_recipe(recipe.arch).mask_patch_size:
        return None
    differs = {key: value for key, value in chosen.items() if value != paper[key]}
    return next((published for changes, published in PUBLISHED if changes == differs), None)
