"""Checkpoints of networks that timm builds, of any family.

The weights are stored under `net.` with the network's own names, and the network is rebuilt by its name and arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint, StateDict
from simmim_bench.checkpoints.fit import NET_PREFIX, shorten
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.third_party.weights import as_pair
from simmim_bench.errors import DataError
from simmim_bench.files import sha256_json
from simmim_bench.models.archs import ARCHS
from simmim_bench.models.external_spec import Argument, ExternalSpec
from simmim_bench.models.measure import measure
from simmim_bench.models.network import pool_features
from simmim_bench.models.shapes import shapes_only
from simmim_bench.models.timm_network import FLEXIBLE, create_network
from simmim_bench.untrusted import text

# Arguments of a timm model that a spec has fields for, or that a task chooses.
OWN_FIELDS = ("num_classes", "img_size", "in_chans", "drop_path_rate")
# Largest difference of pooled features from the original model's, relative to their norm; float32 leaves about 1e-6.
TOLERANCE = 1e-5
UNMEASURED: dict[str, Any] = {
    "patch_size": 1,
    "embed_dim": 1,
    "depths": (1,),
    "levels": (),
    "own_width": 1,
}


def describe_timm(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    img_size: tuple[int, int] | None = None,
    in_chans: int = 3,
) -> ExternalSpec:
    """Measure the spec of a timm architecture, built so that it takes images of several sizes if it can.

    Args:
        name: of the architecture, with or without the tag of its weights.
        arguments: further arguments of `timm.create_model`.
        img_size: (H, W); None for that of timm's configuration.

    Raises:
        DataError: the network does not map images to features.
    """
    arch = name.split(".")[0]
    kept = {k: v for k, v in (arguments or {}).items() if k not in OWN_FIELDS}
    if img_size is None:
        with shapes_only():
            net: Any = create_network(arch, **kept)
        _, *sides = net.pretrained_cfg["input_size"]
        img_size = (sides[0], sides[1])
    common: dict[str, Any] = {} if in_chans == 3 else {"in_chans": in_chans}
    sized = _build_on_meta(arch, {**kept, **common, "img_size": img_size}) is not None
    if sized:
        common["img_size"] = img_size
    found: ExternalSpec | None = None
    for option in FLEXIBLE:
        chosen = {**kept, **option}
        twin = _build_on_meta(arch, {**chosen, **common})
        if twin is None:
            continue
        spec = ExternalSpec(
            arch=f"timm.{arch}" if arch in ARCHS else arch,
            family="timm",
            source=arch,
            arguments=tuple((key, _as_argument(value)) for key, value in sorted(chosen.items())),
            img_size=img_size,
            in_chans=in_chans,
            sized=sized,
            **UNMEASURED,
        )
        spec = _measure_timm(spec, twin, {**chosen, **common}, flexible=bool(option))
        if spec.sizing != "fixed":
            return spec
        found = found or spec
    if found is None:
        raise DataError(
            f"timm cannot build {arch} for images of {in_chans} channels and {img_size} pixels; use another "
            "architecture."
        )
    return found


def _measure_timm(
    spec: ExternalSpec, twin: nn.Module, arguments: Mapping[str, Any], *, flexible: bool
) -> ExternalSpec:
    """Measure a network of timm on the "meta" device; on the CPU where that does not decide.

    It does not if the network fails there or returns no maps, or if it is built for a size, has no option for others
    and takes them: tables that are indexed beyond their end, as MViT V2's, fail on the CPU alone.

    Raises:
        DataError: the network does not map images to features.
    """
    try:
        with torch.device("meta"):
            measured = measure(spec, twin)
        certain = flexible or not spec.sized or measured.sizing == "fixed"
        if measured.levels and certain:
            return measured
    except Exception:  # a network that reads values, or keeps tensors outside of its buffers
        pass
    try:
        return measure(spec, create_network(spec.source, **arguments))
    except Exception as error:  # every network has its own error for images that it does not take
        raise DataError(
            f"timm's {spec.source} does not map images of {spec.img_size} pixels to features "
            f"({text.describe_error(error)}); use another architecture."
        ) from error


def _build_on_meta(name: str, arguments: Mapping[str, Any]) -> nn.Module | None:
    """Build a network of timm on the "meta" device, without memory; None if timm does not, with these arguments."""
    try:
        with shapes_only():
            return create_network(name, **arguments)
    except Exception:  # TypeError, or what a constructor raises for a value
        return None


def _as_argument(value: Any) -> Argument:
    if isinstance(value, list | tuple):
        return tuple(map(_as_argument, value))
    if value is None or isinstance(value, str | int | float):
        return value
    raise DataError(f"argument {ascii(value)[:80]} of a timm model cannot be stored; remove it.")


def random_timm(ckpt: str, name: str) -> Checkpoint:
    """Return the checkpoint of `random:NAME` for an architecture of timm, which has no weights."""
    spec = describe_timm(name)
    return Checkpoint(
        name=ckpt,
        spec=spec,
        form="transfer",
        state=None,
        sha256=sha256_json({"random": spec.to_json()}),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": f"{spec.arch}, random", "method": "random"},
    )


def import_timm_network(
    model: Any,
    *,
    name: str,
    label: str,
    sha256: str = "",
    extra: Collection[str] = (),
    provenance: Mapping[str, Any] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Checkpoint:
    """Build a checkpoint from a model of timm, of any family, with its weights.

    Args:
        name: CKPT, for messages.
        label: name of the row in a leaderboard.
        sha256: hash of the weights; "" to compute it from their sums.
        extra: names of the file's entries that the model does not have.
        provenance: entries to add, such as the method and the tag of the weights.
        mean, std: normalisation of the input; None for that of the model's configuration.

    Raises:
        DataError: the model does not map images to features, or the rebuilt network computes others.
    """
    cfg = model.pretrained_cfg
    img_size, in_chans = input_of(model)
    spec = describe_timm(
        cfg["architecture"],
        getattr(model, "_model_args", {}),
        img_size=img_size,
        in_chans=in_chans,
    )
    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    kept, spare = _without_classifier(state, spec, name)
    checkpoint = Checkpoint(
        name=name,
        spec=spec,
        form="transfer",
        state=kept,
        sha256=sha256 or hash_sums(state),
        mean=mean or tuple(cfg["mean"]),
        std=std or tuple(cfg["std"]),
        provenance={"method": "weights", **(provenance or {}), "label": label},
        unread=tuple(sorted({*spare, *extra})),
    )
    _check_features(checkpoint, model)
    return checkpoint


def input_of(model: Any) -> tuple[tuple[int, int], int]:
    """Return the size (H, W) and the channels of the images that a timm model was built for."""
    arguments = getattr(model, "_model_args", {})
    channels, *sides = model.pretrained_cfg["input_size"]
    height, width = as_pair(arguments.get("img_size") or sides)
    return (height, width), arguments.get("in_chans", channels)


def hash_sums(state: StateDict) -> str:
    """Return a hash of weights that were never in a file of ours."""
    return sha256_json({k: v.double().sum().item() for k, v in state.items()})


def _without_classifier(
    state: StateDict, spec: ExternalSpec, name: str
) -> tuple[StateDict, list[str]]:
    """Return the weights of the network without classifier, and the names of the others.

    Raises:
        DataError: a weight of the network is missing.
    """
    with shapes_only():
        wanted = set(create_network(spec.source, **dict(spec.arguments)).state_dict())
    missing = sorted(wanted - set(state))
    if missing:
        raise DataError(
            f"{name} lacks {len(missing)} of the {len(wanted)} weights of timm's {spec.source}: {shorten(missing)}."
        )
    kept = {
        f"{NET_PREFIX}{key}": value.contiguous() for key, value in state.items() if key in wanted
    }
    return kept, sorted(set(state) - wanted)


@torch.no_grad()
def _check_features(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Check that the rebuilt network computes the features of the original one.

    Raises:
        DataError: it does not.
    """
    spec = checkpoint.spec
    assert isinstance(spec, ExternalSpec)
    generator = torch.Generator().manual_seed(0)
    # A small image is enough where the size does not change the network.
    small = spec.levels and not spec.sized and spec.sizing != "fixed"
    size = (2 * spec.stride, 2 * spec.stride) if small else spec.img_size
    image = torch.randn(1, spec.in_chans, *size, generator=generator)
    wanted = pool_features(model.float().eval(), image)
    if not bool(wanted.isfinite().all()):
        raise DataError(
            f"{checkpoint.name}: timm's {spec.arch} computes features that are not finite with these weights; use "
            "another copy, or an earlier checkpoint."
        )
    found = restore_backbone(checkpoint).eval().forward_features(image)
    difference = float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))
    if not difference <= TOLERANCE:
        raise DataError(
            f"{checkpoint.name}: timm's {spec.arch}, built again, computes other features (relative difference "
            f"{difference:.1e}); use another model."
        )
