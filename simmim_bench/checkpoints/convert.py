"""Write a checkpoint for others to read, and show that what they read gives the same features.

In: a CKPT, another size or window if wanted, a format. Out: a native checkpoint directory, a folder that
timm loads by `timm.create_model("local-dir:DIR", pretrained=True)`, or, from `transfer/export.py`, a
file for Detectron2 or MMSegmentation. The feature check loads what was written by the reader's own code.

timm's names are ours but for a ViT's: its key bias is zero, its position tables lie in `attn`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import Checkpoint, write_checkpoint
from simmim_bench.checkpoints.load import LoadReport, restore_backbone
from simmim_bench.checkpoints.load import load_state as load_into
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import BenchError, DataError, UsageError
from simmim_bench.models.archs import BackboneSpec
from simmim_bench.models.build import TABLE, Backbone, build_backbone
from simmim_bench.models.convnet import TIMM_PATCH, bottlenecks, timm_name
from simmim_bench.models.vit import sincos_position

TOLERANCE = 1e-4  # of the features' largest value, in float32
StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Written:
    """What a writer says: how far the features differ, relatively, and how to use the file."""

    difference: float
    usage: str


@dataclass(frozen=True)
class Conversion:
    """What `convert` did."""

    source: str
    destination: str
    to: str
    arch: str
    method: str
    img_size: tuple[int, int]
    window_size: int
    matched: list[str]
    resized: list[str]
    missing: list[str]
    unused: list[str]
    feature_difference: float
    usage: str = field(default="")


Writer = Callable[[Checkpoint, Path], Written]


def convert(
    source: str,
    destination: Path,
    *,
    write: Writer,
    to: str,
    img_size: tuple[int, int] | None = None,
    window_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    label: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Read, resize, write, check.

    Args:
        img_size, window_size: what the position tables are made for; None for the checkpoint's own.
        mean, std: the normalisation the weights expect, where the file does not tell.
        label: the row's name in a leaderboard.

    Raises:
        UsageError: `random:ARCH`, or a destination that is there.
        DataError: a checkpoint that cannot be read or is not whole.
        BenchError: what was written gives other features; nothing is left behind.
    """
    if destination.exists() and not overwrite:
        raise UsageError(f"{destination} is there; choose another DST or add --overwrite.")
    checkpoint = read_checkpoint(source)
    if checkpoint.is_random:
        raise UsageError(
            f"{source} has no weights to convert; give a checkpoint or a weights file."
        )
    if destination.exists() and destination.resolve() == Path(source).resolve():
        raise UsageError("SRC and DST are the same; choose another DST.")
    provenance = {**checkpoint.provenance, "label": label or checkpoint.label}
    resized, report = resize(
        replace(
            checkpoint,
            mean=mean or checkpoint.mean,
            std=std or checkpoint.std,
            provenance={**provenance, "converted_from": checkpoint.sha256},
        ),
        img_size,
        window_size,
    )
    temporary = destination.with_name(f".{destination.name}.tmp")
    try:
        _remove(temporary)
        destination.parent.mkdir(parents=True, exist_ok=True)
        written = write(resized, temporary)
        if not written.difference <= TOLERANCE:
            raise BenchError(
                f"{to} gives other features than {source}: they differ by {written.difference:.1e} of "
                "their size; nothing was written. Please report it."
            )
        _remove(destination)
        temporary.rename(destination)
    except OSError as error:
        raise DataError(f"cannot write {destination}: {error}; choose another DST.") from error
    finally:
        _remove(temporary)
    spec = resized.spec
    return Conversion(
        source=source,
        destination=str(destination),
        to=to,
        arch=spec.arch,
        method=str(checkpoint.provenance.get("method", "")),
        img_size=spec.img_size,
        window_size=spec.window_size,
        matched=report.matched,
        resized=report.resized,
        missing=report.missing,
        unused=report.unused,
        feature_difference=written.difference,
        usage=written.usage.replace(str(temporary), str(destination)),
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def resize(
    checkpoint: Checkpoint, img_size: tuple[int, int] | None, window_size: int | None
) -> tuple[Checkpoint, LoadReport]:
    """Make a checkpoint's position tables for another (H, W) or window, in the form that it has."""
    assert checkpoint.state is not None
    spec = checkpoint.spec.at(img_size, window_size, trained=True)
    classes = len(checkpoint.state["head.weight"]) if "head.weight" in checkpoint.state else 0
    model = build_backbone(spec, form=checkpoint.form, num_classes=classes)
    report = load_into(model, checkpoint)
    prefix = "encoder." if checkpoint.form == "pretrain" else ""
    found = model.state_dict()
    outside = {k: v for k, v in checkpoint.state.items() if prefix and not k.startswith(prefix)}
    state = {prefix + k: found[k] for k in report.matched + report.resized} | outside
    return replace(checkpoint, spec=spec, state=state), report


def probe_images(spec: BackboneSpec) -> Tensor:
    """Give the two noise images (2, C, H, W) that features are compared on."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, spec.in_chans, *spec.img_size, generator=generator)


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Give the largest difference, as a share of the largest wanted value."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def write_native(checkpoint: Checkpoint, path: Path) -> Written:
    """Write a checkpoint directory."""
    assert checkpoint.state is not None
    write_checkpoint(
        path,
        state=checkpoint.state,
        spec=checkpoint.spec,
        form=checkpoint.form,
        mean=checkpoint.mean,
        std=checkpoint.std,
        provenance=checkpoint.provenance,
    )
    images = probe_images(checkpoint.spec)
    with torch.no_grad():
        wanted = restore_backbone(checkpoint).eval().forward_features(images)
        found = restore_backbone(read_checkpoint(str(path))).eval().forward_features(images)
    usage = f"simmim-bench transfer linear --ckpt {path} --data DIR"
    return Written(relative_difference(found, wanted), usage)


def write_timm(checkpoint: Checkpoint, path: Path) -> Written:
    """Write timm's `config.json` and `model.safetensors`, the backbone in its transfer form."""
    assert checkpoint.state is not None
    classes = len(checkpoint.state["head.weight"]) if "head.weight" in checkpoint.state else 0
    ours = restore_backbone(checkpoint, num_classes=classes).eval()
    if ours.spec.windowed_blocks:
        raise UsageError(
            f"timm has no ViT with attention windows, as {checkpoint.name} is; use --to detectron2 or mmseg."
        )
    arch, arguments = timm_arguments(ours.spec)
    model = timm.create_model(arch, num_classes=classes, **arguments)
    model.load_state_dict(to_timm(ours))
    height, width = ours.spec.img_size
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        "input_size": (ours.spec.in_chans, height, width),
        "mean": checkpoint.mean,
        "std": checkpoint.std,
        "tag": "simmim_bench",
    }
    save_for_hf(model, str(path), model_args=arguments, safe_serialization=True)
    images = probe_images(ours.spec)
    with torch.no_grad():
        theirs: Any = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
        found = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        wanted = ours.forward_features(images)
    usage = f'timm.create_model("local-dir:{path}", pretrained=True)'
    return Written(relative_difference(found, wanted), usage)


