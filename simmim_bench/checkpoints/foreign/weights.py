"""A third-party file's weights under our names, and what can be read off them for every family."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from simmim_bench.models.archs import ARCHS, BackboneSpec
from simmim_bench.models.vit import Form

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Renamed:
    """A foreign file's weights under our names, before its spec is known."""

    method: str
    family: str
    state: StateDict
    unread: list[str]
    windows: dict[int, int]  # of a Swin's stages, as far as its buffers tell
    heads: int | None = None  # of a ViT, where a configuration tells


def as_pair(size: Any) -> tuple[int, int]:
    return (size[0], size[1]) if isinstance(size, list | tuple) else (size, size)


def stage_depths(state: StateDict, pattern: str) -> tuple[int, ...]:
    """Count the blocks of every stage, whose number and block a pattern finds in a name."""
    found = [m for key in state if (m := re.match(pattern, key)) is not None]
    blocks: dict[int, int] = {}
    for match in found:
        stage, block = int(match[1]), int(match[2])
        blocks[stage] = max(blocks.get(stage, 0), block + 1)
    return tuple(blocks[stage] for stage in sorted(blocks))


def known_archs(family: str, dim: int, depths: tuple[int, ...]) -> list[BackboneSpec]:
    """Give the archs of a family that have these sizes."""
    wanted = (family, dim, depths)
    return [s for s in ARCHS.values() if (s.family, s.embed_dim, s.depths) == wanted]


def form_of(state: StateDict) -> Form:
    return "pretrain" if "decoder.weight" in state or "mask_token" in state else "transfer"
