"""Rename the weights of a third-party Swin or Swin V2, and infer its spec from their shapes."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from torch import Tensor

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.checkpoints.third_party.weights import (
    RenamedWeights,
    as_grid,
    infer_form,
    known_archs,
    stage_depths,
)
from simmim_bench.models.position_bias import BIAS_TABLE
from simmim_bench.models.spec import BackboneSpec, Form


class UnknownWindowError(Exception):
    """Report a Swin V2 whose file does not show its window: its position bias is a network's output."""


def pretrained_window(table: Tensor) -> int:
    """Return the window that a Swin V2's `relative_coords_table` (1, 2h - 1, 2w - 1, 2) was scaled with; 0 if unclear.

    The largest coordinate is log2(1 + 8 (w - 1) / (p - 1)) / 3 for a window w and a window p in pretraining
    (Swin-Transformer: models/swin_transformer_v2.py, `WindowAttention.__init__`).
    """
    window, largest = (table.shape[1] + 1) // 2, float(table.max())
    if window == 1 or largest <= 0:
        return 0
    return round(1 + 8 * (window - 1) / (2 ** (3 * largest) - 1))


def from_swin_names(state: StateDict) -> StateDict:
    """Rename every downsampling layer from the end of a stage, as in official files, to the next stage's start."""
    if "layers.0.downsample.reduction.weight" not in state:
        return state  # timm's names
    return {shift_downsample(key, 1): value for key, value in state.items()}


def shift_downsample(name: str, by: int) -> str:
    """Add `by` to the stage number in the name of a downsampling layer; return other names unchanged."""
    pattern = r"^layers\.(\d+)\.downsample\."
    return re.sub(pattern, lambda m: f"layers.{int(m[1]) + by}.downsample.", name)


def swin_spec(
    renamed: RenamedWeights, img_size: tuple[int, int] | None, window_size: int | None
) -> tuple[BackboneSpec, Form]:
    """Infer the spec and form of a Swin or Swin V2; only a Swin V2's buffers show its window."""
    state = renamed.state
    kernel = state["patch_embed.proj.weight"]
    dim, in_chans, patch = kernel.shape[0], kernel.shape[1], kernel.shape[2]
    depths = stage_depths(state, r"layers\.(\d+)\.blocks\.(\d+)\.")
    heads, windows = _heads_and_windows(renamed, len(depths))
    window = window_size or windows[0]
    known = known_archs(renamed.family, dim, depths)
    if window_size and windows[0] and windows[0] != window_size:
        raise ValueError(f"its tables have a window of {windows[0]}, not {window_size}")
    if not window or (img_size is None and not windows[-1]):
        raise UnknownWindowError
    if img_size is None:
        # In every published Swin, the last stage's window is its whole map or as large as the first stage's.
        img_size = (windows[-1] * patch * 2 ** (len(depths) - 1),) * 2
    spec = BackboneSpec(
        arch=known[0].arch if known else f"{renamed.family}_{dim}",
        family="swinv2" if renamed.family == "swinv2" else "swin",
        img_size=img_size,
        patch_size=patch,
        embed_dim=dim,
        depths=depths,
        num_heads=tuple(heads),
        window_size=window,
        in_chans=in_chans,
        mlp_ratio=len(state["layers.0.blocks.0.mlp.fc1.weight"]) / dim,
    )
    scales = tuple(renamed.scales.get(i, 0) for i in range(len(depths)))
    if all(scales) and scales != tuple(map(max, spec.stage_windows)):
        spec = replace(spec, pretrained_windows=tuple((scale, scale) for scale in scales))
    return spec, infer_form(state)


def _heads_and_windows(renamed: RenamedWeights, stages: int) -> tuple[list[int], list[int]]:
    """Return the heads and the window size of every stage; 0 for a window that no weight or buffer shows."""
    heads, windows = [], []
    for i in range(stages):
        attention = f"layers.{i}.blocks.0.attn."
        table = renamed.state.get(f"{attention}{BIAS_TABLE}")
        if table is not None:
            heads.append(table.shape[1])
            windows.append(as_grid((math.isqrt(len(table)) + 1) // 2))
        else:
            scale = renamed.state.get(f"{attention}logit_scale")
            heads.append(0 if scale is None else len(scale))
            windows.append(as_grid(renamed.windows.get(i, 0)))
    return heads, windows
