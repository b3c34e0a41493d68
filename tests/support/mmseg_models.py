"""MMSegmentation's installed configs, and our backbones' weights under the names of its backbones."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from simmim_bench.models.archs import ARCHS
from simmim_bench.models.build import Backbone
from simmim_bench.models.shapes import shapes_only
from simmim_bench.models.spec import BackboneSpec

# A ViT with a learned absolute position embedding alone, as MAE's.
PLAIN_VIT = {"rel_pos_bias": False, "abs_pos_embed": True, "init_values": None}


def official_config(path: str) -> Any:
    """Return a config of MMSegmentation's package by its path in `configs/`."""
    return copy.deepcopy(_read_config(path))


@functools.cache
def _read_config(path: str) -> Any:
    import mmseg
    from mmengine.config import Config

    file = Path(mmseg.__file__).parent / ".mim/configs" / path
    # ConvNeXt's config imports MMPretrain, which only its backbone needs.
    return Config.fromfile(file, import_custom_modules=False)


@contextmanager
def mmseg_scope() -> Iterator[None]:
    """Find names in MMSegmentation's registries within the block, as its Runner does."""
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def on(device: str) -> AbstractContextManager[Any]:
    """Build models on a device within the block; on the "meta" device, without initialisation."""
    return shapes_only() if device == "meta" else torch.device(device)


def build_official(config: Any, device: str = "cpu") -> Any:
    """Build a model, or a part of one, of MMSegmentation from its config."""
    from mmseg.registry import MODELS

    with mmseg_scope(), on(device):
        return MODELS.build(config)


def checkpoint_of(arch: str, **changes: Any) -> Checkpoint:
    """Return a checkpoint without weights of an architecture with some fields of its spec changed."""
    return Checkpoint(
        name=arch,
        spec=replace(ARCHS[arch], **changes),
        form="transfer",
        state=None,
        sha256="0",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": arch},
    )


_VIT_NAMES = (
    ("blocks.", "layers."),
    (".norm1.", ".ln1."),
    (".norm2.", ".ln2."),
    (".rel_pos_bias.", ".attn."),
    ("patch_embed.proj.", "patch_embed.projection."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
)
_SWIN_NAMES = (
    ("layers.", "stages."),
    ("patch_embed.proj.", "patch_embed.projection."),
    (".attn.", ".attn.w_msa."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
    ("map_norms.", "norm"),
)


def official_name(spec: BackboneSpec, name: str) -> str:
    """Return MMSegmentation's name of a parameter of our backbone; for a ConvNeXt, MMPretrain's."""
    if spec.family == "convnext":
        return _convnext_name(name)
    if spec.family == "swin" and ".downsample." in name:  # there at the end of the stage before
        stage = int(name.split(".")[1])
        name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.", 1)
    for ours, theirs in _VIT_NAMES if spec.family == "vit" else _SWIN_NAMES:
        name = name.replace(ours, theirs, 1)
    return name


def _convnext_name(name: str) -> str:
    if name.startswith("stem."):
        return name.replace("stem.", "downsample_layers.0.")
    if ".downsample." in name:
        return name.replace("stages.", "downsample_layers.").replace(".downsample.", ".")
    return name.replace(".blocks.", ".").replace("map_norms.", "norm")


def official_state(model: Backbone, *, key_bias: bool = False) -> dict[str, Tensor]:
    """Return the weights of our ViT or Swin under the names of MMSegmentation's MAE, BEiT or Swin.

    Args:
        key_bias: whether queries, keys and values have one bias, as in MAE's; the keys' has no effect.
    """
    spec, weights, state = model.spec, model.state_dict(), {}
    unused = ("fc_norm.", "head.", "norm.")
    for name, value in weights.items():
        if name.startswith(unused) or (key_bias and name.endswith("attn.v_bias")):
            continue
        theirs = official_name(spec, name)
        if key_bias and name.endswith("attn.q_bias"):
            values = weights[name.replace("q_bias", "v_bias")]
            value = torch.cat([value, torch.randn_like(value), values])
            theirs = theirs.replace("q_bias", "qkv.bias")
        if spec.family == "swin" and ".downsample." in name:
            value = _unfold_order(value)
        state[theirs] = value
    return state


def _unfold_order(weight: Tensor) -> Tensor:
    """Reorder the last dimension, four neighbours of C channels (column by column), as `nn.Unfold` has them."""
    neighbours = weight.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return neighbours.transpose(-1, -2).flatten(-2)


def module_with(parameters: dict[str, Tensor], kind: type[nn.Module]) -> nn.Module:
    """Build nested modules with parameters of the given names; the outermost is of type `kind`."""
    root = kind()
    for name, value in parameters.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(value))
    return root
