"""Rename the weights of the library transformers: its ViT, ViT-MAE, ViT-MSN, DINOv2, BEiT, Swin and Swin V2.

Its files have the names of version 4, also those that version 5 writes; models of version 5 have shorter names in
memory. Queries, keys and values are separate layers.
"""

from __future__ import annotations

import re

import torch

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.models.position_bias import BIAS_TABLE

STEM = "embeddings.patch_embeddings.projection.weight"
# Weights of the first block, by which an encoder is found.
FIRST_BLOCKS = (
    "encoder.layer.0.attention.attention.query.weight",
    "layers.0.attention.q_proj.weight",
    "encoder.layers.0.blocks.0.attention.self.query.weight",
    "encoder.layers.0.blocks.0.attention.q_proj.weight",
)
# Heads that belong to an encoder beside them: SimMIM's (`...ForMaskedImageModeling`) and BEiT's, with the last norm.
HEADS = ("decoder.0.weight", "lm_head.weight")
# Parts of parameter names: (those of versions 4 and 5 as regular expression, timm's).
NAMES = (
    (r"^encoder\.layer\.|^layers\.", "blocks."),
    (r"^encoder\.layers\.", "layers."),
    (r"^(encoder\.relative_position_bias|shared_position_bias)\.", "rel_pos_bias."),
    (
        rf"attention\.((attention|self)\.)?(relative_position_bias\.)?{BIAS_TABLE}",
        f"attn.{BIAS_TABLE}",
    ),
    (r"attention\.(attention|self)\.(query|key|value)\.", r"attn.\2."),
    (r"attention\.q_proj\.", "attn.query."),
    (r"attention\.k_proj\.", "attn.key."),
    (r"attention\.v_proj\.", "attn.value."),
    (r"attention\.(output\.dense|o_proj)\.", "attn.proj."),
    (r"attention\.self\.(logit_scale|relative_coords_table)$", r"attn.\1"),
    (r"attention\.self\.continuous_position_bias_mlp\.", "attn.cpb_mlp."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"(?<!attention\.)output\.dense\.", "mlp.fc2."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"(lambda_|layer_scale)([12])(\.lambda1)?$", r"gamma_\2"),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),  # BEiT's
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
)
NOT_NEEDED = ("pooler.", "classifier.", "mask_token", "hidden_states_norms.")


def is_transformers(state: StateDict) -> bool:
    """Return whether the names of weights, which may have prefixes, are those of transformers."""
    return any(key == STEM or key.endswith(f".{STEM}") for key in state)


def from_transformers(state: StateDict) -> tuple[StateDict, list[str]]:
    """Rename the weights of transformers as timm's; return other weights unchanged.

    Returns:
        The weights, and the names of those that no encoder needs.
    """
    prefix = next((key.removesuffix(STEM) for key in state if key.endswith(STEM)), None)
    if prefix is None:
        return state, []
    renamed: StateDict = {}
    # Names without the prefix first: the last norm of `BeitForMaskedImageModeling`, unless its encoder has one, and the
    # blocks of version 5's `ViTMSNForImageClassification`, whose names are saved without it.
    for key in sorted(state, key=lambda key: key.startswith(prefix)):
        name = key.removeprefix(prefix)
        for theirs, ours in NAMES:
            name = re.sub(theirs, ours, name)
        renamed[name] = state[key]
    simmim = HEADS[0] in renamed and renamed.get("mask_token", torch.zeros(0)).ndim == 3
    dropped = [
        key
        for key in renamed
        if key.startswith(NOT_NEEDED) and not (simmim and key == "mask_token")
    ]
    renamed = {key: value for key, value in renamed.items() if key not in dropped}
    dropped += _join_attention(renamed)
    _copy_shared_bias(renamed)
    return renamed, dropped


def _join_attention(state: StateDict) -> list[str]:
    """Join queries, keys and values; a model without bias (`qkv_bias`) gets zeros.

    Returns:
        The names of the dropped key biases of a ViT, which the softmax ignores.
    """
    dropped: list[str] = []
    queries = [key for key in state if re.match(r"(blocks|layers)\..*\.attn\.query\.", key)]
    biased = any(key.endswith(".bias") for key in queries)
    for query in [key for key in queries if key.endswith(".weight")]:
        stem = query.removesuffix("query.weight")
        weights = [state.get(f"{stem}{part}.weight") for part in ("query", "key", "value")]
        found = [weight for weight in weights if weight is not None]
        if len(found) < 3:
            continue  # reported as missing
        state[f"{stem}qkv.weight"] = torch.cat(found)
        biases = {
            part: state.pop(f"{stem}{part}.bias", None if biased else torch.zeros(len(weight)))
            for part, weight in zip(("query", "key", "value"), found, strict=True)
        }
        for part in biases:
            del state[f"{stem}{part}.weight"]
        if stem.startswith("blocks.") or f"{stem}logit_scale" in state:
            if biases.pop("key") is not None and biased:
                dropped.append(f"{stem}k_bias")
            state |= {f"{stem}{k[0]}_bias": v for k, v in biases.items() if v is not None}
        elif all(bias is not None for bias in biases.values()):
            state[f"{stem}qkv.bias"] = torch.cat([b for b in biases.values() if b is not None])
    return dropped


def _copy_shared_bias(state: StateDict) -> None:
    """Copy a bias that all blocks share to every block of a BEiT that normalises its mean patch token.

    simmim-bench's ViT shares a bias in its pretraining form only, which has a last norm instead.
    """
    shared = f"rel_pos_bias.{BIAS_TABLE}"
    blocks = {m[0] for key in state if (m := re.match(r"blocks\.\d+\.", key)) is not None}
    own = {key for key in state if key.startswith("blocks.") and key.endswith(BIAS_TABLE)}
    if shared in state and "norm.weight" not in state and not own:
        table = state.pop(shared)
        state |= {f"{block}attn.{BIAS_TABLE}": table for block in sorted(blocks)}
