"""Recipes: frozen, typed, complete descriptions of a run, found by name and changed by `key=value` overrides.

Every difference from the named recipe is kept as `deviates`. The recipes themselves are in
`pretrain/recipes.py` and in the packages of `transfer`; this module does not load torch.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from simmim_bench.errors import UsageError, nearest
from simmim_bench.files import sha256_json

# "auto": bfloat16 where the device is faster with it, float16 on GPUs without bfloat16
Precision = Literal["auto", "fp32", "bf16", "fp16"]
# of the pooled features of a frozen backbone; see `FrozenRecipe.norm` in `transfer/frozen/recipes.py`
Norm = Literal["none", "layer", "batch", "layer+batch"]
# How images of RGB are resized; see `data/fast_resize.py`
Resizing = Literal["pil", "fast"]
# Which training images few-shot learning samples; see `class_counts` in `data/subsets.py`
Draw = Literal["balanced", "proportional"]
LARGE = 1e9
# Names of keys in other programs, and what they are called here
ALIASES = {
    "lr": "base_lr",
    "learning_rate": "base_lr",
    "workers": "num_workers",
    "wd": "weight_decay",
}
UNTRAINED = (
    "epochs",
    "max_iters",
    "batch_size",
    "base_lr",
)  # keys of what is trained by gradient steps
WARMUPS = {"warmup_epochs": "epochs", "warmup_iters": "max_iters"}  # and the length of the training
ABOUT = (
    "name",
    "source",
    "sources",
    "published",
)  # fields that describe a recipe and change nothing
# Fields that suit the machine: they change no result, so they are no part of the protocol.
MACHINE = ("num_workers", "forward_batch_size")
MAY_BE_EMPTY = (
    "milestones",
    "cascade",
    "short_sides",
    "crop_short_sides",
    "map_blocks",
    "resize_within",
    "strides",
    "anchor_sizes",
)
CANDIDATES = (
    "blocks",
    "pooling",
    "heads",
    "norm",
    "base_lr",
    "l2",
    "k",
    "n_last_blocks",
)  # fields whose values are compared; each is tried once
# Allowed range of the fields of these names in any recipe, ends included; 0 is allowed where it means "off".
LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (1, LARGE),
    "max_iters": (1, LARGE),
    "batch_size": (1, LARGE),
    "warmup_epochs": (0, LARGE),
    "warmup_iters": (0, LARGE),
    "warmup_lr": (0, LARGE),
    "min_lr": (0, LARGE),
    "weight_decay": (0, LARGE),
    "clip_grad": (0, LARGE),
    "layer_decay": (1e-3, 1),
    "drop_path_rate": (0, 0.99),
    "ema_decay": (0, 0.999999),
    "repeated_aug": (1, 100),
    "crops_per_decode": (1, 8),
    "betas": (0, 0.999999),
    "crop_scale": (1e-3, 1),
    "scale_range": (1e-2, 100),
    "test_crop_ratio": (0.1, 1),
    "label_smoothing": (0, 0.99),
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "hflip": (0, 1),
    "random_erasing": (0, 1),
    "color_jitter": (0, 1),
    "num_workers": (0, 1024),
    "held_out": (1e-3, 0.9),
    "folds": (2, 100),
    "crops": (0, LARGE),
    "n_last_blocks": (1, LARGE),
    "queries": (1, LARGE),
    "num_heads": (1, LARGE),
    "norm_images": (2, LARGE),
    "epoch_steps": (1, LARGE),
    "momentum": (0, 0.999999),
    "l2": (0, LARGE),
    "temperature": (1e-3, 100),
    "milestones": (0, LARGE),
    "head_channels": (1, LARGE),
    "neck_channels": (1, LARGE),
    "box_head_dim": (1, LARGE),
    "box_pool": (1, 64),
    "mask_pool": (1, 64),
    "detections": (1, LARGE),
    "auxiliary_weight": (0, 100),
    "auxiliary_channels": (1, LARGE),
    "resize_within": (1, LARGE),
    "slide_stride": (1, LARGE),
    "min_test_side": (0, LARGE),
    "stage_decay_layers": (0, 1000),
    "map_blocks": (1, 1000),
    "layer_scale": (0, 100),
    "anchor_sizes": (1, LARGE),
    "anchor_ratios": (1e-3, 1e3),
    "score_threshold": (0, 1),
    "cascade": (0, 1),
    "short_sides": (1, LARGE),
    "crop_short_sides": (1, LARGE),
    "crop_sides": (1, LARGE),
    "max_side": (1, LARGE),
    "test_size": (1, LARGE),
    "patch_size": (1, 1024),
    "box_loss_weight": (0, 100),
    "rpn_beta": (0, 100),
    "test_scales": (1e-2, 100),
    "window_size": (1, 1024),
    "norm_target": (0, 1023),
    "target_size": (0, LARGE),
    "bins": (2, 256),
    "clusters": (2, 4096),
    "tokens": (2, 65536),
    "pixel_weight": (0, 1000),
    "in_chans": (1, 1024),
    "limit": (1, LARGE),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The fields of every recipe.

    Attributes:
        name: the name that finds the recipe; a recipe with a recorded score is never changed.
        source: where the numbers are from: a paper's section, a repository's file, or "ours".
        sources: sources of the fields whose numbers are not from `source`, by field.
        published: a published score for the recipe, in words, with its source.
    """

    name: str
    source: str
    sources: Mapping[str, str] = field(default_factory=dict)
    published: str | None = None

    def __post_init__(self) -> None:
        self._check_lists()
        for key, (low, high) in LIMITS.items():
            value = getattr(self, key, None)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not low <= number <= high:
                    allowed = f"{low:g} or more" if high == LARGE else f"{low:g} to {high:g}"
                    raise UsageError(
                        f"{key} {number} of recipe '{self.name}' is out of range; use {allowed}."
                    )
        self._check_warmup()

    def _check_warmup(self) -> None:
        """Refuse a warm-up as long as the training, which would never reach the learning rate of the protocol."""
        for key, length in WARMUPS.items():
            warmup, total = getattr(self, key, 0), getattr(self, length, math.inf)
            if warmup and warmup >= total:
                raise UsageError(
                    f"{key}={warmup} of recipe '{self.name}' is not less than {length}={total}, so that the whole "
                    f"training would be warm-up; use -o {key}={total // 5}."
                )

    def _check_lists(self) -> None:
        """Refuse empty lists, and candidates that are listed twice."""
        for key, value in vars(self).items():
            if value == () and key not in MAY_BE_EMPTY:
                raise UsageError(f"{key} of recipe '{self.name}' is empty; use {key}=A,B.")
            if key in CANDIDATES and isinstance(value, tuple) and len({*value}) < len(value):
                twice = next(one for one in value if value.count(one) > 1)
                raise UsageError(
                    f"{key} of recipe '{self.name}' lists {twice} twice; list it once."
                )

    def to_json(self) -> dict[str, Any]:
        """Return the plain form, as written to `recipe.json`."""
        return dataclasses.asdict(self)

    def fields(self) -> dict[str, Any]:
        """Return the plain form without the descriptive fields."""
        return {key: value for key, value in self.to_json().items() if key not in ABOUT}

    def sha256(self) -> str:
        """Hash the fields that shape the result, without descriptive and machine-dependent fields.

        A field at its default is excluded, so that a field added later does not change the hash of an older
        recipe.
        """
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        plain = self.to_json()
        no_part = (*ABOUT, *MACHINE)
        return sha256_json(
            {k: v for k, v in plain.items() if k not in no_part and v != defaults[k]}
        )

    def source_of(self, key: str) -> str:
        """Return the source of a field's number."""
        return self.sources.get(key, self.source)


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def find_recipe(recipes: Mapping[str, AnyRecipe], name: str) -> AnyRecipe:
    """Return the recipe of a name.

    Raises:
        UsageError: an unknown name; the message has the closest known one.
    """
    if name not in recipes:
        raise UsageError(f"unknown recipe '{name}'; {nearest(name, recipes)}")
    return recipes[name]


