"""Tests that run the code blocks of docs/projects.md for users' own Detectron2 and MMSegmentation projects."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, write_checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import find_spec
from simmim_bench.models.build import build_backbone
from simmim_bench.models.spec import BackboneSpec

PAGE = Path(__file__).parent.parent / "docs" / "projects.md"
HALF = (0.5, 0.5, 0.5)
STATISTICS = [(IMAGENET_MEAN, IMAGENET_STD), (HALF, HALF)]
SMALL_VIT = replace(find_spec("vit_b"), embed_dim=32, depths=(8,), num_heads=(2,))
SIDE = 64  # pixels of the test image


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder with a checkpoint runs/vit_b, a small ViT."""
    save(tmp_path, SMALL_VIT)
    monkeypatch.chdir(tmp_path)


def save(
    folder: Path,
    spec: BackboneSpec,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> None:
    write_checkpoint(
        folder / "runs" / "vit_b",
        state=build_backbone(spec, seed=1).state_dict(),
        spec=spec,
        form="transfer",
        mean=mean,
        std=std,
        provenance={"label": "small", "method": "simmim"},
    )


def page_lines(heading: str) -> str:
    """Return the first code block of the page below a text."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(heading)
    block = re.search(r"```python\n(.*?)```", rest, re.DOTALL)
    assert block is not None
    return block.group(1)


class ReachedError(Exception):
    """Ends a forward pass at the backbone, with its input."""


def backbone_input(model: nn.Module, backbone: nn.Module, batch: Any) -> Tensor:
    """Return the image (C, SIDE, SIDE) that reaches the backbone of a model, without padding."""

    def stop(module: nn.Module, arguments: tuple[Tensor]) -> None:
        raise ReachedError(arguments[0])

    backbone.register_forward_pre_hook(stop)
    with pytest.raises(ReachedError) as reached:
        getattr(model.eval(), "test_step", model)(batch)
    images: Tensor = reached.value.args[0]
    return images[0, :, :SIDE, :SIDE]


def check_equal_pixels(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert (wanted - wanted.flip(0)).abs().max() > 1  # the order of the channels is visible


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    """Write a COCO val split of one PNG, which all decoders read equally; return the image's path."""
    file = tmp_path / "coco" / "val2017" / "image.png"
    file.parent.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    square = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 16, 16], "area": 256}
    content = {
        "images": [{"id": 1, "file_name": file.name, "height": SIDE, "width": SIDE}],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [{**square, "iscrowd": 0}],
    }
    annotations = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    annotations.parent.mkdir()
    annotations.write_text(json.dumps(content))
    return file


def coco_runner_input(file: Path) -> Tensor:
    """Return the image that reaches the backbone in our `coco` task."""
    from support.detection import RECIPE

    from transfer.detection.coco_layout import read_split
    from transfer.detection.data import val_loader
    from transfer.detection.model import build_detector

    recipe = replace(
        RECIPE,
        img_size=(SIDE, SIDE),
        strides=(4, 8, 16, 32),
        anchor_sizes=(16, 32, 64, 128),
        batch_size=1,
        num_workers=0,
    )
    model = build_detector(
        read_checkpoint("runs/vit_b"),
        recipe,
        num_classes=2,
        masks=False,
        seed=0,
        device=torch.device("cpu"),
    )
    (batch,) = val_loader(read_split(file.parent.parent, "val", "refuse"), recipe)
    return backbone_input(model, model.backbone.net, batch)


