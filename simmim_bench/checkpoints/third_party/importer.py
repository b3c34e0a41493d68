"""Import a third-party state dict: rename its weights, infer its spec and check that the backbone is complete.

Every kind of file is a table of renamings. An entry without a counterpart in the model must be known as not
needed, and every weight of the backbone must be present with its shape: a file is read completely or refused.

Only one value changes: MMPretrain's Swin has merged channels in another order. A ViT's key bias is dropped: it
adds the same number to all logits of a query, which the softmax ignores. A bias that transformers' models can do
without becomes zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from simmim_bench.checkpoints.checkpoint import FAULTS, Checkpoint, StateDict
from simmim_bench.checkpoints.fit import BATCHNORM_COUNTER, NEW_IN_TRANSFER, shorten
from simmim_bench.checkpoints.load import ENCODER_PREFIX
from simmim_bench.checkpoints.third_party.convnet import (
    IDENTIFYING_WEIGHTS,
    convnext_spec,
    from_sequence,
    resnet_spec,
)
from simmim_bench.checkpoints.third_party.openmmlab import (
    check_class_token,
    configured_heads,
    from_openmmlab_swin,
    from_openmmlab_vit,
    is_openmmlab_swin,
    is_openmmlab_vit,
)
from simmim_bench.checkpoints.third_party.statistics import PixelStatistics, inferred_statistics
from simmim_bench.checkpoints.third_party.swin import (
    UnknownWindowError,
    from_swin_names,
    pretrained_window,
    swin_spec,
)
from simmim_bench.checkpoints.third_party.transformers_names import (
    HEADS,
    from_transformers,
    is_transformers,
)
from simmim_bench.checkpoints.third_party.vit import (
    NAMED_SIZES,
    UNKNOWN_HEADS,
    fixed_position,
    from_vit_names,
    recorded_heads,
    vit_spec,
)
from simmim_bench.checkpoints.third_party.weights import RenamedWeights
from simmim_bench.errors import DataError
from simmim_bench.models.build import build_backbone
from simmim_bench.models.convnet import name_from_timm
from simmim_bench.models.shapes import shapes_only
from simmim_bench.models.spec import BackboneSpec, Form, describe_fault
from simmim_bench.untrusted import text

# Entries that no backbone needs: derived buffers, and the heads of other tasks.
NOT_NEEDED = re.compile(
    r"relative_position_index|relative_coords_table|attn_mask|\.k_bias$"
    r"|^decoder_|^lm_head\.|^data_preprocessor\.|^(auxiliary|decode)_head\.|^target_generator\."
    # iBOT's mask token; heads of SwAV and of other contrastive methods.
    r"|^masked_embed$|^(projection_head|prototypes|predictor|projector)\."
)
# Heads of another form, and the last norm of a model whose pooled features have another norm.
SPARE = ("head.", "fc_norm.", "norm.", "mask_token", "decoder.")

READABLE = (
    "Use an official file of SimMIM or Swin Transformer, MAE, BEiT, DINO, DINOv2 or MoCo v3, timm's ViT, Swin, "
    "ConvNeXt or ResNet with bottleneck blocks, transformers' ViT, ViT-MAE, DINOv2, BEiT, Swin or Swin V2, or "
    "MMPretrain's ViT or Swin."
)

SpecReader = Callable[
    [RenamedWeights, tuple[int, int] | None, int | None], tuple[BackboneSpec, Form]
]
SPEC_READERS: dict[str, SpecReader] = {
    "vit": vit_spec,
    "swin": swin_spec,
    "swinv2": swin_spec,
    "convnext": convnext_spec,
    "resnet": resnet_spec,
}


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
    norm_eps: float | None = None,
    statistics: PixelStatistics | None = None,
    provenance: dict[str, Any] | None = None,
    rest: Mapping[str, Any] | None = None,
    method: str = "",
    warning: str = "",
) -> Checkpoint:
    """Build a checkpoint from a third-party state dict.

    Args:
        state: tensors by their third-party names.
        name: file or CKPT, for messages.
        label: name of the row in a leaderboard.
        sha256: hash of the weights.
        img_size: (H, W) of the position tables; None to infer it from the tables, which must then be
            square.
        window_size: of a Swin; None to infer it.
        num_heads: of a ViT; None to infer it from `rest`, the position tables or the method's code, or to assume
            that of the published ViT of this width, with a warning.
        pretrained_windows: of a Swin V2 that was fine-tuned with another window.
        norm_eps: of a ViT's LayerNorms; None for the usual one.
        statistics: normalisation of the input; None to infer it.
        provenance: entries to add to the inferred ones.
        rest: entries of the file beside the weights.
        method: pretraining method, if more than the names of the weights shows it.
        warning: what the file leaves open besides heads and normalisation.

    Raises:
        DataError: The weights are of no known kind, or the backbone is incomplete.
    """
    kind = "backbone"
    try:
        renamed = _rename(state, name)
        if renamed.method == "weights" and "pos_embed" in renamed.state and not renamed.openmmlab:
            method = method or fixed_position(renamed.state["pos_embed"]) or ""
        renamed = replace(renamed, method=method or renamed.method)
        kind = f"{renamed.family} of {renamed.method}"
        if renamed.openmmlab:
            check_class_token(rest or {}, name)
        if renamed.family == "vit":
            num_heads = num_heads or _recorded_heads(renamed, rest or {})
        renamed = replace(renamed, heads=num_heads)
        spec, form = SPEC_READERS[renamed.family](renamed, img_size, window_size)
        spec = replace(
            spec,
            pretrained_windows=pretrained_windows or spec.pretrained_windows,
            norm_eps=norm_eps,
        )
        title = f"{name} ({renamed.method}, {spec.arch})"
        if (fault := describe_fault(vars(spec))) is not None:
            raise DataError(f"{title} is no backbone's: {fault}; use another copy.")
        ours, spare = _match_model(renamed.state, spec, form, title)
    except UnknownWindowError as error:
        raise DataError(
            f"{name} does not show the attention window of its Swin V2, nor the image size; use {_how_to_set(name)} "
            "--timm-model swinv2_base_window8_256 (the model's name), or --source-window-size 8 --source-img-size "
            "256 (the model's sizes)."
        ) from error
    except FAULTS as error:
        raise DataError(
            f"{name} looks like a {kind}, but its sizes cannot be inferred ({text.describe_error(error)}); check "
            "that the file is complete."
        ) from error
    statistics = statistics or inferred_statistics(renamed, name)
    warnings, assumed = [warning], {}
    if spec.family == "vit" and not spec.rel_pos_bias and renamed.heads is None:
        if spec.num_heads == (UNKNOWN_HEADS,):
            raise DataError(
                f"{name} does not show how many attention heads its ViT of width {spec.embed_dim} has; use "
                f"{_how_to_set(name)} --num-heads N.{_usual_heads(spec.embed_dim)}"
            )
        warnings.append(
            f"{name} does not show how many attention heads its ViT of width {spec.embed_dim} has; "
            f"{spec.num_heads[0]} are used, as in the published ViT. To set them: {_how_to_set(name)} --num-heads "
            f"{spec.num_heads[0]}."
        )
        assumed = {"assumed": {"num_heads": spec.num_heads[0]}}
    warnings.append(statistics.warning)
    return Checkpoint(
        name=name,
        spec=spec,
        form=form,
        state=ours,
        sha256=sha256,
        mean=statistics.mean,
        std=statistics.std,
        warning=" ".join(filter(None, warnings)),
        provenance={"method": renamed.method, **(provenance or {}), **assumed, "label": label},
        unread=tuple(sorted(renamed.unread + spare)),
    )


def _how_to_set(name: str) -> str:
    """Return the start of the command that converts a file with what the user knows of it."""
    return f"simmim-bench convert {name} DST"


def _usual_heads(width: int) -> str:
    """Return a sentence on the heads that most published ViTs of a width have; empty if there are none."""
    usual = dict(NAMED_SIZES.values()).get(width)
    return "" if usual is None else f" Most published ViTs of this width have {usual}."


def _recorded_heads(renamed: RenamedWeights, rest: Mapping[str, Any]) -> int | None:
    """Return the attention heads of a ViT that its file or its method's code shows; None if neither does."""
    if renamed.openmmlab:
        return configured_heads(rest, len(renamed.state["patch_embed.proj.weight"]))
    return recorded_heads(rest, renamed.method, renamed.state)


