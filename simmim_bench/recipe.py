"""Recipes: frozen, typed, complete descriptions of a run, found by name and changed by overrides (`overrides.py`).

Every difference from the named recipe is kept as `deviates`. The recipes themselves are in
`pretrain/recipes.py` and in the packages of `transfer`; this module does not load torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from simmim_bench.errors import UsageError, nearest
from simmim_bench.files import sha256_json
from simmim_bench.recipe_limits import CANDIDATES, LARGE, LIMITS, MAY_BE_EMPTY, WARMUPS

# "auto": bfloat16 where the device is faster with it, float16 on GPUs without bfloat16
Precision = Literal["auto", "fp32", "bf16", "fp16"]
# of the pooled features of a frozen backbone; see `FrozenRecipe.norm` in `transfer/frozen/recipes.py`
Norm = Literal["none", "layer", "batch", "layer+batch"]
# How images of RGB are resized; see `data/fast_resize.py`
Resizing = Literal["pil", "fast"]
# Which training images few-shot learning samples; see `class_counts` in `data/subsets.py`
Draw = Literal["balanced", "proportional"]
ABOUT = (
    "name",
    "source",
    "sources",
    "published",
)  # fields that describe a recipe and change nothing
# Fields that suit the machine: they change no result, so they are no part of the protocol.
MACHINE = ("num_workers", "forward_batch_size")


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


def check_positive(recipe: Recipe, *keys: str) -> None:
    """Check that the named fields of a recipe are above zero.

    Raises:
        UsageError: with the key and its value.
    """
    for key in keys:
        value = getattr(recipe, key)
        if any(v <= 0 for v in (value if isinstance(value, tuple) else (value,))):
            raise UsageError(f"{key} {value} of recipe '{recipe.name}' must be above 0.")
