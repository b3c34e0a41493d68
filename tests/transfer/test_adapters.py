"""Tests of one contract for every backbone in every adapter: names, channels, strides, odd sizes, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from support.tiny import TINY
from torch import Tensor, nn

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from simmim_bench.models.build import build_backbone
from simmim_bench.models.vit import ViT

SIZES = [(32, 32), (48, 64), (37, 51)]
SPECS = {**TINY, "vit in windows": replace(TINY["vit"], depths=(8,), window_size=3)}
Maps = dict[str, Tensor]
# Channels and stride that an adapter declares, by name.
Declared = dict[str, tuple[int, int]]


def detectron2_adapter(
    checkpoint: Checkpoint,
) -> tuple[nn.Module, Declared, Callable[[Tensor], Maps]]:
    pytest.importorskip("detectron2")
    from transfer.detectron2_backbone import SimMIMBackbone

    adapter = SimMIMBackbone(checkpoint, seed=5)
    shapes = adapter.output_shape()
    return adapter, {name: (s.channels, s.stride) for name, s in shapes.items()}, adapter


def mmseg_adapter(checkpoint: Checkpoint) -> tuple[nn.Module, Declared, Callable[[Tensor], Maps]]:
    pytest.importorskip("mmseg")
    from transfer.mmseg_backbone import SimMIMBackbone

    adapter = SimMIMBackbone(checkpoint, seed=5)
    names = [f"map{i}" for i in adapter.out_indices]
    declared = dict(zip(names, zip(adapter.channels, adapter.strides, strict=True), strict=True))
    return adapter, declared, lambda images: dict(zip(names, adapter(images), strict=True))


ADAPTERS = {"detectron2": detectron2_adapter, "mmseg": mmseg_adapter}


@pytest.fixture
def checkpoint(family: str) -> Checkpoint:
    return Checkpoint(
        name=f"random:{family}",
        spec=SPECS[family],
        form="transfer",
        state=None,
        sha256="0",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": family, "method": "random"},
    )


def test_a_windowed_vit_equals_detectron2s() -> None:
    """Compare with its blocks (detectron2: modeling/backbone/vit.py), on a map that is not a multiple of the window."""
    vit = pytest.importorskip("detectron2.modeling.backbone.vit")
    spec = replace(SPECS["vit in windows"], sincos_position=False)
    ours = build_backbone(spec, seed=3).eval()
    assert isinstance(ours, ViT)
    tokens = torch.randn(2, 7, 11, spec.embed_dim)
    x = tokens
    for i, block in enumerate(ours.blocks):
        attention: Any = block.attn
        theirs = vit.Block(
            spec.embed_dim,
            spec.num_heads[0],
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            window_size=spec.window_size if i in spec.windowed_blocks else 0,
        )
        state = {k: v for k, v in block.state_dict().items() if k in theirs.state_dict()}
        query, value = attention.q_bias, attention.v_bias
        state["attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
        theirs.load_state_dict(state)
        x = theirs(x)
    torch.testing.assert_close(ours._run(tokens)[-1], x)


@pytest.mark.parametrize("family", sorted(SPECS))
@pytest.mark.parametrize("name", sorted(ADAPTERS))
class TestEveryAdapter:
    """Every test runs for every family of backbones in every adapter."""

    def test_declares_the_backbones_levels(self, name: str, checkpoint: Checkpoint) -> None:
        _, declared, _ = ADAPTERS[name](checkpoint)
        levels = checkpoint.spec.feature_levels
        assert list(declared) == [f"map{i}" for i in range(len(levels))]
        assert list(declared.values()) == [(level.channels, level.stride) for level in levels]

    @pytest.mark.parametrize("size", SIZES)
    def test_returns_the_backbones_maps_at_any_size(
        self, name: str, checkpoint: Checkpoint, size: tuple[int, int]
    ) -> None:
        module, declared, maps_of = ADAPTERS[name](checkpoint)
        module.eval()
        images = torch.randn(2, 3, *size)
        wanted = load_backbone(checkpoint, seed=5).eval().forward_maps(images)
        maps = maps_of(images)
        assert list(maps) == list(declared)
        for (level, found), expected in zip(maps.items(), wanted, strict=True):
            channels, stride = declared[level]
            assert found.shape == (2, channels, *(math.ceil(side / stride) for side in size))
            assert torch.equal(found, expected)

    def test_every_weight_that_the_maps_depend_on_gets_a_gradient(
        self, name: str, checkpoint: Checkpoint
    ) -> None:
        module, _, maps_of = ADAPTERS[name](checkpoint)
        images = torch.randn(2, 3, *checkpoint.spec.img_size)
        sum((m * torch.randn_like(m)).sum() for m in maps_of(images).values()).backward()  # type: ignore[union-attr]
        without = [
            parameter
            for parameter, value in module.named_parameters()
            if value.requires_grad and value.grad is None
        ]
        assert without == []

    def test_reports_a_full_match_of_the_encoder(self, name: str, checkpoint: Checkpoint) -> None:
        state: dict[str, Any] = load_backbone(checkpoint, seed=9).state_dict()
        module, _, _ = ADAPTERS[name](replace(checkpoint, state=state))
        backbone: Any = module.backbone
        report = backbone.load_report
        assert (report.resized, report.missing, report.unused) == ([], [], [])
        assert len(report.matched) == len(state)
