"""Tests of the MMSegmentation adapter and of the segmentor built on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.random_weights import random_checkpoint
from support.segmentation import (
    ARCHS,
    CLASS_NAMES,
    RECIPE,
    build_loaders,
    segmentor,
    split_of,
    transfer,
)

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.archs import find_spec
from simmim_bench.models.spec import MapOptions


def adapter_class() -> Any:
    from transfer.mmseg_backbone import SimMIMBackbone

    return SimMIMBackbone


def training_batch() -> tuple[torch.Tensor, list[Any]]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(2):
        truth = torch.randint(0, 5, (1, 64, 64), generator=generator)
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=truth)))
    return torch.randn(2, 3, 64, 64, generator=generator), samples


@pytest.mark.parametrize("arch", ARCHS)
def test_adapter_has_the_weights_of_load_backbone(mmseg: None, arch: str) -> None:
    adapter = adapter_class()(f"random:{arch}", img_size=64, seed=5)
    adapter.init_weights()
    expected = load_backbone(f"random:{arch}", (64, 64), seed=5).state_dict()
    for name, value in adapter.backbone.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_adapter_is_built_from_a_plain_config_and_returns_the_out_indices(mmseg: None) -> None:
    from mmengine.config import Config
    from mmseg.registry import MODELS

    config = Config(
        {
            "custom_imports": {"imports": ["transfer.mmseg_backbone"]},
            "backbone": {
                "type": "SimMIMBackbone",
                "ckpt": "random:swin_pocket",
                "img_size": (64, 64),
                "out_indices": (1, 3),
            },
        }
    )
    adapter = MODELS.build(config.backbone)
    assert (adapter.channels, adapter.strides) == ((96, 384), (4, 16))
    assert [m.shape[1] for m in adapter(torch.zeros(1, 3, 64, 64))] == [96, 384]


@pytest.mark.parametrize("arch", ARCHS)
def test_no_trained_weight_is_beyond_the_out_indices(mmseg: None, arch: str) -> None:
    adapter = adapter_class()(f"random:{arch}", out_indices=(0, -3))
    sum(m.square().mean() for m in adapter(torch.randn(1, 3, 32, 32))).backward()
    trained = [(n, p) for n, p in adapter.named_parameters() if p.requires_grad]
    assert [n for n, p in trained if p.grad is None] == []


@pytest.mark.parametrize(
    ("arch", "layers"),
    [("vit_pocket", (1, 2, 4)), ("swin_pocket", (1, 2, 5)), ("resnet_pocket", (1, 3, 7))],
)
def test_frozen_stages_freeze_the_blocks_up_to_a_level(
    mmseg: None, arch: str, layers: tuple[int, ...]
) -> None:
    everything = dict(adapter_class()(f"random:{arch}").named_parameters())
    for stages, first_trained in zip((0, 1, 3), layers, strict=True):
        adapter = adapter_class()(f"random:{arch}", frozen_stages=stages)
        for name, parameter in adapter.backbone.named_parameters():
            wanted = everything[f"backbone.{name}"].requires_grad
            deep = adapter.backbone.layer_id(name) >= first_trained
            assert parameter.requires_grad == (wanted and deep), name
    with pytest.raises(UsageError, match=r"frozen_stages=5 is not allowed for .*; use -1 to 4"):
        adapter_class()(f"random:{arch}", frozen_stages=5)


def test_init_cfg_is_applied_or_refused(mmseg: None, tmp_path: Path) -> None:
    wanted = adapter_class()("random:vit_pocket", seed=5)
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": wanted.state_dict()}, file)
    init = {"type": "Pretrained", "checkpoint": str(file)}
    adapter = adapter_class()("random:vit_pocket", seed=6, init_cfg=init)
    adapter.init_weights()
    for name, value in wanted.state_dict().items():
        assert torch.equal(adapter.state_dict()[name], value), name
    with pytest.raises(DataError, match="does not contain this backbone"):
        adapter_class()("random:swin_pocket", init_cfg=init).init_weights()
    with pytest.raises(UsageError, match="not of type 'Pretrained'"):
        adapter_class()("random:swin_pocket", init_cfg={"type": "Normal"}).init_weights()


@pytest.mark.parametrize("synced", [False, True])
def test_a_resnet_is_normalised_over_the_same_images_as_the_heads(
    mmseg: None, synced: bool
) -> None:
    from transfer.segmentation.model import build_segmentor

    checkpoint = read_checkpoint("random:resnet_pocket")
    model = build_segmentor(checkpoint, RECIPE, 5, 0, synced=synced)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 30
    assert all(isinstance(m, torch.nn.SyncBatchNorm) == synced for m in norms)


def test_a_linear_head_does_not_change_a_resnets_statistics(mmseg: None) -> None:
    model = segmentor("random:resnet_pocket", replace(RECIPE, head="linear", auxiliary_weight=0.0))
    before = {name: value.clone() for name, value in model.backbone.named_buffers()}
    model.train().loss(*training_batch())
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.named_buffers())


@pytest.mark.parametrize("arch", ARCHS)
def test_every_weight_of_the_backbone_gets_a_gradient(mmseg: None, arch: str) -> None:
    # With stochastic depth, a block may be dropped for both images.
    model = segmentor(f"random:{arch}", replace(RECIPE, drop_path_rate=0.0))
    losses = model.loss(*training_batch())
    sum(value for name, value in losses.items() if "loss" in name).backward()
    for name, parameter in model.backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_pyramid_of_a_vit_starts_at_stride_4_or_at_half_a_small_patch(mmseg: None) -> None:
    for arch, size, wanted in (("vit_pocket", 64, [2, 4, 8, 16]), ("vit_ti", 128, [4, 8, 16, 32])):
        recipe = replace(RECIPE, img_size=(size, size))
        model = segmentor(f"random:{arch}", recipe)
        maps = model.extract_feat(torch.zeros(1, 3, size, size))
        assert [size // m.shape[-1] for m in maps] == wanted
        assert {m.shape[1] for m in maps} == {find_spec(arch).embed_dim}


def test_images_reach_the_backbone_as_normalised_rgb(mmseg: None, data: Path) -> None:
    checkpoint = read_checkpoint("random:vit_pocket")
    model = segmentor("random:vit_pocket", RECIPE)
    split = split_of(data, "training")
    _, loader = build_loaders(RECIPE, split, split, CLASS_NAMES, seed=0, first_iteration=0)
    inputs = model.data_preprocessor(next(iter(loader)))["inputs"]
    pixels = np.asarray(Image.open(split.images[0]).convert("RGB")) / 255
    expected = (pixels - np.array(checkpoint.mean)) / np.array(checkpoint.std)
    np.testing.assert_allclose(inputs[0].permute(1, 2, 0), expected, atol=1e-5)


def test_a_recipe_decides_on_the_maps_of_a_checkpoint_that_has_others(mmseg: None) -> None:
    """As of a run of another recipe, which keeps its levels and norms with the weights."""
    from transfer.segmentation.model import build_segmentor

    options = MapOptions(blocks=(1, 2, 4), norm="none")
    spec = find_spec("vit_pocket")
    other = random_checkpoint(spec.with_maps(options, trained=spec))
    net = build_segmentor(other, RECIPE, 5, seed=0).backbone.backbone
    assert net.spec.level_blocks == (
        1,
        2,
        3,
        4,
    )  # the quarters, as `Ade20kRecipe.map_blocks` is empty
    maps = net.eval().forward_maps(torch.randn(1, 3, 64, 64))
    for level in maps:  # "plain": every token has mean 0 and variance 1
        torch.testing.assert_close(level.mean(1), torch.zeros_like(level[:, 0]), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            level.var(1, unbiased=False), torch.ones_like(level[:, 0]), rtol=0, atol=1e-2
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1}, r"batch_size 1 is too small"),
        ({"img_size": (12, 64)}, r"img_size \(12, 64\) is below 16 pixels"),
        ({"test_scales": (0.1, 1.0)}, r"test_scales 0.1 of img_size .* use 0.25 or more"),
        (
            {"test_scales": (0.1, 1.0), "resize_within": (320, 80)},
            r"test_scales 0.1 of resize_within \(320, 80\) is below 16 .* use 0.2 or more",
        ),
        (
            {"map_blocks": (1, 2, 3, 5)},
            r"not four blocks up to vit_pocket's last, 4; use -o map_blocks=1,2,3,4",
        ),
    ],
)
def test_sizes_too_small_for_upernet_are_refused(
    mmseg: None, generated: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        transfer(tmp_path / "run", generated, replace(RECIPE, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slide_stride": (16, 65)}, r"slide_stride \(16, 65\) .* is larger than the window"),
        ({"resize_within": (2048,)}, r"resize_within \(2048,\) .* not a long and a short side"),
        ({"resize_within": (80, 320)}, r"resize_within \(80, 320\) .* not a long and a short side"),
        ({"min_test_side": 64}, r"min_test_side 64 .* has no effect without resize_within"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        replace(RECIPE, **changes)
