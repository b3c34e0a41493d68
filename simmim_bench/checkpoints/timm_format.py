"""Convert a backbone's spec and weights to timm's models, arguments and parameter names.

timm's parameter names equal simmim-bench's except for a ViT, whose key bias is zero here and whose position
bias tables are in `attn`, and for some names of convolutional networks.
"""

from __future__ import annotations

from typing import Any

import torch

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.errors import UsageError
from simmim_bench.models.build import Backbone
from simmim_bench.models.convnet import TIMM_STEM_STRIDE, bottleneck_channels, name_to_timm
from simmim_bench.models.position_bias import BIAS_TABLE
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.models.vit import sincos_position


def timm_arguments(spec: BackboneSpec) -> tuple[str, dict[str, Any]]:
    """Return the name of the timm model of a spec, and the arguments that differ from the model's defaults.

    Raises:
        UsageError: timm does not implement the stem stride of a convolutional network.
    """
    if spec.is_convolutional:
        return _convnet_arguments(spec)
    arguments: dict[str, Any] = {
        "img_size": list(spec.img_size),
        "patch_size": spec.patch_size,
        "in_chans": spec.in_chans,
        "embed_dim": spec.embed_dim,
        "mlp_ratio": spec.mlp_ratio,
        "global_pool": "avg",
    }
    if spec.family != "vit":
        return _swin_arguments(spec, arguments)
    arguments |= {
        "depth": spec.depths[0],
        "num_heads": spec.num_heads[0],
        "init_values": spec.init_values or 0.0,  # None means timm's default
    }
    if _is_plain_vit(spec):
        return "vit_base_patch16_224", arguments
    return "beit_base_patch16_224", {
        **arguments,
        "use_rel_pos_bias": spec.rel_pos_bias,
        "use_abs_pos_emb": spec.abs_pos_embed or spec.sincos_position,
    }


def _swin_arguments(spec: BackboneSpec, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    arguments = arguments | {
        "depths": list(spec.depths),
        "num_heads": list(spec.num_heads),
        "window_size": spec.window_size,
    }
    if spec.pretrained_windows:
        arguments["pretrained_window_sizes"] = [list(w) for w in spec.pretrained_windows]
    if spec.family == "swinv2":
        return "swinv2_base_window8_256", arguments
    return "swin_base_patch4_window7_224", arguments


def _convnet_arguments(spec: BackboneSpec) -> tuple[str, dict[str, Any]]:
    if spec.patch_size != TIMM_STEM_STRIDE:
        raise UsageError(
            f"{spec.arch} has a stem of stride {spec.patch_size}, but timm's {spec.family} has stride "
            f"{TIMM_STEM_STRIDE}; use --to native, detectron2 or mmseg."
        )
    arguments: dict[str, Any] = {"in_chans": spec.in_chans}
    if spec.family == "resnet":
        sizes = {"layers": list(spec.depths), "channels": list(bottleneck_channels(spec))}
        return "resnet50", arguments | sizes
    return "convnext_base", arguments | {
        "depths": list(spec.depths),
        "dims": [level.channels for level in spec.feature_levels],
        "ls_init_value": spec.init_values,
    }


def _is_plain_vit(spec: BackboneSpec) -> bool:
    """Return whether timm's `VisionTransformer`, rather than its `Beit`, implements a ViT."""
    return spec.family == "vit" and not spec.rel_pos_bias and not spec.sincos_position


def to_timm(model: Backbone) -> StateDict:
    """Return a backbone's weights with timm's parameter names."""
    spec = model.spec
    plain_vit = _is_plain_vit(spec)
    state: StateDict = {}
    for name, value in model.state_dict().items():
        if spec.is_convolutional:
            name = name_to_timm(name, spec.family)
        elif spec.family != "vit":
            name = f"head.fc.{name.removeprefix('head.')}" if name.startswith("head.") else name
        else:
            name = name.replace(f"rel_pos_bias.{BIAS_TABLE}", f"attn.{BIAS_TABLE}")
        if plain_vit and name.endswith(("gamma_1", "gamma_2")):
            name = f"{name.removesuffix(name[-7:])}ls{name[-1]}.gamma"
        state[name] = value
    if plain_vit:
        for i in range(spec.depths[0]):
            stem = f"blocks.{i}.attn."
            query, values = state.pop(f"{stem}q_bias"), state.pop(f"{stem}v_bias")
            state[f"{stem}qkv.bias"] = torch.cat([query, torch.zeros_like(query), values])
    if spec.sincos_position:
        patches = sincos_position(spec.grid, spec.embed_dim).flatten(0, 1)
        state["pos_embed"] = torch.cat([torch.zeros_like(patches[:1]), patches])[None]
    return state
