"""Describe a backbone whose network is built by other code: one of timm's, or one of the user's.

What `BackboneSpec` derives from the sizes of a known family is listed here, as it was measured on the network
(`external.py`). This module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from simmim_bench.errors import UsageError
from simmim_bench.models.spec import (
    FIELDS,
    MOST_BLOCKS,
    BackboneSpec,
    FeatureLevel,
    MapOptions,
    as_tuples,
    check_map_blocks,
    quarters,
)

Sizing = Literal["any", "multiple", "fixed"]
Argument = str | int | float | bool | None | tuple[Any, ...]

PATCH_SIZE = "patch_size"  # the argument of `timm.create_model`
MOST_LEVELS = (
    4  # of a network with stages; the earlier ones, at stride 2, are seldom used by a detector
)


@dataclass(frozen=True, kw_only=True)
class ExternalSpec(BackboneSpec):
    """Complete description of a backbone of other code.

    A network is plain if the maps after all its blocks have one stride, as a ViT's; otherwise it has stages.

    Attributes:
        source: timm's name of the architecture, or `package.module:factory` of a function of the user's.
        arguments: further arguments of `timm.create_model`, as pairs.
        levels: channels and stride of the map after every block of a plain network, or after every stage; empty for
            a network without maps.
        class_token: whether the blocks have a class token.
        own_width: channels of the network's own pooled features, timm's `forward_head(..., pre_logits=True)`.
        sizing: images that the network takes: of any size; of multiples of the coarsest stride, to which others
            are padded with zeros; or of `img_size` alone, to which smaller ones are padded.
        sized: whether the network is built for an image size.
        batch_normed: whether the network has BatchNorm, which limits the magnitude of its maps.
    """

    source: str
    arguments: tuple[tuple[str, Argument], ...] = ()
    levels: tuple[tuple[int, int], ...]
    class_token: bool = False
    own_width: int
    sizing: Sizing = "any"
    sized: bool = False
    batch_normed: bool = False

    def __post_init__(self) -> None:
        """Accept every image size: the network pads, or refuses when it is built."""

    @property
    def num_features(self) -> int:
        """Channels of the last feature level; of the pooled features of a network without maps."""
        return self.levels[-1][0] if self.levels else self.own_width

    @property
    def stride(self) -> int:
        """Stride of the last feature level in pixels."""
        return self.levels[-1][1] if self.levels else self.patch_size

    @property
    def is_convolutional(self) -> bool:
        """Whether the weights are stored channels-last on a GPU: those of networks with BatchNorm."""
        return self.batch_normed

    @property
    def is_plain(self) -> bool:
        """Whether all maps have one stride."""
        return len({stride for _, stride in self.levels}) == 1

    @property
    def probed_blocks(self) -> int:
        """Length of dimension 1 of `forward_pooled`: the maps, or the pooled features of a network without maps."""
        return max(1, len(self.levels))

    @property
    def block_widths(self) -> tuple[int, ...]:
        """Channels after every probed block."""
        return tuple(channels for channels, _ in self.levels) or (self.own_width,)

    @property
    def pooled_width(self) -> int:
        """Channels of `forward_features`."""
        return self.own_width

    @property
    def has_class_token(self) -> bool:
        """Whether the blocks have a class token."""
        return self.class_token

    @property
    def poolings(self) -> tuple[Literal["mean", "cls", "own"], ...]:
        """Poolings that `forward_pooled` returns for every block: mean cell, class token; "own" for the last one."""
        if not self.levels:
            return ("own",)
        return ("mean", "cls", "own") if self.class_token else ("mean", "own")

    @property
    def windowed_blocks(self) -> tuple[int, ...]:
        """No blocks: window attention is the network's own matter."""
        return ()

    @property
    def feature_levels(self) -> tuple[FeatureLevel, ...]:
        """Levels that `forward_maps` returns: the last four stages, or four equally spaced blocks."""
        return tuple(FeatureLevel(*self.levels[block - 1]) for block in self.level_blocks)

    @property
    def level_blocks(self) -> tuple[int, ...]:
        """Block or stage, counted from 1, whose output is each feature level."""
        count = len(self.levels)
        if self.is_plain:
            return self.map_blocks or quarters(count)
        return tuple(range(max(1, count - MOST_LEVELS + 1), count + 1))

    @property
    def stage_windows(self) -> tuple[tuple[int, int], ...]:
        """No windows."""
        return ()

    def at(
        self,
        img_size: tuple[int, int] | None = None,
        window_size: int | None = None,
        *,
        trained: bool = False,
        patch_size: int | None = None,
    ) -> ExternalSpec:
        """Return this network for another image size.

        Args:
            img_size: (H, W) in pixels; None keeps the current one.
            window_size: must be None.
            trained: without effect.
            patch_size: of a plain network of timm's that has patches, to which timm resamples their kernels; None
                keeps the current one. Recorded in `arguments`.

        Raises:
            UsageError: the network takes no such argument, or no other image size.
        """
        if window_size:
            raise self._does_not_apply("window_size", window_size)
        spec = self
        if patch_size is not None and not (self.is_plain and patch_size == self.stride):
            if self.family != "timm" or not self.is_plain:
                raise self._does_not_apply("patch_size", patch_size)
            spec = replace(
                self,
                patch_size=patch_size,
                levels=tuple((channels, patch_size) for channels, _ in self.levels),
                arguments=tuple(sorted({**dict(self.arguments), PATCH_SIZE: patch_size}.items())),
            )
        size = img_size or self.img_size
        if self.sizing == "fixed" and not self.sized and size != self.img_size:
            height, width = self.img_size
            raise UsageError(
                f"img_size {size} does not apply to {self.arch}, which takes images of {height} x {width} pixels "
                f"alone; use -o img_size={height},{width}."
            )
        return replace(spec, img_size=size)

    def _does_not_apply(self, name: str, value: int) -> UsageError:
        return UsageError(
            f"{name}={value} does not apply to {self.arch}, a network of {self.origin}; use -o {name}=none."
        )

    def with_maps(self, options: MapOptions, trained: BackboneSpec) -> ExternalSpec:
        """Return this backbone with other feature maps.

        Args:
            trained: without effect.

        Raises:
            UsageError: an option that the network cannot have.
        """
        if not self.levels:
            raise UsageError(
                f"{self.arch} has no feature maps of constant stride, which detection and segmentation need; use "
                "another backbone."
            )
        fixes = [
            fix
            for changed, fix in (
                (options.rel_pos != "own", "-o rel_pos=own"),
                (options.layer_scale is not None, "-o layer_scale=none"),
                (options.position != "antialiased", "-o position=antialiased"),
            )
            if changed
        ]
        if fixes:
            raise UsageError(
                f"the recipe changes attention or position within the blocks, which does not apply to {self.arch}, "
                f"a network of {self.origin}; use {' '.join(fixes)}, or no --recipe for the default."
            )
        if options.blocks and not self.is_plain:
            raise UsageError(
                f"map_blocks apply to a plain network, which {self.arch} is not; use another --recipe, or none for "
                "the default of the architecture."
            )
        check_map_blocks(options.blocks, len(self.levels), self.arch)
        return replace(self, map_blocks=options.blocks, map_norm=options.norm)

    @property
    def origin(self) -> str:
        """Whose code builds the network, for messages."""
        return "timm" if self.family == "timm" else self.source

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ExternalSpec:
        """Build a spec from the JSON object that `to_json` returned.

        Raises:
            ValueError: a field is unknown, of another type, or larger than any backbone's.
        """
        values = {key: as_tuples(value) for key, value in fields.items()}
        if (fault := _describe_fault(values)) is not None:
            raise ValueError(fault)
        spec = cls(**values)
        if (":" in spec.source) != (spec.family == "python"):
            raise ValueError(f"source is {ascii(spec.source)[:80]}")
        return spec