def timm_arguments(spec: BackboneSpec) -> tuple[str, dict[str, Any]]:
    """Give the timm model of a spec and what differs from it.

    Raises:
        UsageError: a convolutional network with a stem that timm has not.
    """
    if spec.is_convolutional:
        return _timm_convnet(spec)
    arguments: dict[str, Any] = {
        "img_size": list(spec.img_size),
        "patch_size": spec.patch_size,
        "in_chans": spec.in_chans,
        "embed_dim": spec.embed_dim,
        "mlp_ratio": spec.mlp_ratio,
        "global_pool": "avg",
    }
    if spec.family != "vit":
        arguments |= {
            "depths": list(spec.depths),
            "num_heads": list(spec.num_heads),
            "window_size": spec.window_size,
        }
        if spec.pretrained_windows:
            arguments["pretrained_window_sizes"] = [list(w) for w in spec.pretrained_windows]
        v2 = spec.family == "swinv2"
        return "swinv2_base_window8_256" if v2 else "swin_base_patch4_window7_224", arguments
    arguments |= {
        "depth": spec.depths[0],
        "num_heads": spec.num_heads[0],
        "init_values": spec.init_values or 0.0,  # timm takes None for its own default
    }
    if not spec.rel_pos_bias and not spec.sincos_position:
        return "vit_base_patch16_224", arguments
    return "beit_base_patch16_224", {
        **arguments,
        "use_rel_pos_bias": spec.rel_pos_bias,
        "use_abs_pos_emb": spec.abs_pos_embed or spec.sincos_position,
    }


def _timm_convnet(spec: BackboneSpec) -> tuple[str, dict[str, Any]]:
    if spec.patch_size != TIMM_PATCH:
        raise UsageError(
            f"timm has no {spec.family} with a stem of stride {spec.patch_size}, as {spec.arch} has; use --to "
            "native, detectron2 or mmseg."
        )
    arguments: dict[str, Any] = {"in_chans": spec.in_chans}
    if spec.family == "resnet":
        sizes = {"layers": list(spec.depths), "channels": list(bottlenecks(spec))}
        return "resnet50", arguments | sizes
    return "convnext_base", arguments | {
        "depths": list(spec.depths),
        "dims": [level.channels for level in spec.feature_levels],
        "ls_init_value": spec.init_values,
    }


def to_timm(model: Backbone) -> StateDict:
    """Give a backbone's weights under timm's names."""
    spec = model.spec
    plain_vit = spec.family == "vit" and not spec.rel_pos_bias and not spec.sincos_position
    state: StateDict = {}
    for name, value in model.state_dict().items():
        if spec.is_convolutional:
            name = timm_name(name, spec.family)
        elif spec.family != "vit":
            name = f"head.fc.{name.removeprefix('head.')}" if name.startswith("head.") else name
        else:
            name = name.replace(f"rel_pos_bias.{TABLE}", f"attn.{TABLE}")
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


def maps_difference(theirs: nn.Module | Callable[[Tensor], Any], ours: Backbone) -> float:
    """Compare feature maps; both sides' levels are layer-normalised, which a fine-tuned scale hides."""
    images = probe_images(ours.spec)
    with torch.no_grad():
        found, wanted = list(theirs(images)), ours.eval().forward_maps(images)
    assert len(found) == len(wanted)
    return max(map(relative_difference, found, wanted))


WRITERS: dict[str, Writer] = {"native": write_native, "timm": write_timm}
