"""Measure what an `ExternalSpec` lists on its network: levels, widths, and the sizes of images that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simmim_bench.errors import UsageError
from simmim_bench.models.external_spec import ExternalSpec, Sizing
from simmim_bench.models.network import declared_levels, has_class_token, pool_features, run_network


def measure(spec: ExternalSpec, net: nn.Module) -> ExternalSpec:
    """Return a spec with what is measured on its network: levels, class token, width, sizes.

    Args:
        net: runs on its own device; on the "meta" device it computes shapes only. Stays in evaluation mode.

    Raises:
        UsageError: the pooled features have another shape than (B, D).
        Exception: the network's own, if it does not take images of the spec's size.
    """
    net.eval()
    levels = _levels(net, spec)
    found = replace(
        spec,
        own_width=_own_width(net, spec),
        levels=levels,
        class_token=bool(levels) and has_class_token(net),
        batch_normed=any(isinstance(module, _BatchNorm) for module in net.modules()),
    )
    if levels:
        found = replace(
            found, patch_size=levels[0][1], embed_dim=levels[0][0], depths=(len(levels),)
        )
    return replace(found, sizing=_sizing(net, found))


def zero_images(net: nn.Module, spec: ExternalSpec, size: tuple[int, int]) -> Tensor:
    """Return one image (1, C, H, W) of zeros on the device of a network."""
    device = next((tensor.device for tensor in net.parameters()), torch.device("cpu"))
    return torch.zeros(1, spec.in_chans, *size, device=device)


@torch.no_grad()
def _own_width(net: nn.Module, spec: ExternalSpec) -> int:
    """Return the channels of the pooled features."""
    pooled = pool_features(net, zero_images(net, spec, spec.img_size))
    if pooled.ndim != 2 or len(pooled) != 1:
        raise UsageError(
            f"the features of {spec.arch} have shape {tuple(pooled.shape)} for one image; a backbone has (1, D)."
        )
    return pooled.shape[1]


@torch.no_grad()
def _map_shapes(
    net: nn.Module, spec: ExternalSpec, size: tuple[int, int]
) -> list[tuple[int, ...]] | None:
    """Return (C, h, w) of every output for an image size; None if the network does not take it."""
    try:
        indices = range(len(declared_levels(net)))
        maps = run_network(net, zero_images(net, spec, size), indices).maps
    except Exception:  # every network has its own error for a size that it does not take
        return None
    return [tuple(x.shape[1:]) for x in maps]


def _levels(net: nn.Module, spec: ExternalSpec) -> tuple[tuple[int, int], ...]:
    """Return channels and stride of every output; () if the outputs are no maps of constant stride.

    The strides are the declared ones, which the image size need not be a multiple of. timm declares 2 for a stage of
    TResNet that has 4: where they do not fit the maps, the strides are measured.
    """
    shapes, size = _map_shapes(net, spec, spec.img_size), spec.img_size
    if not shapes or any(len(shape) != 3 for shape in shapes):
        return ()
    declared = declared_levels(net)
    if _fits(shapes, declared, size):
        return declared
    measured = tuple((channels, max(1, size[0] // height)) for channels, height, _ in shapes)
    whole = all(
        size[0] == stride * h for (_, stride), (_, h, _) in zip(measured, shapes, strict=True)
    )
    return measured if whole and _fits(shapes, measured, size) else ()


def _fits(
    shapes: Sequence[tuple[int, ...]] | None,
    levels: Sequence[tuple[int, int]],
    size: tuple[int, int],
) -> bool:
    """Return whether maps have ceil(H / stride) x ceil(W / stride) cells."""
    wanted = [(channels, -(-size[0] // s), -(-size[1] // s)) for channels, s in levels]
    return shapes is not None and list(shapes) == wanted


def _sizing(net: nn.Module, spec: ExternalSpec) -> Sizing:
    """Return which sizes a network takes, by trying some."""
    height, width = spec.img_size
    unit = max((stride for _, stride in spec.levels), default=32)
    odd = [(height + 1, width), (height + unit, width + 2 * unit - 1)]
    if not spec.levels:
        return "any" if all(_takes(net, spec, size) for size in odd) else "fixed"
    trials: dict[Sizing, list[tuple[int, int]]] = {
        "any": odd,
        "multiple": [(height + unit, width), (height + unit, width + 2 * unit)],
    }
    for sizing, sizes in trials.items():
        if all(_fits(_map_shapes(net, spec, size), spec.levels, size) for size in sizes):
            return sizing
    return "fixed"


def _takes(net: nn.Module, spec: ExternalSpec, size: tuple[int, int]) -> bool:
    """Return whether a network maps an image of a size to features of the spec's width."""
    try:
        return _own_width(net, replace(spec, img_size=size)) == spec.own_width
    except Exception:  # every network has its own error for a size that it does not take
        return False
