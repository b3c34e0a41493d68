"""Build the backbone module of a spec, and list the grids of its position tables."""

from __future__ import annotations

import torch

from simmim_bench.models.convnet import ConvNeXt, ResNet
from simmim_bench.models.position_bias import Grid
from simmim_bench.models.spec import BackboneSpec, Form
from simmim_bench.models.swin import Swin
from simmim_bench.models.vit import ViT

Backbone = ViT | Swin | ConvNeXt | ResNet

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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec.family == "vit":
            return ViT(spec, form=form, num_classes=num_classes, drop_path_rate=drop_path_rate)
        return _HIERARCHICAL[spec.family](
            spec, num_classes=num_classes, drop_path_rate=drop_path_rate
        )


def table_grids(spec: BackboneSpec, form: Form) -> dict[str, Grid]:
    """Return the (h, w) grid or window of every position bias table, by the name of its module."""
    if spec.is_convolutional:
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
