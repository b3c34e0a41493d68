"""Tests that run the README's code blocks for users' own Detectron2 and MMSegmentation projects."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, write_checkpoint
from simmim_bench.models.archs import BackboneSpec, find_spec
from simmim_bench.models.build import build_backbone

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder with a checkpoint runs/vit_b, a small ViT."""
    save(tmp_path, replace(find_spec("vit_b"), embed_dim=32, depths=(8,), num_heads=(2,)))
    monkeypatch.chdir(tmp_path)


def save(folder: Path, spec: BackboneSpec) -> None:
    write_checkpoint(
        folder / "runs" / "vit_b",
        state=build_backbone(spec, seed=1).state_dict(),
        spec=spec,
        form="transfer",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": "small", "method": "simmim"},
    )


def readme_lines(heading: str) -> str:
    """Return the code block below a line of the README."""
    _, _, rest = README.read_text(encoding="utf-8").partition(heading)
    block = re.search(r"```python\n(.*?)```", rest, re.DOTALL)
    assert block is not None
    return block.group(1)


def test_the_readmes_yaml_lines_build_a_detector(project: None) -> None:
    pytest.importorskip("detectron2")
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    exec(readme_lines("**In a Detectron2 project**, from yaml"), {"cfg": cfg})
    model = build_model(cfg).eval()
    backbone = model.backbone.net.backbone
    assert backbone.spec.embed_dim == 32
    assert backbone.spec.windowed_blocks == (0, 2, 4, 6)
    assert (backbone.load_report.missing, backbone.load_report.unused) == ([], [])
    with torch.no_grad():
        (found,) = model([{"image": torch.zeros(3, 200, 300), "height": 200, "width": 300}])
    assert found["instances"].image_size == (200, 300)


def test_the_readmes_lazyconfig_lines_build_a_pyramid(project: None) -> None:
    pytest.importorskip("detectron2")
    from detectron2.config import LazyCall, instantiate
    from detectron2.modeling import GeneralizedRCNN

    model = LazyCall(GeneralizedRCNN)(backbone=None)
    exec(readme_lines("from LazyConfig"), {"model": model})
    pyramid = instantiate(model.backbone)
    assert list(pyramid.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    assert pyramid.net.backbone.spec.embed_dim == 32
    with torch.no_grad():
        maps = pyramid.eval()(torch.zeros(1, 3, 128, 128))
    assert maps["p3"].shape == (1, 256, 16, 16)


def test_the_readmes_mmsegmentation_config_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines are applied to a UPerNet config with another backbone; its optimizer takes one step."""
    pytest.importorskip("mmseg")
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper
    from mmseg.registry import MODELS

    from transfer.segmentation.run import require_mmseg

    require_mmseg()  # imports MMSegmentation without its greeting
    save(tmp_path, replace(find_spec("vit_b"), depths=(8,)))  # the README says 768 channels
    monkeypatch.chdir(tmp_path)
    Path("base.py").write_text(BASE)
    Path("own.py").write_text("_base_ = ['base.py']\n" + readme_lines("MMSegmentation config"))
    config = Config.fromfile("own.py")
    model = MODELS.build(config.model)
    model.init_weights()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    rates = {round(group["lr"] / 1e-4, 6) for group in wrapper.param_groups}
    assert rates == {round(0.65**n, 6) for n in range(10)}
    maps = model.extract_feat(torch.zeros(2, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]
    weight = model.backbone.backbone.blocks[0].mlp.fc1.weight
    before = weight.detach().clone()
    wrapper.update_params(sum(m.square().mean() for m in maps))
    assert not torch.equal(weight, before)


BASE = """
norm_cfg = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='ResNetV1c', depth=50),
    decode_head=dict(
        type='UPerHead', in_channels=[768] * 4, in_index=[0, 1, 2, 3], channels=16, num_classes=4,
        norm_cfg=norm_cfg, loss_decode=dict(type='CrossEntropyLoss')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
"""
