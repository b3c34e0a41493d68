"""Build the backbone module of a spec, and list the grids of its position tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from simmim_bench.errors import UsageError
from simmim_bench.models.convnet import ConvNeXt, ResNet
from simmim_bench.models.external import ExternalBackbone
from simmim_bench.models.external_spec import PATCH_SIZE, ExternalSpec
from simmim_bench.models.position_bias import Grid
from simmim_bench.models.spec import BackboneSpec, Form
from simmim_bench.models.swin import Swin
from simmim_bench.models.timm_network import create_network
from simmim_bench.models.user_network import call_factory
from simmim_bench.models.vit import ViT

Encoder = ViT | Swin | ConvNeXt | ResNet
"""A backbone of simmim-bench's own families, which SimMIM pretrains."""
Backbone = Encoder | ExternalBackbone

_HIERARCHICAL: dict[str, type[Swin | ConvNeXt | ResNet]] = {
    "swin": Swin,
    "swinv2": Swin,
    "convnext": ConvNeXt,
    "resnet": ResNet,
}


def build_backbone(
    spec: BackboneSpec,
    *,
    form: Form = "transfer",
    num_classes: int = 0,
    drop_path_rate: float = 0.0,
    seed: int = 0,
) -> Backbone:
    """Build a backbone with randomly initialised weights; the global random state is preserved.

    Args:
        form: only a ViT distinguishes the forms.
        num_classes: outputs of the classification head; 0 for a backbone without head.
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks have less.
        seed: of the initialisation.
    """
    if not isinstance(spec, ExternalSpec):
        return build_encoder(
            spec, form=form, num_classes=num_classes, drop_path_rate=drop_path_rate, seed=seed
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_network(spec, drop_path_rate=drop_path_rate)
        return ExternalBackbone(spec, net, num_classes=num_classes)


def build_encoder(
    spec: BackboneSpec,
    *,
    form: Form = "pretrain",
    num_classes: int = 0,
    drop_path_rate: float = 0.0,
    seed: int = 0,
) -> Encoder:
    """Build a backbone of simmim-bench's own families; the arguments are those of `build_backbone`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec.family == "vit":
            return ViT(spec, form=form, num_classes=num_classes, drop_path_rate=drop_path_rate)
        return _HIERARCHICAL[spec.family](
            spec, num_classes=num_classes, drop_path_rate=drop_path_rate
        )


def build_network(spec: ExternalSpec, *, drop_path_rate: float = 0.0) -> nn.Module:
    """Build the network of other code, with initial weights.

    Raises:
        UsageError: the network has no stochastic depth, or no patches of another size.
    """
    if spec.family == "python":
        if drop_path_rate:
            raise no_stochastic_depth(spec, drop_path_rate)
        return call_factory(spec.source)
    arguments = network_arguments(spec)
    try:
        net = _create(spec, arguments, drop_path_rate)
    except (TypeError, AssertionError) as error:
        if PATCH_SIZE in arguments:
            raise _no_patch_size(spec) from error
        raise
    if PATCH_SIZE in arguments and {x["reduction"] for x in net.feature_info} != {spec.patch_size}:
        raise _no_patch_size(spec)
    return net


def _create(spec: ExternalSpec, arguments: dict[str, Any], drop_path_rate: float) -> Any:
    """Create timm's network; a rate of 0 is passed as well, as some of timm's architectures have another default."""
    try:
        return create_network(spec.source, **arguments, drop_path_rate=drop_path_rate)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        if drop_path_rate:
            raise no_stochastic_depth(spec, drop_path_rate) from error
        return create_network(spec.source, **arguments)


def _no_patch_size(spec: ExternalSpec) -> UsageError:
    return UsageError(
        f"patch_size={spec.patch_size} does not apply to {spec.arch}, whose patches have one size; use "
        "-o patch_size=none."
    )


def network_arguments(spec: ExternalSpec) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` for a spec, without the name."""
    arguments: dict[str, Any] = dict(spec.arguments)
    if spec.sized:
        arguments["img_size"] = spec.img_size
    if spec.in_chans != 3:
        arguments["in_chans"] = spec.in_chans
    return arguments


def no_stochastic_depth(spec: ExternalSpec, rate: float) -> UsageError:
    """Return the error for a network that cannot drop paths."""
    return UsageError(
        f"drop_path_rate={rate} does not apply to {spec.arch}, which has no stochastic depth; use "
        "-o drop_path_rate=0."
    )


def table_grids(spec: BackboneSpec, form: Form) -> dict[str, Grid]:
    """Return the (h, w) grid or window of every position bias table, by the name of its module."""
    if spec.is_convolutional or isinstance(spec, ExternalSpec):
        return {}
    if spec.family == "vit":
        if form == "pretrain":
            return {"rel_pos_bias": spec.grid}
        window = (spec.window_size, spec.window_size)
        return {
            f"blocks.{i}.rel_pos_bias": window if i in spec.windowed_blocks else spec.grid
            for i in range(spec.depths[0])
        }
    return {
        f"layers.{stage}.blocks.{i}.attn": window
        for stage, window in enumerate(spec.stage_windows)
        for i in range(spec.depths[stage])
    }
