"""Write files for the backbones that Detectron2 and MMSegmentation bring themselves.

A project without simmim-bench loads such a `.pth`: a Swin into Detectron2's or MMSegmentation's `SwinTransformer`, a
ViT into MMSegmentation's `BEiT`. Detectron2 has no ViT with a position bias, and neither framework has a Swin V2:
their files are for our own adapters. Every file is loaded and its feature maps are compared with the checkpoint's.

The frameworks' Swins use whole windows, and shift them, also on maps smaller than a window, and learn one norm per
level (exported as an identity norm). The position tables are therefore written for a size at which no map is smaller
than a window. The feature maps of a Swin are compared at a size at which the windows divide no map.
"""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.util import find_spec as find_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint, StateDict, save_pickle
from simmim_bench.checkpoints.formats import ExportResult, Writer, maps_difference
from simmim_bench.checkpoints.third_party.openmmlab import OPENMMLAB_NAMES, openmmlab_merging_order
from simmim_bench.checkpoints.third_party.swin import shift_downsample
from simmim_bench.errors import MissingFrameworkError
from simmim_bench.models.build import Backbone
from simmim_bench.models.position_bias import BIAS_TABLE
from simmim_bench.models.spec import BackboneSpec


def write_detectron2(checkpoint: Checkpoint, path: Path) -> ExportResult:
    """Write a file for `MODEL.WEIGHTS` or `train.init_checkpoint`, and load it.

    Raises:
        MissingFrameworkError: Detectron2 is not installed.
    """
    _require("detectron2", "det")
    from detectron2.checkpoint import DetectionCheckpointer

    model = _load_for_dense_tasks(checkpoint)
    is_swin = model.spec.family == "swin"
    state = _swin_state(model) if is_swin else model.state_dict()
    # Detectron2's matching heuristics find these suffixes in a project's model, whatever its prefix is.
    prefix = "" if is_swin else "backbone."
    content: dict[str, Any] = {
        "model": {prefix + k: v for k, v in state.items()},
        "matching_heuristics": True,
        "__author__": "simmim-bench",
    }
    save_pickle(content, path)
    net: nn.Module
    if is_swin:
        net = _detectron2_swin(model.spec)
        usage = f"detectron2.modeling.backbone.swin.SwinTransformer, MODEL.WEIGHTS {path}"
    else:
        from transfer.detectron2_backbone import SimMIMBackbone

        net = SimMIMBackbone(replace(checkpoint, state=None, spec=model.spec), seed=1)
        usage = f"transfer.detectron2_backbone.SimMIMBackbone, MODEL.WEIGHTS {path}"
    holder = nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": net})})
    # Its public reader requires a file name that ends in .pth, unlike that of a temporary file.
    reader = DetectionCheckpointer(holder)
    reader._load_model(torch.load(path, map_location="cpu", weights_only=True))
    net.eval()
    difference = maps_difference(lambda x: net(x).values(), model, _probe_size(model.spec))
    return ExportResult(difference, usage)


def _detectron2_swin(spec: BackboneSpec) -> nn.Module:
    from detectron2.modeling.backbone.swin import SwinTransformer

    net: nn.Module = SwinTransformer(
        pretrain_img_size=spec.img_size[0],
        patch_size=spec.patch_size,
        in_chans=spec.in_chans,
        embed_dim=spec.embed_dim,
        depths=spec.depths,
        num_heads=spec.num_heads,
        window_size=spec.window_size,
        mlp_ratio=spec.mlp_ratio,
    )
    return net


def write_mmseg(checkpoint: Checkpoint, path: Path) -> ExportResult:
    """Write a file for `init_cfg=dict(type="Pretrained", checkpoint=FILE)` of a backbone, and load it.

    Raises:
        MissingFrameworkError: MMSegmentation is not installed.
    """
    _require("mmseg", "seg")
    # MMEngine prints the files that it loads, and warns of compiled operators that are not needed here.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        model = _load_for_dense_tasks(checkpoint)
        if model.spec.family == "swin":
            return _write_mmseg_swin(model, path)
        if _fits_beit(model.spec):
            return _write_mmseg_beit(model, path)
        return _write_mmseg_adapter(checkpoint, model, path)


def _write_mmseg_swin(model: Backbone, path: Path) -> ExportResult:
    """Write a Swin for MMSegmentation's `SwinTransformer`."""
    from mmseg.models.backbones import SwinTransformer

    spec = model.spec
    state: StateDict = {}
    for name, value in _swin_state(model).items():
        if "downsample.reduction" in name:
            value = openmmlab_merging_order(value)
        elif "downsample.norm" in name:
            value = openmmlab_merging_order(value[None])[0]
        state[_openmmlab_name(name)] = value
    save_pickle({"state_dict": state}, path)
    init = _init_cfg(path)
    net: Any = SwinTransformer(
        pretrain_img_size=spec.img_size[0],
        in_channels=spec.in_chans,
        embed_dims=spec.embed_dim,
        patch_size=spec.patch_size,
        window_size=spec.window_size,
        mlp_ratio=int(spec.mlp_ratio),
        depths=spec.depths,
        num_heads=spec.num_heads,
        strides=(spec.patch_size, *(2,) * (len(spec.depths) - 1)),
        out_indices=tuple(range(len(model.feature_levels))),
        init_cfg=init,
    )
    net.init_weights()
    net.eval()  # MMSegmentation's `eval` returns None
    usage = f"backbone=dict(type='SwinTransformer', ..., init_cfg={init})"
    return ExportResult(maps_difference(net, model, _probe_size(spec)), usage)


