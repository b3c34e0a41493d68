"""Rename the weights of a third-party ViT, and infer its spec from their shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.checkpoints.third_party.weights import (
    RenamedWeights,
    as_grid,
    config_entries,
    count_blocks,
)
from simmim_bench.models.archs import ARCHS
from simmim_bench.models.position_bias import BIAS_TABLE, CLASS_TOKEN_ROWS
from simmim_bench.models.spec import BackboneSpec, Form

# Attention heads by width of the models of a method's official code. Without position table, no weight's shape depends
# on the heads, and other code has others: solo-learn's MAE and MoCo v3 of width 192, MMPretrain's `small` of width 768.
METHOD_HEADS = {
    "MAE": {768: 12, 1024: 16, 1280: 16},  # models_mae.py, lines 223-244
    "MoCo v3": {384: 12, 768: 12},  # vits.py, `vit_small` and `vit_base`
    "DINOv2": {
        384: 6,
        768: 12,
        1024: 16,
        1536: 24,
    },  # dinov2/models/vision_transformer.py, `vit_small` and the like
}
# Width and heads of the models that DINO, iBOT, MAE and DeiT name `vit_small`, `mae_vit_base_patch16` and the like
# (DINO: vision_transformer.py, lines 236-255).
NAMED_SIZES = {
    "tiny": (192, 3),
    "small": (384, 6),
    "base": (768, 12),
    "large": (1024, 16),
    "huge": (1280, 16),
}
ASSUMED_METHODS = (
    "weights",
    "DINO",
    "iBOT",
)  # files without a sign of other code than the published ViTs'
NAMED_VIT = rf"(?:mae_)?(?:vit|deit)_({'|'.join(NAMED_SIZES)})(?:_patch|$)"
DEFAULT_SIDE = 224  # pixels
UNKNOWN_HEADS = 1  # no published ViT has one head


def from_vit_names(state: StateDict) -> tuple[StateDict, list[str]]:
    """Rename a ViT's weights and split its attention bias into query and value bias.

    Returns:
        The renamed weights, and the names of the dropped key biases.
    """
    renamed: StateDict = {}
    dropped = []
    for key, value in state.items():
        key = re.sub(
            r"^blocks\.\d+\.(?=\d+\.)", "blocks.", key
        )  # DINOv2's chunks number blocks as without chunks
        key = key.replace(f"attn.{BIAS_TABLE}", f"rel_pos_bias.{BIAS_TABLE}")
        key = key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
        if key.endswith("attn.qkv.bias"):
            stem = key.removesuffix("qkv.bias")
            query, _, values = value.chunk(3)
            renamed[f"{stem}q_bias"], renamed[f"{stem}v_bias"] = query.clone(), values.clone()
            dropped.append(f"{stem}k_bias")
        else:
            renamed[key] = value
    return renamed, dropped


def vit_spec(
    renamed: RenamedWeights, img_size: tuple[int, int] | None, window_size: int | None
) -> tuple[BackboneSpec, Form]:
    """Infer the spec and form of a ViT; `window_size` is unused.

    A position embedding without class token gets a zero row for it in `renamed.state`.

    Heads that are unknown are `UNKNOWN_HEADS`: the weights are checked first, whose shapes do not depend on them.

    Raises:
        ValueError: The heads contradict the weights, or the grid cannot be inferred.
    """
    state = renamed.state
    kernel = state["patch_embed.proj.weight"]
    dim, in_chans, patch = kernel.shape[0], kernel.shape[1], kernel.shape[2]
    depth = count_blocks(state, r"blocks\.(\d+)\.")
    own_table = f"blocks.0.rel_pos_bias.{BIAS_TABLE}"
    shared = state.get(f"rel_pos_bias.{BIAS_TABLE}")
    table = shared if shared is not None else state.get(own_table)
    known = [s for s in ARCHS.values() if (s.embed_dim, s.depths) == (dim, (depth,))]
    if table is not None:
        heads = table.shape[1]
        if renamed.heads not in (None, heads):
            raise ValueError(
                f"its position tables have {heads} attention heads, not {renamed.heads}"
            )
    else:
        heads = renamed.heads or published_heads(renamed) or UNKNOWN_HEADS
    if dim % heads:
        raise ValueError(f"its width {dim} is not a multiple of {heads} attention heads")
    transfer = own_table in state or "norm.weight" not in state
    if img_size is None:
        side = _grid_side(state, table, patch)
        img_size = (side * patch, side * patch)
    position = state.get("pos_embed")
    if position is not None and position.shape[1] == math.prod(s // patch for s in img_size):
        # timm's "no_embed_class": the class token has no position embedding.
        state["pos_embed"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    spec = BackboneSpec(
        arch=known[0].arch if known else f"vit_{dim}x{depth}",
        family="vit",
        img_size=img_size,
        patch_size=patch,
        embed_dim=dim,
        depths=(depth,),
        num_heads=(heads,),
        in_chans=in_chans,
        mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / dim,
        init_values=0.1 if "blocks.0.gamma_1" in state else None,
        rel_pos_bias=table is not None,
        abs_pos_embed=position is not None,
        narrow_init=True,  # of a new head: SimMIM, BEiT and MAE fine-tune with it
    )
    return spec, "transfer" if transfer else "pretrain"


def published_heads(renamed: RenamedWeights) -> int | None:
    """Return the attention heads of the published ViTs of this width, which are assumed with a warning.

    None where there are none, or where the method or the names show other code.
    """
    if renamed.openmmlab or renamed.method not in ASSUMED_METHODS:
        return None
    return dict(NAMED_SIZES.values()).get(len(renamed.state["patch_embed.proj.weight"]))


def recorded_heads(rest: Mapping[str, Any], method: str, state: StateDict) -> int | None:
    """Return the attention heads that the training code is known to have; None if it is unknown.

    Args:
        rest: entries of the file beside the weights. MAE, DINO and DeiT save `args`.
        method: pretraining method of the file.
        state: weights by simmim-bench's names.
    """
    dim = len(state["patch_embed.proj.weight"])
    if method == "MoCo v3" or dim in METHOD_HEADS.get(method, {}):
        return METHOD_HEADS[method].get(dim)
    args = config_entries(rest.get("args"))
    for name in (args.get("arch"), args.get("model")):
        size = re.match(NAMED_VIT, name) if isinstance(name, str) else None
        if size is not None and NAMED_SIZES[size[1]][0] == dim:
            return NAMED_SIZES[size[1]][1]
    return None


def fixed_position(position: Tensor) -> str | None:
    """Return whose fixed sine-cosine embedding (1, 1 + L, C) of a square grid this is, "MAE" or "MoCo v3".

    Both concatenate sines and cosines of the two coordinates; MAE begins with the column (util/pos_embed.py), MoCo v3
    with the row (vits.py, `build_2d_sincos_position_embedding`).
    """
    patches, dim = position[0, 1:].float(), position.shape[2]
    side = math.isqrt(len(patches))
    if dim % 4 or side < 2 or side**2 != len(patches) or position[0, 0].any():
        return None
    frequencies = 1 / 10000 ** (torch.arange(dim // 4) / (dim // 4))
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = waves.repeat_interleave(side, 0), waves.repeat(side, 1)
    for method, halves in (("MAE", (columns, rows)), ("MoCo v3", (rows, columns))):
        if torch.allclose(patches, torch.cat(halves, 1), atol=2e-3):  # half precision
            return method
    return None


def _grid_side(state: StateDict, table: Tensor | None, patch: int) -> int:
    """Infer the side of the square patch grid from the position table or the position embedding."""
    if table is not None:
        side = (math.isqrt(len(table) - CLASS_TOKEN_ROWS) + 1) // 2
        if (2 * side - 1) ** 2 + CLASS_TOKEN_ROWS != len(table):
            raise ValueError(f"a position table of {len(table)} rows does not fit a square grid")
        return as_grid(side)
    if "pos_embed" in state:
        tokens = state["pos_embed"].shape[1]
        side = math.isqrt(tokens)
        if tokens - side**2 not in (0, 1):
            raise ValueError(f"a position embedding of {tokens} tokens does not fit a square grid")
        return side
    return DEFAULT_SIDE // patch
