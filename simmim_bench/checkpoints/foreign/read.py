"""Checkpoints of others: SimMIM's and Swin's official files, MAE, BEiT, timm, MMPretrain.

In: a weights file, a folder that timm wrote, or `timm:NAME`. Out: a `Checkpoint` in our names, its spec
read off the weights' shapes, and the names of what had no place. Each kind of file is a table of
renamings; what it leaves over must be on the list of what a backbone does not need, and every weight of
the backbone must be there in its shape: a file is read whole or refused.

Arithmetic that changes on the way: none for Swin but the order of the channels that MMPretrain merges.
A ViT's key bias is dropped: it adds the same number to all logits of a query, which softmax ignores.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simmim_bench.backbones import (
    COUNTER,
    NEW_IN_TRANSFER,
    TABLE,
    build_backbone,
    load_backbone,
)
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from simmim_bench.checkpoints.torch_file import read_weights_file
from simmim_bench.errors import DataError, UsageError, nearest
from simmim_bench.files import read_json, sha256_file, sha256_json
from simmim_bench.models.archs import ARCHS, BackboneSpec
from simmim_bench.models.convnet import TIMM_PATCH, name_of_timm
from simmim_bench.models.vit import Form

State = dict[str, Tensor]

BEIT_MEAN = BEIT_STD = (0.5, 0.5, 0.5)  # timm: models/beit.py, and BEiT's datasets.py by default
# Attention heads of the published ViTs by their width: no weight tells them where there is no position table.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
# Which weight tells a convolutional network of timm's, and torchvision's ResNet; and images that they are for.
CONVOLUTIONAL = {
    "convnext": "stages.0.blocks.0.conv_dw.weight",
    "resnet": "layer1.0.conv3.weight",
}
CONVNET_SIZE = (224, 224)
# What files hold beside a backbone: buffers that are derived, and the heads of other tasks.
NOT_NEEDED = re.compile(
    r"relative_position_index|relative_coords_table|attn_mask|\.k_bias$"
    r"|^decoder_|^lm_head\.|^data_preprocessor\.|^(auxiliary|decode)_head\.|^target_generator\."
)


@dataclass(frozen=True)
class Renamed:
    """A foreign file's weights under our names, before its spec is known."""

    method: str
    family: str
    state: State
    unread: list[str]
    windows: dict[int, int]  # of a Swin's stages, as far as its buffers tell
    heads: int | None = None  # of a ViT, where a configuration tells


def read_foreign(path: Path) -> Checkpoint:
    """Read a weights file, or a folder with timm's `config.json` and `model.safetensors`.

    Raises:
        DataError: it is damaged, of no known kind, or does not hold a whole backbone.
    """
    config: dict[str, Any] = {}
    label, file = path.stem, path
    if path.is_dir():
        config = read_json(path / "config.json", "timm's config")
        label, file = path.name, path / "model.safetensors"
        if not file.is_file():
            raise DataError(f"{path} has a config.json of timm's but no model.safetensors.")
    state, rest = read_weights_file(file)
    arguments = config.get("model_args") or {}
    size = arguments.get("img_size")
    checkpoint = import_state(
        state,
        name=str(path),
        label=label,
        sha256=sha256_file(file),
        img_size=None if size is None else _pair(size),
        window_size=arguments.get("window_size"),
        num_heads=heads if isinstance(heads := arguments.get("num_heads"), int) else None,
        pretrained_windows=_pretrained_windows(arguments, rest),
        provenance=_provenance(rest),
    )
    if checkpoint.spec.is_convolutional and "architecture" in config:
        check_same_features(checkpoint, _build_timm(path))
    cfg = config.get("pretrained_cfg") or {}
    if "input_size" in cfg and checkpoint.spec.is_convolutional:  # no weight tells it
        checkpoint = replace(checkpoint, spec=checkpoint.spec.at(tuple(cfg["input_size"][1:])))
    if "mean" in cfg and "std" in cfg:
        checkpoint = replace(checkpoint, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]))
    return checkpoint


