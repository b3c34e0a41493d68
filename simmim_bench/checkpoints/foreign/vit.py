"""A third-party ViT: its names, and its spec from the shapes of its weights."""

from __future__ import annotations

import math

import torch

from simmim_bench.checkpoints.foreign.weights import (
    Renamed,
    StateDict,
)
from simmim_bench.models.archs import ARCHS, BackboneSpec
from simmim_bench.models.build import TABLE
from simmim_bench.models.vit import Form

# Attention heads of the published ViTs by their width: no weight tells them where there is no position table.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}


def from_vit_names(state: StateDict) -> tuple[StateDict, list[str]]:
    """Rename a ViT's weights and take the key bias out; also gives what was dropped."""
    new: StateDict = {}
    dropped = []
    for key, value in state.items():
        key = key.replace(f"attn.{TABLE}", f"rel_pos_bias.{TABLE}")
        key = key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
        if key.endswith("attn.qkv.bias"):
            stem = key.removesuffix("qkv.bias")
            query, _, values = value.chunk(3)
            new[f"{stem}q_bias"], new[f"{stem}v_bias"] = query.clone(), values.clone()
            dropped.append(f"{stem}k_bias")
        else:
            new[key] = value
    return new, dropped


def vit_spec(
    renamed: Renamed, img_size: tuple[int, int] | None, window_size: int | None
) -> tuple[BackboneSpec, Form]:
    """Read a ViT's sizes off its weights."""
    state = renamed.state
    kernel = state["patch_embed.proj.weight"]
    dim, in_chans, patch = kernel.shape[0], kernel.shape[1], kernel.shape[2]
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    shared = state.get(f"rel_pos_bias.{TABLE}")
    table = shared if shared is not None else state.get(f"blocks.0.rel_pos_bias.{TABLE}")
    known = [s for s in ARCHS.values() if (s.embed_dim, s.depths) == (dim, (depth,))]
    if table is not None:
        heads = table.shape[1]
    else:
        named = known[0].num_heads[0] if known else HEADS.get(dim)
        if renamed.heads or named:
            heads = renamed.heads or int(named or 0)
        else:
            raise ValueError(
                f"nothing tells how many attention heads a ViT of width {dim} has; give a folder of timm's "
                "with config.json"
            )
    own_tables = f"blocks.0.rel_pos_bias.{TABLE}" in state
    form: Form = "transfer" if own_tables or "norm.weight" not in state else "pretrain"
    if img_size is None:
        if table is not None:
            side = (math.isqrt(len(table) - 3) + 1) // 2
            if (2 * side - 1) ** 2 + 3 != len(table):
                raise ValueError(f"a position table of {len(table)} rows is for no square grid")
        elif "pos_embed" in state:
            side = math.isqrt(state["pos_embed"].shape[1])
            if state["pos_embed"].shape[1] - side**2 not in (0, 1):
                raise ValueError("the position embedding is for no square grid")
        else:
            side = 224 // patch
        img_size = (side * patch, side * patch)
    position = state.get("pos_embed")
    if position is not None and position.shape[1] == math.prod(s // patch for s in img_size):
        # timm's "no_embed_class": the class token has no position.
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
        narrow_init=True,  # of a new head: SimMIM, BEiT and MAE fine-tune alike
    )
    return spec, form