def spec_from_json(fields: dict[str, Any]) -> BackboneSpec:
    """Build the spec of any family from its JSON object.

    Raises:
        ValueError: see `from_json`.
    """
    if fields.get("family") in ("timm", "python"):
        return ExternalSpec.from_json(fields)
    return BackboneSpec.from_json(fields)


def _describe_fault(fields: Mapping[str, Any]) -> str | None:
    """Return the first field of a spec that is unknown or of another type; None without one."""
    tests = {**FIELDS, **_FIELDS}
    for key, value in fields.items():
        if key not in tests or not tests[key](value):
            return f"{ascii(key)[:40]} is {ascii(value)[:80]}"
    return None


def _is_argument(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) <= MOST_BLOCKS and all(map(_is_argument, value))
    return value is None or isinstance(value, str | int | float)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "family": lambda value: value in ("timm", "python"),
    "source": lambda value: (
        isinstance(value, str) and re.fullmatch(r"[\w.]{1,200}(:\w{1,100})?", value) is not None
    ),
    "arguments": lambda value: (
        isinstance(value, tuple)
        and len(value) <= 100
        and all(
            isinstance(pair, tuple)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and _is_argument(pair[1])
            for pair in value
        )
    ),
    "levels": lambda value: (
        isinstance(value, tuple)
        and len(value) <= MOST_BLOCKS
        and all(
            isinstance(level, tuple)
            and len(level) == 2
            and all(type(n) is int and 0 < n <= 1 << 16 for n in level)
            for level in value
        )
    ),
    "class_token": lambda value: isinstance(value, bool),
    "own_width": lambda value: type(value) is int and 0 < value <= 1 << 20,
    "sizing": lambda value: value in ("any", "multiple", "fixed"),
    "sized": lambda value: isinstance(value, bool),
    "batch_normed": lambda value: isinstance(value, bool),
}
