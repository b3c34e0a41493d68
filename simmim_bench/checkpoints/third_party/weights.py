"""Hold a third-party file's weights under simmim-bench's names, and infer what every family has in common."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.models.archs import ARCHS, BackboneSpec, Form


@dataclass(frozen=True)
class RenamedWeights:
    """A third-party file's weights under simmim-bench's names, before the spec is known.

    Attributes:
        method: name of the pretraining method, or "weights" if the file does not show it.
        family: as in `BackboneSpec`.
        state: weights by simmim-bench's names.
        unread: names of entries that no backbone has.
        windows: window size of every Swin stage whose buffers show it.
        heads: attention heads of a ViT, if a configuration specifies them.
    """

    method: str
    family: str
    state: StateDict
    unread: list[str]
    windows: dict[int, int]
    heads: int | None = None


def as_pair(size: Any) -> tuple[int, int]:
    """Return (H, W) of a size that is a pair or one number."""
    return (size[0], size[1]) if isinstance(size, list | tuple) else (size, size)


def stage_depths(state: StateDict, pattern: str) -> tuple[int, ...]:
    """Count the blocks of every stage.

    Args:
        pattern: regular expression for parameter names; its groups are the stage and block number.
    """
    found = [m for key in state if (m := re.match(pattern, key)) is not None]
    blocks: dict[int, int] = {}
    for match in found:
        stage, block = int(match[1]), int(match[2])
        blocks[stage] = max(blocks.get(stage, 0), block + 1)
    return tuple(blocks[stage] for stage in sorted(blocks))


def known_archs(family: str, dim: int, depths: tuple[int, ...]) -> list[BackboneSpec]:
    """Return the specs of `ARCHS` with this family, width and depths."""
    wanted = (family, dim, depths)
    return [s for s in ARCHS.values() if (s.family, s.embed_dim, s.depths) == wanted]


def infer_form(state: StateDict) -> Form:
    """Return "pretrain" if the weights include SimMIM's mask token or head, else "transfer"."""
    return "pretrain" if "decoder.weight" in state or "mask_token" in state else "transfer"
