"""A third-party Swin or Swin V2: its names, and its spec from the shapes of its weights."""

from __future__ import annotations

import math
import re

from torch import Tensor

from simmim_bench.checkpoints.foreign.weights import (
    Renamed,
    StateDict,
    form_of,
    known_archs,
    stage_depths,
)
from simmim_bench.models.archs import BackboneSpec
from simmim_bench.models.build import TABLE
from simmim_bench.models.vit import Form


def from_swin_names(state: StateDict) -> StateDict:
    """Move each downsampling from the end of a stage, as official files have it, to the next one's start."""
    if "layers.0.downsample.reduction.weight" not in state:
        return state  # timm's
    return {shift_downsample(key, 1): value for key, value in state.items()}


def shift_downsample(name: str, by: int) -> str:
    """Count a downsampling with the stage `by` further on."""
    pattern = r"^layers\.(\d+)\.downsample\."
    return re.sub(pattern, lambda m: f"layers.{int(m[1]) + by}.downsample.", name)


OPENMMLAB = (
    ("patch_embed.projection.", "patch_embed.proj."),
    ("stages.", "layers."),
    ("attn.w_msa.", "attn."),
    ("ffn.layers.0.0.", "mlp.fc1."),
    ("ffn.layers.1.", "mlp.fc2."),
)


def from_openmmlab(state: StateDict) -> StateDict:
    """Rename a Swin of MMPretrain or MMSegmentation, and put its merged channels into the official order.

    Its PatchMerging unfolds (mmpretrain/models/utils/embed.py): channel by channel, four pixels each, in
    the order of reading; the official one has pixel by pixel, in the order of columns.
    """
    renamed: StateDict = {}
    for key, value in state.items():
        inner = key.startswith("backbone.") or not re.match(r"(neck|head)\.", key)
        new = key.removeprefix("backbone.").replace("neck.decoder.0.", "decoder.0.")
        for theirs, ours in OPENMMLAB:
            new = new.replace(theirs, ours)
        if inner and "downsample.reduction" in new:
            value = official_merging_order(value)
        elif inner and "downsample.norm" in new:
            value = official_merging_order(value[None])[0]
        renamed[new] = value
    stages = {int(m[1]) for k in renamed if (m := re.match(r"layers\.(\d+)\.", k))}
    last = f"norm{max(stages)}."
    renamed = {k.replace(last, "norm.") if k.startswith(last) else k: v for k, v in renamed.items()}
    return {k: v for k, v in renamed.items() if not re.match(r"norm\d\.", k)}


def official_merging_order(weight: Tensor) -> Tensor:
    """Reorder the inputs (O, 4C) of a patch merging from OpenMMLab's order to the official one."""
    by_pixel = weight.unflatten(1, (-1, 4)).transpose(1, 2)[:, [0, 2, 1, 3]]
    return by_pixel.flatten(1).contiguous()


def openmmlab_merging_order(weight: Tensor) -> Tensor:
    """Undo `official_merging_order`."""
    by_channel = weight.unflatten(1, (4, -1))[:, [0, 2, 1, 3]].transpose(1, 2)
    return by_channel.flatten(1).contiguous()


def swin_spec(
    renamed: Renamed, img_size: tuple[int, int] | None, window_size: int | None
) -> tuple[BackboneSpec, Form]:
    """Read a Swin's sizes off its weights; the window of a Swin V2 is in its buffers only."""
    state = renamed.state
    kernel = state["patch_embed.proj.weight"]
    dim, in_chans, patch = kernel.shape[0], kernel.shape[1], kernel.shape[2]
    depths = stage_depths(state, r"layers\.(\d+)\.blocks\.(\d+)\.")
    tables = [state.get(f"layers.{i}.blocks.0.attn.{TABLE}") for i in range(len(depths))]
    heads = []
    for i, table in enumerate(tables):
        scale = state.get(f"layers.{i}.blocks.0.attn.logit_scale")
        heads.append(
            table.shape[1] if table is not None else len(scale if scale is not None else ())
        )
    windows = [
        renamed.windows.get(i, 0) if t is None else (math.isqrt(len(t)) + 1) // 2
        for i, t in enumerate(tables)
    ]
    window = window_size or windows[0]
    known = known_archs(renamed.family, dim, depths)
    if not window and known:
        window = known[0].window_size
    if img_size is None:
        # The last stage's window is its whole map, or the same as the first's: in every published Swin.
        side = windows[-1] or (known[0].grid[0] // 2 ** (len(depths) - 1) if known else window)
        img_size = (side * patch * 2 ** (len(depths) - 1),) * 2
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
    return spec, form_of(state)
