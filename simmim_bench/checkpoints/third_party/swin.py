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

# Parts of parameter names: (OpenMMLab's, the official ones).
OPENMMLAB_NAMES = (
    ("patch_embed.projection.", "patch_embed.proj."),
    ("stages.", "layers."),
    ("attn.w_msa.", "attn."),
    ("ffn.layers.0.0.", "mlp.fc1."),
    ("ffn.layers.1.", "mlp.fc2."),
)


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


def from_openmmlab(state: StateDict) -> StateDict:
    """Rename the weights of MMPretrain's or MMSegmentation's Swin, and reorder its merged channels.

    OpenMMLab's PatchMerging unfolds (mmpretrain/models/utils/embed.py): channel by channel, four pixels
    each, in row-major order. The official one concatenates pixel by pixel, in column-major order. A Swin V2
    normalises after the reduction (`use_post_norm`), whose outputs have the same order in both.
    """
    merged = {
        key.replace("reduction.weight", "norm"): value.shape[1]
        for key, value in state.items()
        if key.endswith("downsample.reduction.weight")
    }
    renamed: StateDict = {}
    for key, value in state.items():
        inner = key.startswith("backbone.") or not re.match(r"(neck|head)\.", key)
        name = key.removeprefix("backbone.").replace("neck.decoder.0.", "decoder.0.")
        for theirs, ours in OPENMMLAB_NAMES:
            name = name.replace(theirs, ours)
        if inner and "downsample.reduction" in name:
            value = official_merging_order(value)
        elif inner and len(value) == merged.get(key.rpartition(".")[0]):
            value = official_merging_order(value[None])[0]
        renamed[name] = value
    stages = {int(m[1]) for k in renamed if (m := re.match(r"layers\.(\d+)\.", k))}
    last = f"norm{max(stages)}."
    renamed = {k.replace(last, "norm.") if k.startswith(last) else k: v for k, v in renamed.items()}
    return {k: v for k, v in renamed.items() if not re.match(r"norm\d\.", k)}


def official_merging_order(weight: Tensor) -> Tensor:
    """Reorder the inputs (O, 4C) of a patch merging from OpenMMLab's order to the official one."""
    by_pixel = weight.unflatten(1, (-1, 4)).transpose(1, 2)[:, [0, 2, 1, 3]]
    return by_pixel.flatten(1).contiguous()


def openmmlab_merging_order(weight: Tensor) -> Tensor:
    """Invert `official_merging_order`."""
    by_channel = weight.unflatten(1, (4, -1))[:, [0, 2, 1, 3]].transpose(1, 2)
    return by_channel.flatten(1).contiguous()


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
