"""Normalise feature maps with new weights, where a protocol has a LayerNorm per feature level.

Legend: B batch, C channels, (h, w) cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from simmim_bench.models.spec import BackboneSpec


def build_map_norms(spec: BackboneSpec, eps: float) -> nn.ModuleList:
    """Build one LayerNorm per feature level for the map norm "affine"; an empty list for any other."""
    levels = spec.feature_levels if spec.map_norm == "affine" else ()
    return nn.ModuleList(nn.LayerNorm(level.channels, eps=eps) for level in levels)


def normalise_maps(norms: nn.ModuleList, levels: Sequence[Tensor]) -> list[Tensor]:
    """Normalise the levels (B, h, w, C) by their norms, if there are any, and return maps (B, C, h, w)."""
    normed = [norm(x) for norm, x in zip(norms, levels, strict=True)] if len(norms) else levels
    return [x.permute(0, 3, 1, 2).contiguous() for x in normed]
