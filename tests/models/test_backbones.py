"""Tests of backbones: sizes, feature levels, layer ids, resizing and loading."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.interpolate import RectBivariateSpline
from support.tiny import TINY

from pretrain.simmim import SimMIM, load_simmim
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, write_checkpoint
from simmim_bench.checkpoints.fit import LoadReport
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.archs import ARCHS, find_spec
from simmim_bench.models.build import build_backbone
from simmim_bench.models.position_bias import (
    BIAS_TABLE,
    RelativePositionBias,
    geometric_positions,
    resize_matrix,
    resize_table,
)
from simmim_bench.models.shapes import shapes_only
from simmim_bench.models.spec import BackboneSpec


def report_of(model: torch.nn.Module) -> LoadReport:
    report: Any = model.load_report
    assert isinstance(report, LoadReport)
    return report


def save(tmp_path: Path, spec: BackboneSpec, seed: int = 0) -> str:
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


@pytest.mark.heavy
@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_layer_ids_cover_every_parameter_and_grow_with_depth(arch: str) -> None:
    spec = find_spec(arch)
    small = replace(spec, embed_dim=(*spec.num_heads, 4)[0] * 4)
    with shapes_only():
        model = build_backbone(small, num_classes=2)
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert set(ids.values()) == set(range(model.num_layers))
    in_order = list(ids.values())  # modules are defined from the image to the head
    assert in_order == sorted(in_order)
    assert all(ids[n] == 0 for n in ids if n.startswith("patch_embed."))
    assert all(ids[n] == model.num_layers - 1 for n in ids if n.startswith("head."))


def count_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("arch", "window", "simmim", "fine_tuned"),
    [
        # Counted on the official models; README.md and the papers report 86, 88 and 197 million.
        ("vit_b", None, 86_256_720, 86_530_984),
        ("swin_b", 6, 89_874_104, 87_768_224),
        ("swin_l", 12, 199_881_204, 196_794_556),
    ],
)
def test_parameter_counts_equal_the_official_ones(
    arch: str, window: int | None, simmim: int, fine_tuned: int
) -> None:
    spec = find_spec(arch).at(None, window)
    window = {None: None, 6: 7, 12: 14}[window]
    with shapes_only():
        assert count_parameters(SimMIM(spec)) == simmim
        model = build_backbone(spec.at((224, 224), window), num_classes=1000)
    assert count_parameters(model) == fine_tuned


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("arch", "millions"),
    [
        # Without a classifier: DeiT table 1, Swin table 1, Swin V2 section 3.4, MODELHUB.md for h, g1b.
        ("vit_ti", 5.5),
        ("vit_s", 21.6),
        ("vit_l", 303.4),
        ("swin_t", 27.5),
        ("swin_s", 48.8),
        ("swinv2_t", 27.6),
        ("swinv2_s", 49),
        ("swinv2_b", 87),
        ("swinv2_l", 195),
        ("swinv2_h", 655),
        ("swinv2_g", 3000),
        ("swinv2_g1b", 1060),
        # With a classifier of 1,000 classes in ConvNeXt table 1 and torchvision's documentation.
        ("convnext_t", 28.6 - 0.769),
        ("convnext_s", 50.2 - 0.769),
        ("convnext_b", 88.6 - 1.025),
        ("resnet50", 25.557 - 2.049),
        ("resnet101", 44.549 - 2.049),
    ],
)
def test_parameter_counts_equal_those_of_the_papers(arch: str, millions: float) -> None:
    with shapes_only():
        model = build_backbone(find_spec(arch))
    assert count_parameters(model) / 1e6 == pytest.approx(millions, rel=0.003)


# One architecture of each family, and the pocket architectures.
RUN = {"vit_ti", "swin_t", "swinv2_t", "convnext_t", "resnet50"}
RUN |= {arch for arch in ARCHS if arch.endswith("_pocket")}


@pytest.mark.heavy
@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_every_arch_runs_at_two_sizes_in_any_channels(arch: str) -> None:
    # The larger ones run on the "meta" device, which computes shapes only.
    device = torch.device("cpu" if arch in RUN else "meta")
    spec = find_spec(arch)
    if arch not in RUN:
        # That device computes in Python, and a stage repeats its first two blocks, as the layer ids above show. A ViT,
        # of one stage, has maps after four blocks.
        most = 2 if len(spec.depths) > 1 else 4
        spec = replace(spec, depths=tuple(min(depth, most) for depth in spec.depths))
    stride = spec.stride
    for in_chans, size in ((3, (2 * stride, 2 * stride)), (1, (2 * stride, 4 * stride))):
        resized = replace(spec.at(size), in_chans=in_chans)
        with shapes_only() if device.type == "meta" else nullcontext():
            model = build_backbone(resized, num_classes=3).eval()
        with device, torch.no_grad():
            images = torch.zeros(1, in_chans, *size)
            assert model(images).shape == (1, 3)
            shapes = [tuple(level.shape) for level in model.forward_maps(images)]
        wanted = [(1, c, size[0] // s, size[1] // s) for c, s in model.feature_levels]
        assert shapes == wanted


def test_one_channel_sums_the_kernels_of_three(tmp_path: Path, tiny_spec: BackboneSpec) -> None:
    ckpt = save(tmp_path, tiny_spec)
    grey = torch.randn(2, 1, *tiny_spec.img_size)
    rgb = load_backbone(ckpt).eval()
    one = load_backbone(ckpt, in_chans=1).eval()
    # With summed kernels, a grey image has the features of its three equal channels.
    found, wanted = one.forward_features(grey), rgb.forward_features(grey.expand(-1, 3, -1, -1))
    assert torch.allclose(found, wanted, atol=1e-5)
    resized = report_of(one).resized
    assert [one.get_parameter(name).shape[1] for name in resized] == [1]


def test_a_swin_v2_keeps_the_scale_of_its_position_bias_in_a_new_window(tmp_path: Path) -> None:
    ckpt = save(tmp_path, TINY["swinv2"])
    moved = load_backbone(ckpt, (64, 64), window_size=8).spec
    assert moved.window_size == 8
    # Stages of 16, 8, 4 and 2 tokens with windows of 4: the last window is limited by its map.
    assert moved.pretrained_windows == ((4, 4), (4, 4), (4, 4), (2, 2))
    assert load_backbone(ckpt).spec.pretrained_windows == ()
    assert load_backbone("random:swinv2_t", (256, 256), window_size=8).spec.pretrained_windows == ()


def test_a_windowed_vit_uses_the_bias_of_its_window_unchanged(tmp_path: Path) -> None:
    spec = replace(TINY["vit"], depths=(8,))
    ckpt = save(tmp_path, spec)  # for 8 x 8 patches
    model = load_backbone(ckpt, (64, 96), window_size=8)
    assert model.spec.windowed_blocks == (0, 2, 4, 6)
    state = read_checkpoint(ckpt).state
    assert state is not None
    table = state[f"encoder.rel_pos_bias.{BIAS_TABLE}"]
    names = [f"blocks.{i}.rel_pos_bias.{BIAS_TABLE}" for i in range(8)]
    for i, name in enumerate(names):
        whole = resize_table(table, (8, 8), (16, 24))
        assert torch.equal(model.get_parameter(name), table if i % 2 == 0 else whole)
    assert report_of(model).resized == names[1::2]


def test_a_windowed_block_depends_only_on_its_window() -> None:
    model = build_backbone(replace(TINY["vit"], depths=(8,), window_size=4))
    with torch.no_grad():
        for i in range(8):
            model.get_parameter(f"blocks.{i}.rel_pos_bias.{BIAS_TABLE}").normal_()
    block = model.blocks_in_order[0]
    tokens = torch.randn(1, 16 * 16, 32, requires_grad=True)
    block(tokens, (16, 16))[0].unflatten(0, (16, 16))[5, 9].sum().backward()
    assert tokens.grad is not None
    used = tokens.grad[0].abs().sum(1).view(16, 16) > 0
    assert used[4:8, 8:12].all()
    assert used.sum() == 16


def test_windowed_blocks_equal_vitdets() -> None:
    """Compare with detectron2, projects/ViTDet/configs: window_block_indexes of ViT-B and ViT-L."""
    vit_b = find_spec("vit_b").at((1024, 1024), 14)
    assert vit_b.windowed_blocks == (0, 1, 3, 4, 6, 7, 9, 10)
    vit_l = find_spec("vit_l").at((1024, 1024), 14)
    assert vit_l.windowed_blocks == (*range(5), *range(6, 11), *range(12, 17), *range(18, 23))


def test_position_embeddings_are_resized_like_images(tmp_path: Path) -> None:
    spec = replace(TINY["vit"], abs_pos_embed=True, sincos_position=False, rel_pos_bias=False)
    ckpt = save(tmp_path, spec)
    same, larger = load_backbone(ckpt), load_backbone(ckpt, (64, 32))
    position = same.state_dict()["pos_embed"]
    assert torch.equal(larger.state_dict()["pos_embed"][:, 0], position[:, 0])
    assert larger.state_dict()["pos_embed"].shape == (1, 1 + 16 * 8, spec.embed_dim)
    # A backbone for one size resizes its embedding for another image size in the same way.
    images = torch.randn(1, 3, 64, 32)
    found, wanted = same.eval()(images), larger.eval()(images)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_vit_has_the_narrow_initialisation_of_the_official_one() -> None:
    model = SimMIM(find_spec("vit_ti"))
    for name, value in model.state_dict().items():
        if name.endswith(("qkv.weight", "fc1.weight", "cls_token", "mask_token")):
            assert value.abs().max() <= 0.02, name
            # A normal truncated at one standard deviation has 0.54 of the standard deviation.
            assert value.std() == pytest.approx(0.54 * 0.02, rel=0.15), name
    head = build_backbone(find_spec("vit_ti"), num_classes=100).get_parameter("head.weight")
    assert float(head.detach().std()) == pytest.approx(2e-5, rel=0.05)


def test_an_unknown_arch_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown arch 'vit_bb'; did you mean 'vit_b'"):
        find_spec("vit_bb")


def test_a_mistyped_architecture_of_timm_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown arch 'regnety_02'; did you mean 'regnety_0"):
        read_checkpoint("random:regnety_02")
    with pytest.raises(UsageError, match=r"'regnety_002x'; did you mean 'regnety_002'"):
        read_checkpoint("timm:regnety_002x")


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


def test_a_checkpoint_restores_its_encoder(tmp_path: Path, tiny_spec: BackboneSpec) -> None:
    ckpt = save(tmp_path, tiny_spec, seed=5)
    model = load_backbone(ckpt).eval()
    images = torch.randn(2, 3, *tiny_spec.img_size)
    simmim = load_simmim(ckpt)
    tokens = simmim.encoder.embed(images)
    whole = simmim.encoder.encode(tokens)
    if tiny_spec.family == "vit":  # the transfer form does not apply the last norm to maps
        maps = model.forward_maps(images)[-1]
        assert torch.allclose(
            simmim.encoder.norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), whole, atol=1e-5
        )
    else:
        assert torch.allclose(model.forward_maps(images)[-1], whole, atol=1e-5)
    assert report_of(model).missing in ([], ["fc_norm.weight", "fc_norm.bias"])


def test_weights_with_two_names_are_written_under_both(tmp_path: Path) -> None:
    weight = torch.randn(4, 6).T  # not contiguous either
    write_checkpoint(
        tmp_path / "ckpt",
        state={"one": weight, "two": weight},
        spec=TINY["vit"],
        form="transfer",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": "test", "method": "simmim"},
    )
    state = load_file(tmp_path / "ckpt" / "model.safetensors")
    assert torch.equal(state["one"], weight)
    assert torch.equal(state["two"], weight)


def test_another_size_resizes_the_tables_and_reports_them(
    tmp_path: Path, tiny_spec: BackboneSpec
) -> None:
    ckpt = save(tmp_path, tiny_spec)
    model = load_backbone(ckpt, (64, 96), 7)
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 7)
    if tiny_spec.family == "vit":
        assert len(report_of(model).resized) == tiny_spec.num_blocks


def test_a_checkpoint_of_another_width_is_refused(tmp_path: Path, tiny_spec: BackboneSpec) -> None:
    ckpt = save(tmp_path, tiny_spec)
    checkpoint = read_checkpoint(ckpt)
    wider = replace(checkpoint, spec=replace(tiny_spec, embed_dim=tiny_spec.embed_dim * 2))
    with pytest.raises(DataError, match="has shape"):
        load_backbone(wider)


def test_a_missing_encoder_weight_is_refused_by_name(
    tmp_path: Path, tiny_spec: BackboneSpec
) -> None:
    checkpoint = read_checkpoint(save(tmp_path, tiny_spec))
    assert checkpoint.state is not None
    name = next(n for n in checkpoint.state if n.endswith(("mlp.fc1.weight", "conv2.weight")))
    state = {k: v for k, v in checkpoint.state.items() if k != name}
    with pytest.raises(DataError, match=name.removeprefix("encoder.")):
        load_backbone(replace(checkpoint, state=state))


def test_the_seed_determines_random_checkpoints() -> None:
    first, same, other = (load_backbone("random:vit_pocket", seed=s) for s in (0, 0, 1))
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(first.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, tiny_spec: BackboneSpec) -> None:
    ckpt = save(tmp_path, tiny_spec)
    weights = Path(ckpt) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_checkpoint(ckpt)


def test_a_text_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text("not weights")
    with pytest.raises(
        DataError, match=r"weights\.pth is damaged, or was not written by torch\.save"
    ):
        read_checkpoint(str(tmp_path / "weights.pth"))
    with pytest.raises(DataError, match="does not exist"):
        read_checkpoint(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="holds no checkpoint"):
        read_checkpoint(str(tmp_path))
