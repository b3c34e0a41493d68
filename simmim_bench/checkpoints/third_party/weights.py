"""Hold a third-party file's weights under simmim-bench's names, and infer what every family has in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.models.archs import ARCHS
from simmim_bench.models.spec import LARGEST_GRID, MOST_BLOCKS, MOST_STAGES, BackboneSpec, Form

LARGEST_SIDE = 1 << 16  # pixels or tokens of a size in a configuration


@dataclass(frozen=True)
class RenamedWeights:
    """A third-party file's weights under simmim-bench's names, before the spec is known.

    Attributes:
        method: name of the pretraining method, or "weights" if the file does not show it.
        family: as in `BackboneSpec`.
        state: weights by simmim-bench's names.
        unread: names of entries that no backbone has.
        windows: window size of every Swin stage whose buffers show it.
        scales: window size that scales the position bias of every Swin V2 stage whose buffers show it.
        heads: attention heads of a ViT, if a configuration specifies them.
        openmmlab: whether the names are OpenMMLab's, whose ViTs of a width have other heads than official code's.
    """

    method: str
    family: str
    state: StateDict
    unread: list[str]
    windows: dict[int, int]
    scales: dict[int, int] = field(default_factory=dict)
    heads: int | None = None
    openmmlab: bool = False


def as_grid(side: int) -> int:
    """Return the side of a position table.

    Raises:
        ValueError: it is larger than any backbone's.
    """
    if side > LARGEST_GRID:
        raise ValueError(f"a position table of {side:,} tokens on a side, more than {LARGEST_GRID}")
    return side


def as_pair(size: Any) -> tuple[int, int]:
    """Return (H, W) of a size that is a pair or one number.

    Raises:
        ValueError: the size is neither.
    """
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and 0 <= side <= LARGEST_SIDE for side in pair):
        raise ValueError(f"{ascii(size)[:80]} is not a size of an image or a window")
    return pair


def stage_depths(state: StateDict, pattern: str) -> tuple[int, ...]:
    """Count the blocks of every stage.

    Args:
        pattern: regular expression for parameter names; its groups are the stage and block number.
    """
    found = [m for key in state if (m := re.match(pattern, key)) is not None]
    stages = sorted({int(match[1]) for match in found})
    if len(stages) > MOST_STAGES:
        raise ValueError(f"it has {len(stages):,} stages, more than {MOST_STAGES}")
    return tuple(_count({int(m[2]) for m in found if int(m[1]) == stage}) for stage in stages)


def count_blocks(state: StateDict, pattern: str) -> int:
    """Count the blocks of a network without stages.

    Args:
        pattern: regular expression for parameter names; its group is the block number.
    """
    return _count({int(m[1]) for key in state if (m := re.match(pattern, key)) is not None})


def _count(numbers: set[int]) -> int:
    """Return the number of blocks with these numbers.

    Raises:
        ValueError: a number is larger than any backbone's.
    """
    if max(numbers) >= MOST_BLOCKS:
        raise ValueError(f"it numbers a block {max(numbers):,}, more than {MOST_BLOCKS:,} blocks")
    return 1 + max(numbers)


def known_archs(family: str, dim: int, depths: tuple[int, ...]) -> list[BackboneSpec]:
    """Return the specs of `ARCHS` with this family, width and depths."""
    wanted = (family, dim, depths)
    return [s for s in ARCHS.values() if (s.family, s.embed_dim, s.depths) == wanted]


def infer_form(state: StateDict) -> Form:
    """Return "pretrain" if the weights include SimMIM's mask token or head, else "transfer"."""
    return "pretrain" if "decoder.weight" in state or "mask_token" in state else "transfer"


def config_entries(config: Any) -> dict[str, Any]:
    """Return the entries of a configuration, which may be an `argparse.Namespace`; empty for anything else."""
    return dict(config) if isinstance(config, Mapping) else {}


def as_values(values: Any) -> tuple[float, ...] | None:
    """Return a configuration's values per channel, a list or one number for three channels; None for anything else."""
    if isinstance(values, int | float):
        return (float(values),) * 3
    if isinstance(values, list | tuple) and all(isinstance(v, int | float) for v in values[:99]):
        return tuple(map(float, values[:99])) or None
    return None


def table_of(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the dictionary that a configuration holds under a key; an empty one if it holds something else."""
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}
