"""Rename the weights of OpenMMLab's ViT and Swin, and read the attention heads from the configuration beside them.

MMPretrain, MMSelfSup (now in MMPretrain) and MMSegmentation share the names. Their files hold the training
configuration as a text of Python, which is not executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.checkpoints.third_party.weights import table_of
from simmim_bench.errors import DataError

# Parts of a Swin's parameter names: (OpenMMLab's, the official ones).
OPENMMLAB_NAMES = (
    ("patch_embed.projection.", "patch_embed.proj."),
    ("stages.", "layers."),
    ("attn.w_msa.", "attn."),
    ("ffn.layers.0.0.", "mlp.fc1."),
    ("ffn.layers.1.", "mlp.fc2."),
)
# Parts of a ViT's parameter names: (OpenMMLab's as regular expression, timm's). MMSegmentation's attention is torch's.
VIT_NAMES = (
    (r"^layers\.", "blocks."),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.(ln|norm)([12])\.", r".norm\2."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"\.attn\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (
        r"\.(attn\.gamma1|ffn\.gamma2)\.weight$",
        lambda match: f".gamma_{match[1][-1]}",
    ),  # layer scale
    (r"^(ln|norm)1\.", "norm."),
    (r"^(ln|norm)2\.", "fc_norm."),  # of the mean patch token (`avg_featmap`)
)
FIRST_BLOCKS = (
    "stages.0.blocks.0.attn.w_msa.qkv.weight",
    "layers.0.attn.qkv.weight",
    "layers.0.attn.attn.in_proj_weight",
)
# Width and heads by `arch` (MMPretrain: models/backbones/vision_transformer.py and beit.py, `arch_zoo`; mocov3.py).
ARCHS = {
    **dict.fromkeys(("s", "small"), (768, 8)),
    **dict.fromkeys(("b", "base", "deit-b", "deit-base"), (768, 12)),
    **dict.fromkeys(("l", "large"), (1024, 16)),
    **dict.fromkeys(("h", "huge"), (1280, 16)),
    **dict.fromkeys(("deit-t", "deit-tiny"), (192, 3)),
    **dict.fromkeys(("deit-s", "deit-small", "dinov2-s", "dinov2-small"), (384, 6)),
    **dict.fromkeys(("mocov3-s", "mocov3-small"), (384, 12)),
}
LONGEST_CONFIG = 1 << 20  # characters that are searched


def is_openmmlab_vit(state: StateDict) -> bool:
    """Return whether weights without prefix are those of OpenMMLab's ViT or BEiT."""
    return "layers.0.ffn.layers.0.0.weight" in state


def is_openmmlab_swin(state: StateDict) -> bool:
    """Return whether weights, which may have prefixes, are those of OpenMMLab's Swin or Swin V2."""
    return any(".w_msa." in key for key in state)


def from_openmmlab_vit(state: StateDict) -> StateDict:
    """Rename the weights of OpenMMLab's ViT, MAE, MoCo v3 or BEiT as timm's."""
    renamed: StateDict = {}
    for key, value in state.items():
        name = key
        for theirs, ours in VIT_NAMES:
            name = re.sub(theirs, ours, name)
        renamed[name] = value
    kernel = renamed.get("patch_embed.proj.weight")
    if kernel is not None and FIRST_BLOCKS[-1] in state:
        # MMSegmentation's ViT has no bias there by default (`patch_bias`).
        renamed.setdefault("patch_embed.proj.bias", torch.zeros(len(kernel)))
    return renamed


def check_class_token(rest: Mapping[str, Any], name: str) -> None:
    """Check that the blocks of an OpenMMLab file's ViT have a class token, as far as its configuration shows.

    Raises:
        DataError: They have none; MMSegmentation's weights and position embedding have one nevertheless.
    """
    if re.search(r"\bwith_cls_token=False", _config(rest)):
        raise DataError(
            f"{name} was trained with with_cls_token=False, but simmim-bench's ViT has a class token; use another "
            "model."
        )


def configured_heads(rest: Mapping[str, Any], dim: int) -> int | None:
    """Return the attention heads that the configuration of an OpenMMLab file names; None if it names none.

    Args:
        rest: entries of the file beside the weights; `meta` has the configuration as a text.
        dim: width of the ViT.
    """
    found = set(re.findall(r"\barch='([\w-]{1,40})'", _config(rest)))
    heads = {ARCHS[arch][1] for arch in found if arch in ARCHS and ARCHS[arch][0] == dim}
    return heads.pop() if len(found) == len(heads) == 1 else None


def _config(rest: Mapping[str, Any]) -> str:
    """Return the start of the text of the training configuration; empty without."""
    config = table_of(rest, "meta").get("cfg")
    return config[:LONGEST_CONFIG] if isinstance(config, str) else ""


def from_openmmlab_swin(state: StateDict) -> StateDict:
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