def yaml_config() -> Any:
    """Return a Mask R-CNN on five levels, to which the page's lines are applied."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.WEIGHTS = "R-50.pkl"
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    return cfg


@pytest.mark.heavy
def test_the_pages_yaml_lines_build_a_detector(project: None) -> None:
    pytest.importorskip("detectron2")
    from detectron2.modeling import build_model

    cfg = yaml_config()
    exec(page_lines("## Detectron2, from yaml"), {"cfg": cfg})
    assert cfg.MODEL.WEIGHTS == ""  # else the trainer loads the base config's weights
    model = build_model(cfg).eval()
    backbone = model.backbone.net.backbone
    assert backbone.spec.embed_dim == 32
    assert backbone.spec.windowed_blocks == (0, 2, 4, 6)
    assert (backbone.load_report.missing, backbone.load_report.unused) == ([], [])
    with torch.no_grad():
        (found,) = model([{"image": torch.zeros(3, 200, 300), "height": 200, "width": 300}])
    assert found["instances"].image_size == (200, 300)


@pytest.mark.parametrize(("mean", "std"), STATISTICS)
def test_the_pages_yaml_lines_train_on_the_coco_runners_pixels(
    tmp_path: Path,
    image_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    pytest.importorskip("detectron2")
    from detectron2.data import DatasetMapper
    from detectron2.modeling import build_model

    save(tmp_path, SMALL_VIT, mean, std)
    monkeypatch.chdir(tmp_path)
    cfg = yaml_config()
    exec(page_lines("## Detectron2, from yaml"), {"cfg": cfg})
    cfg.INPUT.MIN_SIZE_TEST = SIDE
    item = DatasetMapper(cfg, is_train=False)({"file_name": str(image_file)})
    model = build_model(cfg)
    found = backbone_input(model, model.backbone.net, [item])
    check_equal_pixels(found, coco_runner_input(image_file))


def test_a_yaml_config_with_other_pixel_statistics_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("detectron2")
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone as build_from_config

    from transfer.detectron2_backbone import add_simmim_config, set_pixel_statistics

    save(tmp_path, SMALL_VIT, HALF, HALF)
    monkeypatch.chdir(tmp_path)
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_simmim_pyramid"
    add_simmim_config(cfg)
    cfg.MODEL.SIMMIM.CKPT = "runs/vit_b"  # after ImageNet's mean and standard deviation were set
    with pytest.raises(UsageError, match=r"PIXEL_MEAN.*PIXEL_STD.*set_pixel_statistics\(cfg\)"):
        build_from_config(cfg)
    set_pixel_statistics(cfg)
    build_from_config(cfg)
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(UsageError, match=r"INPUT\.FORMAT='BGR'"):
        build_from_config(cfg)
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_STD = "RGB", [1.0, 1.0, 1.0]
    with pytest.raises(UsageError, match=r"MODEL\.PIXEL_STD=\[1\.0, 1\.0, 1\.0\]"):
        build_from_config(cfg)


def test_the_pages_lazyconfig_lines_build_a_pyramid(project: None) -> None:
    pytest.importorskip("detectron2")
    from detectron2.config import LazyCall, instantiate
    from detectron2.modeling import GeneralizedRCNN

    model = LazyCall(GeneralizedRCNN)(backbone=None)
    exec(page_lines("## Detectron2, from LazyConfig"), {"model": model})
    pyramid = instantiate(model.backbone)
    assert list(pyramid.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    assert pyramid.net.backbone.spec.embed_dim == 32
    with torch.no_grad():
        maps = pyramid.eval()(torch.zeros(1, 3, 128, 128))
    assert maps["p3"].shape == (1, 256, 16, 16)


@pytest.mark.parametrize(("mean", "std"), STATISTICS)
def test_the_pages_lazyconfig_lines_train_on_the_coco_runners_pixels(
    tmp_path: Path,
    image_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """The lines are applied to Detectron2's own Mask R-CNN and COCO loaders, whose images are BGR."""
    detectron2 = pytest.importorskip("detectron2")
    from detectron2.config import LazyConfig, instantiate

    save(tmp_path, SMALL_VIT, mean, std)
    monkeypatch.chdir(tmp_path)
    common = Path(detectron2.__file__).parent / "model_zoo" / "configs" / "common"
    if not common.exists():
        pytest.skip("this Detectron2 was installed without its configs")
    model = LazyConfig.load(str(common / "models" / "mask_rcnn_fpn.py")).model
    dataloader = LazyConfig.load(str(common / "data" / "coco.py")).dataloader
    exec(page_lines("## Detectron2, from LazyConfig"), {"model": model})
    train = LazyConfig.load(str(common / "train.py")).train
    # ViTDet's weights, which match the names in a SimMIMBackbone.
    train.init_checkpoint = "mae_pretrain_vit_base.pth?matching_heuristics=True"
    names = {"dataloader": dataloader, "train": train}
    exec(page_lines("The data loaders of a LazyConfig"), names)
    assert train.init_checkpoint == ""
    assert dataloader.train.mapper.image_format == "RGB"
    dataloader.test.mapper.augmentations[0].short_edge_length = SIDE
    item = instantiate(dataloader.test.mapper)({"file_name": str(image_file)})
    detector = instantiate(model)
    found = backbone_input(detector, detector.backbone.net, [item])
    check_equal_pixels(found, coco_runner_input(image_file))