def _rename(state: StateDict, name: str) -> RenamedWeights:
    """Detect the kind of file from its names, and convert them to simmim-bench's."""
    method, unread = _detect_method(state)
    openmmlab = is_openmmlab_vit(state)
    if is_openmmlab_swin(state):
        state = from_openmmlab_swin(state)
    elif openmmlab:
        state = from_openmmlab_vit(state)
    state, dropped = from_transformers(from_sequence(state))
    unread += dropped
    if "encoder.mask_token" in state:
        state = {**state, "mask_token": state["encoder.mask_token"]}
        del state["encoder.mask_token"]
    flat: StateDict = {}
    windows: dict[int, int] = {}
    scales: dict[int, int] = {}
    for key, value in state.items():
        new = key.replace("decoder.0.", "decoder.").removeprefix(ENCODER_PREFIX)
        new = new.replace("head.fc.", "head.") if new.startswith("head.fc.") else new
        found = re.search(r"layers\.(\d+)\.blocks\.0\.attn\.relative_(coords|position)_", new)
        if found is not None and found[2] == "coords":
            windows[int(found[1])] = (value.shape[1] + 1) // 2
            scales[int(found[1])] = pretrained_window(value)
        if NOT_NEEDED.search(new):
            unread.append(key)
        elif key not in unread:
            flat[new] = value.float() if value.is_floating_point() else value
    if "blocks.0.attn.qkv.weight" in flat or "blocks.0.0.attn.qkv.weight" in flat:
        flat, dropped = from_vit_names(flat)
        return RenamedWeights(method, "vit", flat, unread + dropped, {}, openmmlab=openmmlab)
    for family, identifying in IDENTIFYING_WEIGHTS.items():
        if identifying in flat:
            renamed = {name_from_timm(key, family): value for key, value in flat.items()}
            return RenamedWeights(method, family, renamed, unread, {})
    if "layers.0.blocks.0.attn.qkv.weight" in flat:
        family = "swinv2" if "layers.0.blocks.0.attn.logit_scale" in flat else "swin"
        return RenamedWeights(method, family, from_swin_names(flat), unread, windows, scales)
    raise DataError(
        f"{name} holds no ViT, Swin, ConvNeXt or ResNet that simmim-bench knows; its first names are "
        f"{shorten(list(state))}. {READABLE}"
    )


