"""Rename the weights of a third-party ViT, and infer its spec from their shapes."""

from __future__ import annotations

import math

import torch

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.checkpoints.third_party.weights import RenamedWeights
from simmim_bench.models.archs import ARCHS, BackboneSpec, Form
from simmim_bench.models.position_bias import BIAS_TABLE, CLASS_TOKEN_ROWS

# Attention heads of the published ViTs by width. Without position table, no weight's shape depends on the heads.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
DEFAULT_SIDE = 224  # pixels


def from_vit_names(state: StateDict) -> tuple[StateDict, list[str]]:
    """Rename a ViT's weights and split its attention bias into query and value bias.

    Returns:
        The renamed weights, and the names of the dropped key biases.
    """
    renamed: StateDict = {}
    dropped = []
    for key, value in state.items():
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

    Raises:
        ValueError: The number of heads or the grid cannot be inferred.
    """
    state = renamed.state
    kernel = state["patch_embed.proj.weight"]
    dim, in_chans, patch = kernel.shape[0], kernel.shape[1], kernel.shape[2]
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    own_table = f"blocks.0.rel_pos_bias.{BIAS_TABLE}"
    shared = state.get(f"rel_pos_bias.{BIAS_TABLE}")
    table = shared if shared is not None else state.get(own_table)
    known = [s for s in ARCHS.values() if (s.embed_dim, s.depths) == (dim, (depth,))]
    if table is not None:
        heads = table.shape[1]
    else:
        heads = _heads_without_table(renamed, known, dim)
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


def _heads_without_table(renamed: RenamedWeights, known: list[BackboneSpec], dim: int) -> int:
    """Return the attention heads from the configuration, a known architecture or the width."""
    heads = renamed.heads or (known[0].num_heads[0] if known else HEADS.get(dim))
    if not heads:
        raise ValueError(
            f"the number of attention heads of a ViT of width {dim} cannot be inferred; use a timm folder "
            "with config.json"
        )
    return heads


def _grid_side(state: StateDict, table: torch.Tensor | None, patch: int) -> int:
    """Infer the side of the square patch grid from the position table or the position embedding."""
    if table is not None:
        side = (math.isqrt(len(table) - CLASS_TOKEN_ROWS) + 1) // 2
        if (2 * side - 1) ** 2 + CLASS_TOKEN_ROWS != len(table):
            raise ValueError(f"a position table of {len(table)} rows does not fit a square grid")
        return side
    if "pos_embed" in state:
        tokens = state["pos_embed"].shape[1]
        side = math.isqrt(tokens)
        if tokens - side**2 not in (0, 1):
            raise ValueError(f"a position embedding of {tokens} tokens does not fit a square grid")
        return side
    return DEFAULT_SIDE // patch
