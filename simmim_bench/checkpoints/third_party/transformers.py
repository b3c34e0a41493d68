"""Rename the weights of a ViT of the library transformers, and check its configuration.

Its ViT, DeiT, ViT-MAE and ViT-MSN have the same encoder, whose queries, keys and values are separate layers.
Checkpoints have the names of version 4; models of version 5 have shorter ones in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.checkpoints.load import shorten
from simmim_bench.checkpoints.third_party.statistics import PixelStatistics, statistics_of
from simmim_bench.errors import DataError
from simmim_bench.untrusted.json_text import read_json

MODEL_TYPES = ("vit", "vit_mae", "vit_msn")
# Parts of parameter names: (those of versions 4 and 5 as regular expression, timm's).
NAMES = (
    (r"^encoder\.layer\.|^layers\.", "blocks."),
    (r"attention\.attention\.(query|key|value)\.", r"attn.\1."),
    (r"attention\.q_proj\.", "attn.query."),
    (r"attention\.k_proj\.", "attn.key."),
    (r"attention\.v_proj\.", "attn.value."),
    (r"attention\.(output\.dense|o_proj)\.", "attn.proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"(?<!attention\.)output\.dense\.", "mlp.fc2."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"^layernorm\.", "norm."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
)
# simmim-bench's is 1e-6, as in the original code of ViT, MAE and DeiT; transformers has 1e-12 for the same weights.
LARGEST_EPSILON = 1e-5
NOT_NEEDED = ("pooler.", "classifier.", "embeddings.mask_token")


def from_transformers(state: StateDict) -> tuple[StateDict, list[str]]:
    """Rename a ViT of transformers as timm's; return other weights unchanged.

    Returns:
        The weights, and the names of those that no encoder needs.
    """
    if "embeddings.patch_embeddings.projection.weight" not in state:
        return state, []
    renamed: StateDict = {}
    for key, value in state.items():
        name = key
        for theirs, ours in NAMES:
            name = re.sub(theirs, ours, name)
        renamed[name] = value
    dropped = [key for key in renamed if key.startswith(NOT_NEEDED)]
    renamed = {key: value for key, value in renamed.items() if key not in dropped}
    for key in [key for key in renamed if ".attn.query." in key]:
        parts = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            joined = torch.cat([renamed.pop(part) for part in parts])
            renamed[key.replace(".query.", ".qkv.")] = joined
    return renamed, dropped


def check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Check that the configuration of a folder of transformers describes an encoder that is computed as timm's.

    Raises:
        DataError: The model is of another type, or has another activation or normalisation.
    """
    kind, activation = config.get("model_type"), config.get("hidden_act", "gelu")
    if kind not in MODEL_TYPES:
        raise DataError(
            f"{folder} holds transformers' model of type {shorten([str(kind)])}, of which simmim-bench reads "
            f"{', '.join(MODEL_TYPES)}; use timm's or the official file of these weights."
        )
    if activation != "gelu":
        raise DataError(
            f"{folder} has hidden_act {shorten([str(activation)])}, but simmim-bench's ViT has gelu; use another model."
        )
    epsilon = config.get("layer_norm_eps")
    if isinstance(epsilon, float) and epsilon > LARGEST_EPSILON:
        raise DataError(
            f"{folder} has layer_norm_eps {epsilon}, but simmim-bench's ViT has 1e-6; use "
            "another model."
        )


def configured_pixels(folder: Path) -> PixelStatistics | None:
    """Return the normalisation of a folder's `preprocessor_config.json`; None if it has none.

    Raises:
        DataError: The file cannot be read.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    config = read_json(path, "transformers' configuration")
    if not isinstance(config, dict):
        return None
    if not config.get("do_normalize", True):
        return PixelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return statistics_of(config.get("image_mean"), config.get("image_std"))
