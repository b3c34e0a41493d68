"""Tests of OpenMMLab's ViTs: MMSegmentation's backbones, and the names that MMPretrain's have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.third_party import build_vit, difference, perturb, save, wrap
from timm.models.beit import Beit
from torch import Tensor

from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.hints import Hints
from simmim_bench.errors import DataError

HEADS = Hints(num_heads=4)
SIZES: dict[str, Any] = {
    **{"img_size": 32, "patch_size": 8, "embed_dims": 48, "num_layers": 3, "num_heads": 4},
    **{"mlp_ratio": 2, "out_indices": (0, 1, 2)},
}
EPSILON = {
    "type": "LN",
    "eps": 1e-6,
}  # of MMSegmentation's configs (_base_/models/upernet_vit-b16_ln_mln.py)
BACKBONES: dict[str, dict[str, Any]] = {
    "VisionTransformer": {"with_cls_token": True, "norm_cfg": EPSILON},
    "MAE": {"norm_cfg": EPSILON, "init_values": 1.0},
    "BEiT": {"norm_cfg": EPSILON, "init_values": 0.1},
}
# Parts of names: (timm's, MMPretrain's) (models/backbones/vision_transformer.py and utils/layer_scale.py).
NAMES = (
    (r"^blocks\.", "layers."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"(?<=\d\.)norm([12])\.", r"ln\1."),
    (r"mlp\.fc1\.", "ffn.layers.0.0."),
    (r"mlp\.fc2\.", "ffn.layers.1."),
    (r"ls1\.gamma$", "attn.gamma1.weight"),
    (r"ls2\.gamma$", "ffn.gamma2.weight"),
    (r"^norm\.", "ln1."),
    (r"^fc_norm\.", "ln2."),
)


def mmpretrain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's weights to MMPretrain's names."""
    renamed = {}
    for key, value in state.items():
        name = key
        for ours, theirs in NAMES:
            name = re.sub(ours, theirs, name)
        renamed[f"backbone.{name}"] = value
    return renamed


@pytest.mark.parametrize("kind", BACKBONES)
@torch.no_grad()
def test_mmsegmentations_vits_compute_equal_maps(tmp_path: Path, kind: str) -> None:
    backbones = pytest.importorskip("mmseg.models.backbones")
    theirs = getattr(backbones, kind)(**SIZES, **BACKBONES[kind])
    perturb(theirs)
    head = {"decode_head.conv_seg.weight": torch.zeros(3, 48, 1, 1)}
    content = {"meta": {}, "state_dict": {**wrap(theirs.state_dict(), "backbone."), **head}}
    checkpoint = read_checkpoint(save(content, tmp_path / "mm.pth"), HEADS)
    assert set(head) <= set(checkpoint.unread)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ours: Any = restore_backbone(checkpoint).eval()
    for found, wanted in zip(ours.forward_tokens(images), theirs(images), strict=True):
        assert (found.permute(0, 3, 1, 2) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("options", [{}, {"init_values": 0.1}, {"global_pool": "avg"}], ids=str)
def test_mmpretrains_vit_computes_equal_features(tmp_path: Path, options: dict[str, Any]) -> None:
    model = build_vit(**options)
    neck = {
        "neck.decoder_embed.weight": torch.zeros(8, 48),
        "neck.mask_token": torch.zeros(1, 1, 8),
    }
    head = {"head.layers.head.weight": torch.zeros(3, 48)}
    content = {
        "meta": {"epoch": 3},
        "state_dict": {**mmpretrain(model.state_dict()), **neck, **head},
    }
    checkpoint = read_checkpoint(save(content, tmp_path / "mm.pth"), HEADS)
    assert difference(checkpoint, model) < 1e-5
    assert checkpoint.provenance["method"] == "MAE"  # only its neck has such an embedding
    if "global_pool" in options:
        assert checkpoint.state is not None
        assert torch.equal(checkpoint.state["fc_norm.weight"], model.fc_norm.weight)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_mmpretrains_beit_computes_equal_features(tmp_path: Path, shared: bool) -> None:
    bias = "use_shared_rel_pos_bias" if shared else "use_rel_pos_bias"
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2}
    options = {bias: True, "use_abs_pos_emb": False, "init_values": 0.1, "num_classes": 0}
    pool = "" if shared else "avg"  # a pretrained one has a last norm
    model = perturb(Beit(**sizes, num_heads=4, **options, global_pool=pool))
    state = mmpretrain(model.state_dict())
    if shared:
        state["backbone.mask_token"] = torch.zeros(1, 1, 48)
    checkpoint = read_checkpoint(save({"state_dict": state}, tmp_path / "mm.pth"))
    assert checkpoint.spec.num_heads == (4,)
    assert difference(checkpoint, model) < 1e-5