def override(recipe: AnyRecipe, assignments: Iterable[str]) -> AnyRecipe:
    """Return a recipe with fields changed by `key=value` texts, each value parsed as its field's type.

    Raises:
        UsageError: a text without "=", an unknown key, or a value of the wrong type.
    """
    changes = parse_overrides(type(recipe), f"recipe '{recipe.name}'", assignments)
    return dataclasses.replace(recipe, **changes)


def parse_overrides(kind: type[Recipe], what: str, assignments: Iterable[str]) -> dict[str, Any]:
    """Return the values of `key=value` texts by key, each parsed as the type of its field.

    Args:
        kind: the type of the recipe.
        what: the recipe, for messages.

    Raises:
        UsageError: a text without "=", an unknown key, or a value of the wrong type.
    """
    kinds = typing.get_type_hints(kind)
    keys = [f.name for f in dataclasses.fields(kind) if f.name not in ABOUT]
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"override '{assignment}' has no value; write -o {key}=VALUE.")
        if key not in keys:
            raise UsageError(f"unknown override key '{key}' for {what}; {_instead(key, keys)}")
        changes[key] = _parse(key, text, kinds[key])
    return changes


def _instead(key: str, keys: Iterable[str]) -> str:
    """Return a hint for an unknown key: the one that does what it would, or the nearest."""
    keys = tuple(keys)
    if key == "epochs" and "max_iters" in keys:
        return "it counts iterations: use -o max_iters=N."
    if key == "limit":
        return "it uses all images; use a smaller data set, such as a subset of the annotations."
    other = ALIASES.get(key)
    if other in keys:
        return f"use -o {other}=..."
    if key in UNTRAINED and "max_iters" not in keys and "epochs" not in keys:
        return "it fits no weights step by step, and has no " + ", ".join(UNTRAINED) + "."
    return nearest(key, keys)


