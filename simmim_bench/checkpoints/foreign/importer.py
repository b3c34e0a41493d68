"""Checkpoints of others: SimMIM's and Swin's official files, MAE, BEiT, timm, MMPretrain.

In: a weights file, a folder that timm wrote, or `timm:NAME`. Out: a `Checkpoint` in our names, its spec
read off the weights' shapes, and the names of what had no place. Each kind of file is a table of
renamings; what it leaves over must be on the list of what a backbone does not need, and every weight of
the backbone must be there in its shape: a file is read whole or refused.

Arithmetic that changes on the way: none for Swin but the order of the channels that MMPretrain merges.
A ViT's key bias is dropped: it adds the same number to all logits of a query, which softmax ignores.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from simmim_bench.checkpoints.foreign.convnet import CONVOLUTIONAL, convnext_spec, resnet_spec
from simmim_bench.checkpoints.foreign.swin import from_openmmlab, from_swin_names, swin_spec
from simmim_bench.checkpoints.foreign.vit import from_vit_names, vit_spec
from simmim_bench.checkpoints.foreign.weights import (
    Renamed,
    StateDict,
)
from simmim_bench.checkpoints.load import COUNTER, NEW_IN_TRANSFER
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.archs import BackboneSpec
from simmim_bench.models.build import build_backbone
from simmim_bench.models.convnet import name_of_timm
from simmim_bench.models.vit import Form

BEIT_MEAN = BEIT_STD = (0.5, 0.5, 0.5)  # timm: models/beit.py, and BEiT's datasets.py by default
# What files hold beside a backbone: buffers that are derived, and the heads of other tasks.
NOT_NEEDED = re.compile(
    r"relative_position_index|relative_coords_table|attn_mask|\.k_bias$"
    r"|^decoder_|^lm_head\.|^data_preprocessor\.|^(auxiliary|decode)_head\.|^target_generator\."
)


def import_state(
    state: StateDict,
    *,
    name: str,
    label: str,
    sha256: str,
    img_size: tuple[int, int] | None = None,
    window_size: int | None = None,
    num_heads: int | None = None,
    pretrained_windows: tuple[tuple[int, int], ...] = (),
    provenance: dict[str, Any] | None = None,
) -> Checkpoint:
    """Make a checkpoint of foreign weights.

    Args:
        state: tensors by their foreign names.
        img_size: (H, W) they are made for, where it is known; else it is read off the position tables,
            which must then be square.
        window_size, num_heads: of a Swin and of a ViT, where they are known.
        pretrained_windows: of a Swin V2 that was taken to another window.

    Raises:
        DataError: the weights are of no known kind, or not a whole backbone.
    """
    renamed = replace(_rename(state, name), heads=num_heads)
    try:
        spec, form = SPECS[renamed.family](renamed, img_size, window_size)
        spec = replace(spec, pretrained_windows=pretrained_windows)
    except (KeyError, IndexError, ValueError, UsageError) as error:
        raise DataError(
            f"{name} looks like {renamed.method}'s {renamed.family} but its sizes cannot be read off "
            f"({type(error).__name__}: {error}); is it whole?"
        ) from error
    ours, unread = _check_whole(renamed, spec, form, name)
    beit = renamed.method == "BEiT"
    found = {"method": renamed.method, **(provenance or {})}
    return Checkpoint(
        name=name,
        spec=spec,
        form=form,
        state=ours,
        sha256=sha256,
        mean=BEIT_MEAN if beit else IMAGENET_MEAN,
        std=BEIT_STD if beit else IMAGENET_STD,
        provenance={**found, "label": label},
        unread=tuple(sorted(unread)),
    )


def _rename(state: StateDict, name: str) -> Renamed:
    """Tell the kind of file by its names, and give them ours."""
    for wrapper in ("module.", "_orig_mod."):  # of DataParallel and torch.compile
        if all(k.startswith(wrapper) for k in state):
            state = {k.removeprefix(wrapper): v for k, v in state.items()}
    method = "SimMIM"
    unread: list[str] = []
    if any(".w_msa." in k for k in state):
        state = from_openmmlab(state)
    elif any(k.startswith("decoder_embed.") for k in state):
        method = "MAE"  # its mask token has the decoder's width
        unread += [k for k in state if k == "mask_token"]
    elif any(k.startswith("lm_head.") for k in state):
        method = "BEiT"
    elif not any(k.startswith("encoder.") for k in state):
        method = "weights"  # a fine-tuned model, or timm's
    if "encoder.mask_token" in state:
        state = {**state, "mask_token": state["encoder.mask_token"]}
        del state["encoder.mask_token"]
    flat: StateDict = {}
    windows: dict[int, int] = {}
    for key, value in state.items():
        new = key.replace("decoder.0.", "decoder.").removeprefix("encoder.")
        new = new.replace("head.fc.", "head.") if new.startswith("head.fc.") else new
        found = re.search(r"layers\.(\d+)\.blocks\.0\.attn\.relative_(coords|position)_", new)
        if found is not None and found[2] == "coords":
            windows[int(found[1])] = (value.shape[1] + 1) // 2
        if NOT_NEEDED.search(new):
            unread.append(key)
        elif key not in unread:
            flat[new] = value.float() if value.is_floating_point() else value
    if "blocks.0.attn.qkv.weight" in flat:
        flat, dropped = from_vit_names(flat)
        return Renamed(method, "vit", flat, unread + dropped, {})
    for family, telling in CONVOLUTIONAL.items():
        if telling in flat:
            own = {name_of_timm(key, family): value for key, value in flat.items()}
            return Renamed(method, family, own, unread, {})
    if "layers.0.blocks.0.attn.qkv.weight" in flat:
        family = "swinv2" if "layers.0.blocks.0.attn.logit_scale" in flat else "swin"
        return Renamed(method, family, from_swin_names(flat), unread, windows)
    shown = ", ".join(list(state)[:4])
    raise DataError(
        f"{name} holds no ViT, Swin, ConvNeXt or ResNet that simmim-bench knows; its first names are {shown}. "
        "Known are SimMIM's and Swin Transformer's official files, MAE, BEiT, timm's ViT, Swin, ConvNeXt and "
        "ResNet of bottlenecks, MMPretrain's Swin."
    )


SPECS: dict[
    str, Callable[[Renamed, tuple[int, int] | None, int | None], tuple[BackboneSpec, Form]]
] = {
    "vit": vit_spec,
    "swin": swin_spec,
    "swinv2": swin_spec,
    "convnext": convnext_spec,
    "resnet": resnet_spec,
}


def _check_whole(
    renamed: Renamed, spec: BackboneSpec, form: Form, name: str
) -> tuple[StateDict, list[str]]:
    """Hold the weights against the model of their spec; give those it wants, and what is left over.

    Raises:
        DataError: naming what is missing, has another shape, or has no place.
    """
    classes = len(renamed.state["head.weight"]) if "head.weight" in renamed.state else 0
    with torch.device("meta"):
        model = build_backbone(spec, form=form, num_classes=classes if form == "transfer" else 0)
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    state = dict(renamed.state)
    prefix = "encoder." if form == "pretrain" else ""
    title = f"{name} ({renamed.method}, {spec.arch})"
    ours: StateDict = {}
    missing, wrong = [], []
    for key, shape in wanted.items():
        value = state.pop(key, None)
        if value is None:
            missing.append(key)
        elif tuple(value.shape) != shape:
            wrong.append(f"{key} has {tuple(value.shape)}, not {shape}")
        else:
            ours[prefix + key] = value.contiguous()
    if wrong:
        raise DataError(
            f"{title}: {len(wrong)} weights have a wrong shape: {'; '.join(wrong[:3])}."
        )
    missing = [k for k in missing if not (form == "transfer" and k.startswith(NEW_IN_TRANSFER))]
    missing = [k for k in missing if not k.endswith(COUNTER)]
    if missing:
        raise DataError(
            f"{title} lacks {len(missing)} of the encoder's {len(wanted)} weights: "
            f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}."
        )
    if form == "pretrain":
        shapes = {
            "mask_token": (1, 1, spec.stem_dim),
            "decoder.weight": (spec.stride**2 * spec.in_chans, spec.num_features, 1, 1),
            "decoder.bias": (spec.stride**2 * spec.in_chans,),
        }
        for key, shape in shapes.items():
            if key in state and tuple(state[key].shape) == shape:
                ours[key] = state.pop(key).contiguous()
    # Heads of another form, and the last norm where pooled features have their own.
    spare = [
        k for k in state if k.startswith(("head.", "fc_norm.", "norm.", "mask_token", "decoder."))
    ]
    strange = sorted(set(state) - set(spare))
    if strange:
        raise DataError(
            f"{title} holds {len(strange)} weights that this architecture has no place for: "
            f"{', '.join(strange[:4])}{', ...' if len(strange) > 4 else ''}; it is another model."
        )
    return ours, renamed.unread + spare
