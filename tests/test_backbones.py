"""Claims about backbones: sizes, levels, layers, resizing, loading."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline

from pretrain.simmim import SimMIM, load_simmim
from simmim_bench.archs import ARCHS, BackboneSpec, find_spec
from simmim_bench.backbones import build_backbone, load_backbone
from simmim_bench.checkpoint import IMAGENET_MEAN, IMAGENET_STD, read_checkpoint, write_checkpoint
from simmim_bench.errors import DataError, UsageError
from simmim_bench.position_bias import (
    RelativePositionBias,
    geometric_positions,
    resize_matrix,
    resize_table,
)


def saved(tmp_path: Path, spec: BackboneSpec, seed: int = 0) -> str:
    write_checkpoint(
        tmp_path / "ckpt",
        state=SimMIM(spec, seed=seed).state_dict(),
        spec=spec,
        form="pretrain",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": "test", "method": "simmim"},
    )
    return str(tmp_path / "ckpt")


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (37, 51)])
def test_maps_have_the_declared_channels_and_strides(
    tiny_spec: BackboneSpec, size: tuple[int, int]
) -> None:
    model = build_backbone(tiny_spec).eval()
    maps = model.forward_maps(torch.randn(2, 3, *size))
    assert len(maps) == len(model.feature_levels)
    for level, (channels, stride) in zip(maps, model.feature_levels, strict=True):
        assert level.shape == (2, channels, *(math.ceil(side / stride) for side in size))


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_layer_ids_cover_every_parameter_and_grow_with_depth(arch: str) -> None:
    spec = find_spec(arch)
    small = replace(spec, embed_dim=spec.num_heads[0] * 4)
    model = build_backbone(small, num_classes=2)
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert set(ids.values()) == set(range(model.num_layers))
    assert all(ids[n] == 0 for n in ids if n.startswith("patch_embed."))
    assert all(ids[n] == model.num_layers - 1 for n in ids if n.startswith("head."))


@pytest.mark.parametrize(
    ("arch", "millions"),
    [("vit_ti", 5.5), ("vit_b", 85.8), ("swin_t", 27.5), ("swin_b", 86.7), ("swinv2_t", 27.6)],
)
def test_sizes_are_those_of_the_papers(arch: str, millions: float) -> None:
    # Encoders without a classifier; DeiT table 1, Swin table 1, Swin V2 table 1, less 1000-class heads.
    count = sum(p.numel() for p in build_backbone(find_spec(arch)).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


def test_an_unknown_arch_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown arch 'vit_bb'; did you mean 'vit_b'"):
        find_spec("vit_bb")


def test_resizing_a_bias_table_keeps_a_constant_and_the_centre() -> None:
    constant = torch.full((7 * 7 + 3, 2), 0.3)
    assert torch.allclose(resize_table(constant, (4, 4), (6, 9)), torch.tensor(0.3), atol=1e-6)
    table = torch.randn(7 * 7, 2)
    resized = resize_table(table, (4, 4), (7, 7)).view(13, 13, 2)
    assert torch.allclose(resized[6, 6], table.view(7, 7, 2)[3, 3], atol=1e-6)


def test_resizing_equals_a_two_dimensional_spline_at_the_geometric_positions() -> None:
    table = torch.randn(7 * 13, 1)
    knots = [geometric_positions(7, 11), geometric_positions(13, 15)]
    spline = RectBivariateSpline(*knots, table.view(7, 13).numpy(), kx=3, ky=3, s=0)
    wanted = spline(np.arange(-5, 6), np.arange(-7, 8))
    found = resize_table(table, (4, 7), (6, 8)).view(11, 15).numpy()
    assert np.abs(found - wanted).max() < 1e-5


@pytest.mark.parametrize("sizes", [(1, 4), (2, 5), (3, 2), (8, 8)])
def test_resize_matrices_exist_for_every_pair_of_sizes(sizes: tuple[int, int]) -> None:
    matrix = resize_matrix(*sizes)
    assert matrix.shape == (2 * sizes[1] - 1, 2 * sizes[0] - 1)
    assert torch.allclose(matrix.sum(1), torch.ones(len(matrix)), atol=1e-5)


def test_position_bias_depends_on_the_offset_alone() -> None:
    bias = RelativePositionBias((3, 4), 2)
    torch.nn.init.normal_(bias.relative_position_bias_table)
    values = bias((3, 4))[0, :, 1:, 1:].view(2, 3, 4, 3, 4)
    assert torch.equal(values[:, 0, 0, 1, 1], values[:, 1, 2, 2, 3])
    assert not torch.equal(values[:, 0, 0, 1, 1], values[:, 1, 1, 0, 0])


def test_a_checkpoint_gives_its_encoder_back(tmp_path: Path, tiny_spec: BackboneSpec) -> None:
    ckpt = saved(tmp_path, tiny_spec, seed=5)
    model = load_backbone(ckpt).eval()
    images = torch.randn(2, 3, *tiny_spec.img_size)
    simmim = load_simmim(ckpt)
    tokens = simmim.encoder.embed(images)
    whole = simmim.encoder.encode(tokens)
    if tiny_spec.family == "vit":  # its transfer form has no last norm on maps
        maps = model.forward_maps(images)[-1]
        assert torch.allclose(
            simmim.encoder.norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), whole, atol=1e-5
        )
    else:
        assert torch.allclose(model.forward_maps(images)[-1], whole, atol=1e-5)
    assert model.load_report.missing in ([], ["fc_norm.weight", "fc_norm.bias"])


def test_another_size_resizes_the_tables_and_says_so(
    tmp_path: Path, tiny_spec: BackboneSpec
) -> None:
    ckpt = saved(tmp_path, tiny_spec)
    model = load_backbone(ckpt, (64, 96), 7)
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 7)
    if tiny_spec.family == "vit":
        assert len(model.load_report.resized) == tiny_spec.num_blocks


def test_a_checkpoint_of_another_width_is_refused(tmp_path: Path, tiny_spec: BackboneSpec) -> None:
    ckpt = saved(tmp_path, tiny_spec)
    checkpoint = read_checkpoint(ckpt)
    wider = replace(checkpoint, spec=replace(tiny_spec, embed_dim=tiny_spec.embed_dim * 2))
    with pytest.raises(DataError, match="has shape"):
        load_backbone(wider)


def test_a_missing_encoder_weight_is_refused_by_name(
    tmp_path: Path, tiny_spec: BackboneSpec
) -> None:
    checkpoint = read_checkpoint(saved(tmp_path, tiny_spec))
    assert checkpoint.state is not None
    name = next(n for n in checkpoint.state if n.endswith("mlp.fc1.weight"))
    state = {k: v for k, v in checkpoint.state.items() if k != name}
    with pytest.raises(DataError, match=name.removeprefix("encoder.")):
        load_backbone(replace(checkpoint, state=state))


def test_random_checkpoints_are_drawn_by_the_seed() -> None:
    first, same, other = (load_backbone("random:vit_pocket", seed=s) for s in (0, 0, 1))
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(first.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_a_damaged_checkpoint_is_told_from_a_whole_one(
    tmp_path: Path, tiny_spec: BackboneSpec
) -> None:
    ckpt = saved(tmp_path, tiny_spec)
    weights = Path(ckpt) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_checkpoint(ckpt)


def test_a_text_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text("not weights")
    with pytest.raises(DataError, match=r"weights\.pth is not a checkpoint"):
        read_checkpoint(str(tmp_path / "weights.pth"))
    with pytest.raises(DataError, match="is not there"):
        read_checkpoint(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="holds no checkpoint"):
        read_checkpoint(str(tmp_path))