def deviations(recipe: Recipe, named: Recipe) -> dict[str, Any]:
    """Return the fields that shape the result and differ from the named recipe, with their new values."""
    new, old = recipe.to_json(), named.to_json()
    return {k: v for k, v in new.items() if v != old[k] and k not in (*ABOUT, *MACHINE)}


def with_deviations(named: AnyRecipe, deviates: Mapping[str, Any]) -> AnyRecipe:
    """Return a recipe with the differences that a record or a run's `recipe.json` holds; lists become tuples.

    Raises:
        TypeError, UsageError: the recipe does not take them.
    """
    changes: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in deviates.items()
    }
    return dataclasses.replace(named, **changes)


def _parse(key: str, text: str, kind: Any) -> Any:
    """Parse a text as a field's type: int, float, bool, str, a Literal, a tuple of them, or `| None`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if text.lower() in ("none", "null"):
            return None
        return _parse(key, text, next(a for a in arguments if a is not type(None)))
    if origin is typing.Literal:
        if text not in arguments:
            allowed = ", ".join(argument or "''" for argument in arguments)
            raise UsageError(f"{key}={text} is not one of the allowed values: {allowed}.")
        return text
    if origin is tuple:
        parts = [
            part.strip()
            for part in text.strip("()[] ").replace("x", ",").split(",")
            if part.strip()
        ]
        if not parts and text.strip() not in ("()", "[]"):
            raise UsageError(f"{key}= has no values; write {key}=A,B.")
        if Ellipsis not in arguments and len(parts) == 1:
            parts = parts * len(arguments)  # img_size=64 means (64, 64)
        if Ellipsis not in arguments and len(parts) != len(arguments):
            raise UsageError(f"{key}={text} has {len(parts)} values; it takes {len(arguments)}.")
        return tuple(_parse(key, part, arguments[0]) for part in parts)
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise UsageError(f"{key}={text} is not a boolean; use true or false.")
        return text.lower() in ("true", "1", "yes")
    try:
        value = kind(text)
    except ValueError as error:
        raise UsageError(f"{key}={text} is not of type {kind.__name__}.") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{key}={text} is not a finite number.")
    return value


def check_positive(recipe: Recipe, *keys: str) -> None:
    """Check that the named fields of a recipe are above zero.

    Raises:
        UsageError: with the key and its value.
    """
    for key in keys:
        value = getattr(recipe, key)
        if any(v <= 0 for v in (value if isinstance(value, tuple) else (value,))):
            raise UsageError(f"{key} {value} of recipe '{recipe.name}' must be above 0.")