def _detect_method(state: StateDict) -> tuple[str, list[str]]:
    """Return the pretraining method of a file, and the names of entries that only the method's model needs."""
    if is_openmmlab_swin(state):
        return "SimMIM", []  # OpenMMLab's
    if is_transformers(state) and not any(k.startswith("lm_head.") for k in state):
        return ("SimMIM" if HEADS[0] in state else "weights"), []
    if any(k.startswith("decoder_embed.") for k in state):
        # MAE's mask token has the width of its decoder, not of the encoder.
        return "MAE", [k for k in state if k == "mask_token"]
    if any(k.startswith("lm_head.") for k in state):
        return "BEiT", []
    if not any(k.startswith(ENCODER_PREFIX) for k in state):
        return "weights", []  # a fine-tuned model, or timm's
    return "SimMIM", []


def _match_model(
    weights: StateDict, spec: BackboneSpec, form: Form, title: str
) -> tuple[StateDict, list[str]]:
    """Compare the weights with the model of their spec.

    Returns:
        The weights of the model, and the names of the spare ones.

    Raises:
        DataError: A weight is missing, has another shape, or has no counterpart in the model.
    """
    state = dict(weights)
    classes = len(state["head.weight"]) if "head.weight" in state else 0
    with shapes_only():
        model = build_backbone(spec, form=form, num_classes=classes if form == "transfer" else 0)
    expected = model.state_dict()
    wanted = {k: tuple(v.shape) for k, v in expected.items()}
    empty = [key for key, shape in wanted.items() if 0 in shape]
    if empty:
        raise ValueError(f"{shorten(empty)} would have no numbers")
    prefix = ENCODER_PREFIX if form == "pretrain" else ""
    ours: StateDict = {}
    missing, wrong = [], []
    for key, shape in wanted.items():
        value = state.pop(key, None)
        if value is None:
            missing.append(key)
        elif tuple(value.shape) != shape:
            wrong.append(f"{key} has {tuple(value.shape)}, not {shape}")
        elif expected[key].is_floating_point() and not value.is_floating_point():
            wrong.append(f"{key} has numbers of type {value.dtype}")
        else:
            ours[prefix + key] = value.contiguous()
    if wrong:
        raise DataError(
            f"{title}: {len(wrong)} weights have a wrong shape or type: {'; '.join(wrong[:3])}. If they are of another "
            "network of timm, convert the file with --timm-model NAME."
        )
    missing = [k for k in missing if not (form == "transfer" and k.startswith(NEW_IN_TRANSFER))]
    missing = [k for k in missing if not k.endswith(BATCHNORM_COUNTER)]
    if missing:
        raise DataError(
            f"{title} lacks {len(missing)} of the encoder's {len(wanted)} weights: {shorten(missing)}."
        )
    if form == "pretrain":
        ours |= _pop_simmim_head(state, spec)
    spare = [k for k in state if k.startswith(SPARE)]
    unknown = sorted(set(state) - set(spare))
    if unknown:
        raise DataError(
            f"{title} holds {len(unknown)} weights that this architecture does not have: "
            f"{shorten(unknown)}; the file holds another model."
        )
    return ours, spare


def _pop_simmim_head(state: StateDict, spec: BackboneSpec) -> StateDict:
    """Remove SimMIM's mask token and head from `state` and return them, if their shapes fit the spec."""
    pixels = spec.stride**2 * spec.in_chans
    shapes = {
        "mask_token": (1, 1, spec.stem_dim),
        "decoder.weight": (pixels, spec.num_features, 1, 1),
        "decoder.bias": (pixels,),
    }
    return {
        key: state.pop(key).contiguous()
        for key, shape in shapes.items()
        if key in state and tuple(state[key].shape) == shape
    }