def read_timm(ckpt: str) -> Checkpoint:
    """Read `timm:NAME`: one of timm's pretrained models, which timm downloads and keeps.

    Raises:
        UsageError: timm has no pretrained model of that name.
        DataError: it cannot be downloaded, or is of no family of ours.
    """
    import timm

    name = ckpt.removeprefix("timm:")
    known = timm.list_models(pretrained=True)
    if name not in known and name not in {n.split(".")[0] for n in known}:
        raise UsageError(f"timm has no pretrained model '{name}'; {nearest(name, known)[:300]}")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the hub's client raises where there is no network
        raise DataError(
            f"{ckpt} cannot be downloaded ({type(error).__name__}); download it where there is a network "
            "and give the file."
        ) from error
    cfg = model.pretrained_cfg
    state = model.state_dict()
    checkpoint = import_state(
        state,
        name=ckpt,
        label=name,
        sha256=sha256_json({k: v.double().sum().item() for k, v in state.items()}),
        img_size=_pair(cfg["input_size"][-1]),
        num_heads=model.blocks[0].attn.num_heads if hasattr(model, "blocks") else None,
        provenance={"method": "timm", "tag": cfg.get("tag", "")},
    )
    if checkpoint.spec.is_convolutional:
        check_same_features(checkpoint, model)
    return replace(checkpoint, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]))


def _build_timm(folder: Path) -> torch.nn.Module:
    """Build the model that a folder of timm's describes, with its weights.

    Raises:
        DataError: timm cannot.
    """
    import timm

    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (
        Exception
    ) as error:  # whatever timm raises for an architecture or an argument it does not know
        raise DataError(
            f"timm cannot build what {folder / 'config.json'} describes: {type(error).__name__}: {error}"
        ) from error


@torch.no_grad()
def check_same_features(checkpoint: Checkpoint, theirs: torch.nn.Module) -> None:
    """Refuse weights that make other features in our backbone than in timm's model.

    A variant of a convolutional network may differ in what has no weights, such as blurred strides.

    Raises:
        DataError: they do.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, checkpoint.spec.in_chans, 64, 64, generator=generator)
    theirs.eval()
    wanted = theirs.forward_head(theirs.forward_features(image), pre_logits=True)  # type: ignore[operator]
    found = load_backbone(checkpoint).eval().forward_features(image)
    if wanted.shape != found.shape or not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4):
        raise DataError(
            f"{checkpoint.name} is no plain {checkpoint.spec.arch}: with its weights, ours gives other features; "
            "give a plain one."
        )


def import_state(
    state: State,
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


def _pair(size: Any) -> tuple[int, int]:
    return (size[0], size[1]) if isinstance(size, list | tuple) else (size, size)


def _pretrained_windows(
    arguments: Mapping[str, Any], rest: Mapping[str, Any]
) -> tuple[tuple[int, int], ...]:
    """Find the windows that a Swin V2 was pretrained with, in timm's arguments or the official config."""
    config = rest.get("config")
    model = config.get("MODEL", {}) if isinstance(config, Mapping) else {}
    swin = model.get("SWINV2", {}) if model.get("TYPE") == "swinv2" else {}
    sizes = arguments.get("pretrained_window_sizes") or swin.get("PRETRAINED_WINDOW_SIZES") or ()
    return tuple(_pair(s) for s in sizes) if any(sizes) else ()