def _fits_beit(spec: BackboneSpec) -> bool:
    """Return whether MMSegmentation's BEiT computes the same: position bias, no windows, no embedding."""
    return (
        spec.family == "vit"
        and spec.rel_pos_bias
        and not spec.window_size
        and not (spec.abs_pos_embed or spec.sincos_position)
    )


def _write_mmseg_beit(model: Backbone, path: Path) -> ExportResult:
    """Write a ViT for MMSegmentation's `BEiT`."""
    from mmseg.models.backbones import BEiT

    spec = model.spec
    save_pickle({"state_dict": {_beit_name(k): v for k, v in model.state_dict().items()}}, path)
    blocks = sorted(
        set(spec.level_blocks)
    )  # with fewer than four blocks, two levels are the same block
    init = _init_cfg(path)
    beit = BEiT(
        img_size=spec.img_size,
        patch_size=spec.patch_size,
        in_channels=spec.in_chans,
        embed_dims=spec.embed_dim,
        num_layers=spec.depths[0],
        num_heads=spec.num_heads[0],
        mlp_ratio=int(spec.mlp_ratio),
        out_indices=[block - 1 for block in blocks],
        norm_cfg={"type": "LN", "eps": 1e-6},
        init_values=spec.init_values or 0.0,
        init_cfg=init,
    )
    beit.init_weights()
    beit.eval()
    forward: Any = beit.forward

    def normalised_maps(images: Tensor) -> list[Tensor]:
        """Normalise BEiT's raw maps without weights, as `forward_maps` normalises a ViT's."""
        raw = [x.permute(0, 2, 3, 1) for x in forward(images)]
        maps = [F.layer_norm(x, x.shape[-1:], eps=1e-6).permute(0, 3, 1, 2) for x in raw]
        return [maps[blocks.index(block)] for block in spec.level_blocks]

    usage = f"backbone=dict(type='BEiT', norm_cfg=dict(type='LN', eps=1e-6), ..., init_cfg={init})"
    return ExportResult(maps_difference(normalised_maps, model), usage)


def _write_mmseg_adapter(checkpoint: Checkpoint, model: Backbone, path: Path) -> ExportResult:
    """Write a backbone that MMSegmentation does not have for our own adapter."""
    from mmengine.runner import load_checkpoint

    from transfer.mmseg_backbone import SimMIMBackbone

    save_pickle({"state_dict": {f"backbone.{k}": v for k, v in model.state_dict().items()}}, path)
    adapter = SimMIMBackbone(replace(checkpoint, state=None, spec=model.spec), seed=1)
    load_checkpoint(adapter, str(path), map_location="cpu", strict=True)
    usage = f"mmengine.runner.load_checkpoint on type='SimMIMBackbone', {path}"
    return ExportResult(maps_difference(adapter.eval(), model), usage)


def _require(module: str, extra: str) -> None:
    if find_module(module) is None:
        raise MissingFrameworkError(
            f"{module} is not installed; the file is checked by loading it there. Install it with: "
            f"pip install 'simmim-bench[{extra}]' (see README, Installation)."
        )


def _init_cfg(path: Path) -> dict[str, str]:
    return {"type": "Pretrained", "checkpoint": str(path)}


def _load_for_dense_tasks(checkpoint: Checkpoint) -> Backbone:
    """Load a backbone; a Swin at a size at which its maps are larger than its windows."""
    spec = checkpoint.spec
    if spec.family != "swin":
        return load_backbone(checkpoint).eval()
    side = 2 * spec.window_size * spec.stride
    return load_backbone(checkpoint, (side, side)).eval()


def _probe_size(spec: BackboneSpec) -> tuple[int, int]:
    """Return the size at which maps are compared: for a Swin, every map is one token larger than whole windows."""
    height, width = spec.img_size
    padded = spec.patch_size if spec.family == "swin" else 0
    return height + padded, width + padded


def _swin_state(model: Backbone) -> StateDict:
    """Return a Swin's weights under the official names, with a norm for every level."""
    state: StateDict = {}
    last_norm = f"norm{len(model.spec.depths) - 1}."
    for name, value in model.state_dict().items():
        if name.startswith("norm."):
            state[last_norm + name.removeprefix("norm.")] = value
        else:
            state[shift_downsample(name, -1)] = value
    for stage, level in enumerate(model.feature_levels[:-1]):
        state[f"norm{stage}.weight"] = torch.ones(level.channels)
        state[f"norm{stage}.bias"] = torch.zeros(level.channels)
    return state


def _openmmlab_name(name: str) -> str:
    """Convert an official name of a Swin's weight to MMSegmentation's."""
    for theirs, ours in OPENMMLAB_NAMES:
        name = (
            name.replace(ours, theirs)
            if ours != "attn."
            else name.replace(".attn.", ".attn.w_msa.")
        )
    return name


def _beit_name(name: str) -> str:
    """Convert our name of a ViT's weight to that of MMSegmentation's BEiT."""
    name = name.replace("blocks.", "layers.").replace(
        "patch_embed.proj.", "patch_embed.projection."
    )
    name = name.replace(f"rel_pos_bias.{BIAS_TABLE}", f"attn.{BIAS_TABLE}")
    for theirs, ours in (("ln1.", "norm1."), ("ln2.", "norm2.")):
        name = name.replace(ours, theirs)
    return name.replace("mlp.fc1.", "ffn.layers.0.0.").replace("mlp.fc2.", "ffn.layers.1.")


WRITERS: dict[str, Writer] = {"detectron2": write_detectron2, "mmseg": write_mmseg}