@pytest.mark.parametrize(
    ("arch", "width", "heads"),
    [
        pytest.param("small", 768, 8, marks=pytest.mark.slow),
        pytest.param("b", 768, 12, marks=pytest.mark.slow),
        ("deit-tiny", 192, 3),
        ("mocov3-small", 384, 12),
    ],
)
def test_the_heads_are_those_of_the_recorded_configuration(
    tmp_path: Path, arch: str, width: int, heads: int
) -> None:
    """MMPretrain's `small` is as wide as ViT-B (models/backbones/vision_transformer.py, `arch_zoo`)."""
    model = build_vit(width, heads, depth=1)
    state = mmpretrain(model.state_dict())
    cfg = f"model = dict(\n    backbone=dict(\n        arch='{arch}',\n        type='VisionTransformer'))\n"
    recorded = save({"meta": {"cfg": cfg}, "state_dict": state}, tmp_path / "mm.pth")
    checkpoint = read_checkpoint(recorded)
    assert difference(checkpoint, model) < 1e-5
    assert "attention heads" not in checkpoint.warning
    for unclear in ("", cfg + "teacher = dict(arch='large')", cfg.replace(arch, "own")):
        content = {"meta": {"cfg": unclear}, "state_dict": state}
        bare = save(content, tmp_path / "bare.pth")
        with pytest.raises(DataError, match=rf"of width {width} has; use .* --num-heads N"):
            read_checkpoint(bare)


def test_a_vit_whose_blocks_have_no_class_token_is_refused(tmp_path: Path) -> None:
    """MMSegmentation's ViT then removes it before the blocks (models/backbones/vit.py, `forward`)."""
    cfg = "model = dict(backbone=dict(type='VisionTransformer', arch='b', with_cls_token=False))"
    content = {"meta": {"cfg": cfg}, "state_dict": mmpretrain(build_vit().state_dict())}
    path = save(content, tmp_path / "mm.pth")
    with pytest.raises(DataError, match="with_cls_token=False, but simmim-bench's ViT has a class"):
        read_checkpoint(path, HEADS)


def test_mmpretrains_maes_position_is_no_sign_of_moco(tmp_path: Path) -> None:
    """Its MAE has MoCo v3's order of sines (models/utils/position_encoding.py), and its arch has other heads."""
    model = build_vit(384, 6, depth=1)
    rows, columns = (
        x.flatten().float() for x in torch.meshgrid(*[torch.arange(4)] * 2, indexing="ij")
    )
    waves = 1 / 10000 ** (torch.arange(96) / 96)
    parts = [f(x[:, None] * waves) for x in (rows, columns) for f in (torch.sin, torch.cos)]
    model.pos_embed.data[0] = torch.cat([torch.zeros(1, 384), torch.cat(parts, 1)])
    path = save({"state_dict": mmpretrain(model.state_dict())}, tmp_path / "mm.pth")
    with pytest.raises(DataError, match="of width 384 has"):
        read_checkpoint(path)
    checkpoint = read_checkpoint(path, Hints(num_heads=6))
    assert checkpoint.provenance["method"] == "weights"
    assert difference(checkpoint, model) < 1e-5
    bare = save(model.state_dict(), tmp_path / "moco.pth")  # the official names: MoCo v3's
    assert read_checkpoint(bare).provenance["method"] == "MoCo v3"