def _provenance(rest: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what a file says of its training: epochs done, and the tag and target of its configuration."""
    found: dict[str, Any] = {}
    if isinstance(rest.get("epoch"), int):
        found["epochs"] = rest["epoch"] + 1  # they count from 0
    config = rest.get("config")
    if isinstance(config, Mapping):
        if isinstance(config.get("TAG"), str):
            found["tag"] = config["TAG"]
        model = config.get("MODEL")
        target = (
            model.get("SIMMIM", {}).get("NORM_TARGET", {}) if isinstance(model, Mapping) else {}
        )
        if target.get("ENABLE"):
            found["norm_target"] = int(target["PATCH_SIZE"])
    return found


def _rename(state: State, name: str) -> Renamed:
    """Tell the kind of file by its names, and give them ours."""
    for wrapper in ("module.", "_orig_mod."):  # of DataParallel and torch.compile
        if all(k.startswith(wrapper) for k in state):
            state = {k.removeprefix(wrapper): v for k, v in state.items()}
    method = "SimMIM"
    unread: list[str] = []
    if any(".w_msa." in k for k in state):
        state = _from_openmmlab(state)
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
    flat: State = {}
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
        flat, dropped = _from_vit_names(flat)
        return Renamed(method, "vit", flat, unread + dropped, {})
    for family, telling in CONVOLUTIONAL.items():
        if telling in flat:
            own = {name_of_timm(key, family): value for key, value in flat.items()}
            return Renamed(method, family, own, unread, {})
    if "layers.0.blocks.0.attn.qkv.weight" in flat:
        family = "swinv2" if "layers.0.blocks.0.attn.logit_scale" in flat else "swin"
        return Renamed(method, family, _from_swin_names(flat), unread, windows)
    shown = ", ".join(list(state)[:4])
    raise DataError(
        f"{name} holds no ViT, Swin, ConvNeXt or ResNet that simmim-bench knows; its first names are {shown}. "
        "Known are SimMIM's and Swin Transformer's official files, MAE, BEiT, timm's ViT, Swin, ConvNeXt and "
        "ResNet of bottlenecks, MMPretrain's Swin."
    )


def _from_vit_names(state: State) -> tuple[State, list[str]]:
    """Rename a ViT's weights and take the key bias out; also gives what was dropped."""
    new: State = {}
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


def _from_swin_names(state: State) -> State:
    """Move each downsampling from the end of a stage, as official files have it, to the next one's start."""
    if "layers.0.downsample.reduction.weight" not in state:
        return state  # timm's
    return {shift_downsample(key, 1): value for key, value in state.items()}


def shift_downsample(name: str, by: int) -> str:
    """Count a downsampling with the stage `by` further on."""
    pattern = r"^layers\.(\d+)\.downsample\."
    return re.sub(pattern, lambda m: f"layers.{int(m[1]) + by}.downsample.", name)


OPENMMLAB = (
    ("patch_embed.projection.", "patch_embed.proj."),
    ("stages.", "layers."),
    ("attn.w_msa.", "attn."),
    ("ffn.layers.0.0.", "mlp.fc1."),
    ("ffn.layers.1.", "mlp.fc2."),
)


def _from_openmmlab(state: State) -> State:
    """Rename a Swin of MMPretrain or MMSegmentation, and put its merged channels into the official order.

    Its PatchMerging unfolds (mmpretrain/models/utils/embed.py): channel by channel, four pixels each, in
    the order of reading; the official one has pixel by pixel, in the order of columns.
    """
    renamed: State = {}
    for key, value in state.items():
        inner = key.startswith("backbone.") or not re.match(r"(neck|head)\.", key)
        new = key.removeprefix("backbone.").replace("neck.decoder.0.", "decoder.0.")
        for theirs, ours in OPENMMLAB:
            new = new.replace(theirs, ours)
        if inner and "downsample.reduction" in new:
            value = official_merging_order(value)
        elif inner and "downsample.norm" in new:
            value = official_merging_order(value[None])[0]
        renamed[new] = value
    stages = {int(m[1]) for k in renamed if (m := re.match(r"layers\.(\d+)\.", k))}
    last = f"norm{max(stages)}."
    renamed = {k.replace(last, "norm.") if k.startswith(last) else k: v for k, v in renamed.items()}
    return {k: v for k, v in renamed.items() if not re.match(r"norm\d\.", k)}


def official_merging_order(weight: Tensor) -> Tensor:
    """Reorder the inputs (O, 4C) of a patch merging from OpenMMLab's order to the official one."""
    by_pixel = weight.unflatten(1, (-1, 4)).transpose(1, 2)[:, [0, 2, 1, 3]]
    return by_pixel.flatten(1).contiguous()


def openmmlab_merging_order(weight: Tensor) -> Tensor:
    """Undo `official_merging_order`."""
    by_channel = weight.unflatten(1, (4, -1))[:, [0, 2, 1, 3]].transpose(1, 2)
    return by_channel.flatten(1).contiguous()


def _vit_spec(
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


def _depths(state: State, pattern: str) -> tuple[int, ...]:
    """Count the blocks of every stage, whose number and block a pattern finds in a name."""
    found = [m for key in state if (m := re.match(pattern, key)) is not None]
    blocks: dict[int, int] = {}
    for match in found:
        stage, block = int(match[1]), int(match[2])
        blocks[stage] = max(blocks.get(stage, 0), block + 1)
    return tuple(blocks[stage] for stage in sorted(blocks))


def _known(family: str, dim: int, depths: tuple[int, ...]) -> list[BackboneSpec]:
    """Give the archs of a family that have these sizes."""
    wanted = (family, dim, depths)
    return [s for s in ARCHS.values() if (s.family, s.embed_dim, s.depths) == wanted]


def _convnext_spec(
    renamed: Renamed, img_size: tuple[int, int] | None, window_size: int | None
) -> tuple[BackboneSpec, Form]:
    """Read a ConvNeXt's sizes off its weights."""
    state = renamed.state
    kernel = state["stem.0.weight"]
    dim = len(kernel)
    depths = _depths(state, r"stages\.(\d+)\.blocks\.(\d+)\.")
    known = _known("convnext", dim, depths)
    spec = BackboneSpec(
        arch=known[0].arch if known else f"convnext_{dim}",
        family="convnext",
        img_size=img_size or (known[0].img_size if known else CONVNET_SIZE),
        patch_size=kernel.shape[2],
        embed_dim=dim,
        depths=depths,
        in_chans=kernel.shape[1],
        mlp_ratio=len(state["stages.0.blocks.0.mlp.fc1.weight"]) / dim,
        init_values=1e-6,
    )
    return spec, _form(state)


def _resnet_spec(
    renamed: Renamed, img_size: tuple[int, int] | None, window_size: int | None
) -> tuple[BackboneSpec, Form]:
    """Read a ResNet's sizes off its weights, which do not tell the stride of the stem: an arch of ours does."""
    state = renamed.state
    dim = len(state["layer1.0.conv3.weight"])
    depths = _depths(state, r"layer(\d+)\.(\d+)\.")
    known = _known("resnet", dim, depths)
    spec = BackboneSpec(
        arch=known[0].arch if known else f"resnet_{dim}",
        family="resnet",
        img_size=img_size or (known[0].img_size if known else CONVNET_SIZE),
        patch_size=known[0].patch_size if known else TIMM_PATCH,
        embed_dim=dim,
        depths=depths,
        in_chans=state["conv1.weight"].shape[1],
    )
    return spec, _form(state)


def _form(state: State) -> Form:
    return "pretrain" if "decoder.weight" in state or "mask_token" in state else "transfer"


def _swin_spec(
    renamed: Renamed, img_size: tuple[int, int] | None, window_size: int | None
) -> tuple[BackboneSpec, Form]:
    """Read a Swin's sizes off its weights; the window of a Swin V2 is in its buffers only."""
    state = renamed.state
    kernel = state["patch_embed.proj.weight"]
    dim, in_chans, patch = kernel.shape[0], kernel.shape[1], kernel.shape[2]
    depths = _depths(state, r"layers\.(\d+)\.blocks\.(\d+)\.")
    tables = [state.get(f"layers.{i}.blocks.0.attn.{TABLE}") for i in range(len(depths))]
    heads = []
    for i, table in enumerate(tables):
        scale = state.get(f"layers.{i}.blocks.0.attn.logit_scale")
        heads.append(
            table.shape[1] if table is not None else len(scale if scale is not None else ())
        )
    windows = [
        renamed.windows.get(i, 0) if t is None else (math.isqrt(len(t)) + 1) // 2
        for i, t in enumerate(tables)
    ]
    window = window_size or windows[0]
    known = _known(renamed.family, dim, depths)
    if not window and known:
        window = known[0].window_size
    if img_size is None:
        # The last stage's window is its whole map, or the same as the first's: in every published Swin.
        side = windows[-1] or (known[0].grid[0] // 2 ** (len(depths) - 1) if known else window)
        img_size = (side * patch * 2 ** (len(depths) - 1),) * 2
    spec = BackboneSpec(
        arch=known[0].arch if known else f"{renamed.family}_{dim}",
        family="swinv2" if renamed.family == "swinv2" else "swin",
        img_size=img_size,
        patch_size=patch,
        embed_dim=dim,
        depths=depths,
        num_heads=tuple(heads),
        window_size=window,
        in_chans=in_chans,
        mlp_ratio=len(state["layers.0.blocks.0.mlp.fc1.weight"]) / dim,
    )
    return spec, _form(state)


SPECS: dict[
    str, Callable[[Renamed, tuple[int, int] | None, int | None], tuple[BackboneSpec, Form]]
] = {
    "vit": _vit_spec,
    "swin": _swin_spec,
    "swinv2": _swin_spec,
    "convnext": _convnext_spec,
    "resnet": _resnet_spec,
}


def _check_whole(
    renamed: Renamed, spec: BackboneSpec, form: Form, name: str
) -> tuple[State, list[str]]:
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
    ours: State = {}
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