@pytest.mark.heavy
@pytest.mark.parametrize(("mean", "std"), STATISTICS)
def test_the_pages_mmsegmentation_config_trains_on_the_ade20k_runners_pixels(
    tmp_path: Path,
    image_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    pytest.importorskip("mmseg")
    from mmcv.transforms import LoadImageFromFile
    from mmengine.config import Config
    from mmengine.dataset import pseudo_collate
    from mmseg.datasets.transforms import PackSegInputs
    from mmseg.registry import MODELS
    from support.segmentation import RECIPE

    from transfer.segmentation.data import LoadImage
    from transfer.segmentation.model import build_segmentor
    from transfer.segmentation.run import require_mmseg

    require_mmseg()
    save(tmp_path, replace(find_spec("vit_b"), depths=(4,)), mean, std)
    monkeypatch.chdir(tmp_path)
    Path("base.py").write_text(BASE)
    Path("own.py").write_text("_base_ = ['base.py']\n" + page_lines("## MMSegmentation"))
    theirs = MODELS.build(Config.fromfile("own.py").model)
    ours = build_segmentor(
        read_checkpoint("runs/vit_b"), replace(RECIPE, test_mode="whole"), classes=4, seed=0
    )
    pixels = []
    for model, load in (
        (theirs, lambda item: LoadImageFromFile()({"img_path": str(item["img_path"])})),
        (ours, LoadImage()),
    ):
        batch = pseudo_collate([PackSegInputs()(load({"img_path": image_file}))])
        pixels.append(backbone_input(model, model.backbone, batch))
    check_equal_pixels(*pixels)
    settings: list[tuple[Any, ...]] = [
        (m.size, m.pad_val, m.seg_pad_val)
        for m in (theirs.data_preprocessor, ours.data_preprocessor)
    ]
    assert settings[0] == ((512, 512), *settings[1][1:])


@pytest.mark.heavy
def test_the_pages_mmsegmentation_config_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines are applied to a UPerNet config with another backbone; its optimizer takes one step."""
    pytest.importorskip("mmseg")
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper
    from mmseg.registry import MODELS

    from transfer.segmentation.run import require_mmseg

    require_mmseg()  # imports MMSegmentation without its greeting
    save(tmp_path, replace(find_spec("vit_b"), depths=(8,)))  # the page says 768 channels
    monkeypatch.chdir(tmp_path)
    Path("base.py").write_text(BASE)
    Path("own.py").write_text("_base_ = ['base.py']\n" + page_lines("## MMSegmentation"))
    config = Config.fromfile("own.py")
    model = MODELS.build(config.model)
    model.init_weights()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    rates = {round(group["lr"] / 1e-4, 6) for group in wrapper.param_groups}
    assert rates == {round(0.65**n, 6) for n in range(10)}
    maps = model.extract_feat(torch.zeros(2, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]
    assert model.decode_head(maps).shape == (2, 4, 16, 16)
    assert model.auxiliary_head(maps).shape == (2, 4, 4, 4)
    weight = model.backbone.backbone.blocks[0].mlp.fc1.weight
    before = weight.detach().clone()
    wrapper.update_params(sum(m.square().mean() for m in maps))
    assert not torch.equal(weight, before)


BASE = """
norm_cfg = dict(type='BN')
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005)
optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer, clip_grad=None)
data_preprocessor = dict(
    type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True, pad_val=0, seg_pad_val=255)
model = dict(
    type='EncoderDecoder',
    pretrained='open-mmlab://resnet50_v1c',
    data_preprocessor=data_preprocessor,
    backbone=dict(type='ResNetV1c', depth=50),
    decode_head=dict(
        type='UPerHead', in_channels=[256, 512, 1024, 2048], in_index=[0, 1, 2, 3], channels=16,
        num_classes=4, norm_cfg=norm_cfg, loss_decode=dict(type='CrossEntropyLoss')),
    auxiliary_head=dict(
        type='FCNHead', in_channels=1024, in_index=2, channels=16, num_classes=4,
        norm_cfg=norm_cfg, loss_decode=dict(type='CrossEntropyLoss')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
"""
