"""Tests of the Detectron2 adapter and of the detector built on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import DataError, UsageError
from transfer.detection.coco_layout import read_splits
from transfer.detection.own_recipes import COCO_VIT_100EP

pytest.importorskip("detectron2")
from detectron2.config import get_cfg
from detectron2.layers import ROIAlign
from detectron2.modeling import build_backbone
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from support.detection import ARCHS, RECIPE, batches

from transfer.detection.model import build_detector, build_roi_heads, find_adapter
from transfer.detectron2_backbone import (
    SimMIMBackbone,
    add_simmim_config,
    build_detection_backbone,
    build_pyramid,
    set_pixel_statistics,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("arch", ARCHS)
def test_pyramid_has_the_declared_levels(arch: str) -> None:
    recipe = replace(RECIPE, strides=(2, 4, 8, 16), anchor_sizes=(4, 8, 16, 32))
    pyramid = build_detection_backbone(read_checkpoint(arch), recipe, seed=0)
    shapes = pyramid.output_shape()
    strides = {name: shape.stride for name, shape in shapes.items()}
    assert strides == {"p1": 2, "p2": 4, "p3": 8, "p4": 16}
    for name, level in pyramid(torch.randn(1, 3, 64, 96)).items():
        stride = shapes[name].stride
        assert level.shape == (1, shapes[name].channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize("arch", ARCHS)
def test_images_are_padded_to_a_multiple_of_the_coarsest_stride(arch: str) -> None:
    for square_pad, expected in ((0, (64, 96)), (100, (104, 104))):
        pyramid = build_pyramid(SimMIMBackbone(arch), (2, 4, 8), 16, square_pad)
        padded = ImageList.from_tensors(
            [torch.zeros(3, 61, 83), torch.zeros(3, 50, 95)],
            pyramid.size_divisibility,
            padding_constraints=pyramid.padding_constraints,
        )
        assert padded.tensor.shape[-2:] == expected


def test_strides_that_the_backbone_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match=r"strides \(4, 8, 32\) are not available from vit_pocket"):
        build_pyramid(SimMIMBackbone("random:vit_pocket"), (4, 8, 32), 16)
    with pytest.raises(UsageError, match="swin_pocket"):
        build_pyramid(SimMIMBackbone("random:swin_pocket"), (8, 16, 32, 64), 16)


def test_backbones_can_be_built_from_a_yaml_config() -> None:
    cfg = get_cfg()
    add_simmim_config(cfg)
    cfg.MODEL.SIMMIM.CKPT = "random:swin_pocket"
    cfg.MODEL.SIMMIM.IMG_SIZE = [64, 64]
    cfg.MODEL.SIMMIM.STRIDES = [4, 8, 16]
    cfg.MODEL.BACKBONE.NAME = "SimMIMBackbone"
    raw = build_backbone(cfg)
    assert isinstance(raw, SimMIMBackbone)
    cfg.MODEL.BACKBONE.NAME = "build_simmim_pyramid"
    pyramid = build_backbone(cfg)
    assert list(pyramid.output_shape()) == ["p2", "p3", "p4"]
    assert pyramid.output_shape()["p2"].channels == cfg.MODEL.FPN.OUT_CHANNELS


@pytest.mark.parametrize("arch", ARCHS)
def test_every_weight_of_the_encoder_gets_a_gradient(arch: str, coco: Path) -> None:
    recipe = replace(RECIPE, drop_path_rate=0.0)
    train, _ = read_splits(coco, "refuse")
    model = build_detector(
        read_checkpoint(arch), recipe, num_classes=10, masks=True, seed=0, device=CPU
    )
    with EventStorage():
        sum(model(next(iter(batches(train, recipe, 0, 0)))).values()).backward()
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert [n for n, p in trained if p.grad is None] == []
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert all("fc_norm" in n for n in frozen)  # the norm of pooled features, unused in maps


def test_pixels_are_normalised_with_the_checkpoints_mean_and_std() -> None:
    checkpoint = replace(read_checkpoint(ARCHS[0]), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    model = build_detector(checkpoint, RECIPE, num_classes=2, masks=False, seed=0, device=CPU)
    image = torch.randint(0, 256, (3, 64, 64))
    normalised = model.preprocess_image([{"image": image}]).tensor[0]
    mean, std = (torch.tensor(v)[:, None, None] for v in (checkpoint.mean, checkpoint.std))
    torch.testing.assert_close(normalised, (image / 255 - mean) / std)


def test_regions_are_pooled_from_the_levels_that_detectron2_uses_for_coco() -> None:
    pyramid = build_pyramid(SimMIMBackbone("random:vit_ti"), COCO_VIT_100EP.strides, 256)
    heads = build_roi_heads(pyramid, COCO_VIT_100EP, num_classes=80, masks=True)
    assert heads.box_in_features == ["p2", "p3", "p4", "p5"]
    pooler = heads.box_pooler
    level_of_224 = pooler.canonical_level + torch.log2(
        torch.tensor(224 / pooler.canonical_box_size)
    )
    assert level_of_224 == 4  # FPN, arXiv 1612.03144, equation 1


@pytest.mark.parametrize("arch", ARCHS)
def test_only_the_backbone_is_computed_in_bfloat16(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes and masks equal those that float32 heads predict from the backbone's maps."""
    found: dict[str, set[torch.dtype]] = {"backbone": set(), "heads": set(), "pooled": set()}
    maps: list[dict[str, torch.Tensor]] = []
    models = []
    for precision in ("bf16", "fp32"):
        recipe = replace(RECIPE, precision=precision)
        models.append(
            build_detector(
                read_checkpoint(arch), recipe, num_classes=3, masks=True, seed=0, device=CPU
            ).eval()
        )
    inner = set(find_adapter(models[0]).backbone.modules())

    def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, ROIAlign):
            found["pooled"] |= {x.dtype for x in inputs}
        elif isinstance(module, SimMIMBackbone):
            maps.append(output)
        elif isinstance(module, torch.nn.Identity):
            return  # timm makes some in the forward pass, which belong to no model
        elif isinstance(output, torch.Tensor) and output.is_floating_point():
            found["backbone" if module in inner else "heads"].add(output.dtype)

    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(0))
    batch = [{"image": image, "height": 64, "width": 64}]
    with torch.nn.modules.module.register_module_forward_hook(note), torch.no_grad():
        predicted = models[0](batch)[0]["instances"]
    assert torch.bfloat16 in found["backbone"]
    assert (found["heads"], found["pooled"]) == ({torch.float32}, {torch.float32})

    exact = find_adapter(models[1])
    with torch.no_grad():
        own = models[1](batch)[0]["instances"]
        monkeypatch.setattr(exact, "forward", lambda images: maps[0])
        wanted = models[1](batch)[0]["instances"]
    assert len(predicted) > 0
    assert torch.equal(predicted.pred_boxes.tensor, wanted.pred_boxes.tensor)
    assert torch.equal(predicted.pred_masks, wanted.pred_masks)
    assert not torch.equal(own.pred_boxes.tensor, wanted.pred_boxes.tensor)


@pytest.mark.parametrize("arch", ARCHS[:2])
def test_levels_are_float32_under_the_autocast_of_another_trainer(arch: str) -> None:
    pyramid = build_pyramid(SimMIMBackbone(arch), (2, 4, 8), 16)
    with torch.autocast("cpu", torch.bfloat16):
        levels = pyramid(torch.randn(1, 3, 64, 64))
    assert {level.dtype for level in levels.values()} == {torch.float32}
    rounded = [level.bfloat16().float() for level in levels.values()]
    assert all(torch.equal(a, b) for a, b in zip(rounded, levels.values(), strict=True))


def test_a_yaml_config_of_a_stranger_runs_no_code() -> None:
    cfg = get_cfg()
    add_simmim_config(cfg)
    cfg.MODEL.SIMMIM.CKPT = "py:os:getcwd"
    with pytest.raises(DataError, match=r"names the code of py:os:getcwd, .* add_simmim_config"):
        set_pixel_statistics(cfg)
    with pytest.raises(DataError, match="names the code of py:os:getcwd"):
        SimMIMBackbone(cfg)
