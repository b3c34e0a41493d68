"""Tests of `MapOptions`: the feature maps of published detectors and segmentors from a checkpoint's weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import timm
import torch
from support.tiny import TINY
from torch import Tensor, nn

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.fit import LoadReport
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.timm_format import to_timm
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import ARCHS
from simmim_bench.models.build import Backbone, build_backbone
from simmim_bench.models.spec import BackboneSpec, MapOptions, Position

# A ViT with a learned absolute position embedding alone, as MAE's.
PLAIN_VIT = replace(
    TINY["vit"],
    depths=(8,),
    img_size=(56, 56),
    sincos_position=False,
    rel_pos_bias=False,
    abs_pos_embed=True,
    init_values=None,
)
VITDET = MapOptions(norm="none", rel_pos="decomposed", position="kept")


def random_checkpoint(spec: BackboneSpec) -> Checkpoint:
    """Return a pretraining checkpoint whose weights are all random, biases too."""
    generator = torch.Generator().manual_seed(0)
    state = build_backbone(spec, form="pretrain").state_dict()
    return Checkpoint(
        name="random",
        spec=spec,
        form="pretrain",
        state={
            f"encoder.{k}": torch.randn(v.shape, generator=generator) / 10 for k, v in state.items()
        },
        sha256="0",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        provenance={"label": "random"},
    )


def detectron2_state(model: Backbone) -> dict[str, Tensor]:
    """Return a ViT's weights under Detectron2's names; the bias of keys has no effect and is random there."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.endswith("attn.q_bias"):
            values = model.state_dict()[name.replace("q_bias", "v_bias")]
            state[name.replace("q_bias", "qkv.bias")] = torch.cat(
                [value, torch.randn_like(value), values]
            )
        elif not name.endswith("v_bias") and not name.startswith(("cls_token", "fc_norm.")):
            state[name] = value
    return state


@pytest.mark.parametrize("training", [True, False])
def test_vitdets_map_equals_detectron2s_vit(training: bool) -> None:
    vit = pytest.importorskip("detectron2.modeling.backbone.vit")
    ours = load_backbone(random_checkpoint(PLAIN_VIT), (96, 96), window_size=5, maps=VITDET).train(
        training
    )
    for name, parameter in ours.named_parameters():
        if "rel_pos" in name:
            nn.init.normal_(parameter, std=0.3)
    theirs = vit.ViT(
        img_size=96,
        patch_size=PLAIN_VIT.patch_size,
        embed_dim=PLAIN_VIT.embed_dim,
        depth=8,
        num_heads=PLAIN_VIT.num_heads[0],
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=5,
        window_block_indexes=(0, 2, 4, 6),
        pretrain_img_size=56,
    )
    theirs.load_state_dict(detectron2_state(ours))
    for size in [(96, 96), (80, 104), (60, 60)]:
        images = torch.randn(1, 3, *size)
        torch.testing.assert_close(
            ours.forward_maps(images)[-1], theirs(images)["last_feat"], rtol=1e-5, atol=1e-5
        )


def test_only_what_the_options_add_may_be_missing() -> None:
    model: Any = load_backbone(random_checkpoint(PLAIN_VIT), window_size=5, maps=VITDET)
    report: LoadReport = model.load_report
    vectors = {f"blocks.{i}.attn.rel_pos_{axis}" for i in range(8) for axis in "hw"}
    assert set(report.missing) == vectors | {"fc_norm.weight", "fc_norm.bias"}
    assert all(not model.get_parameter(name).any() for name in vectors)


def test_new_relative_positions_leave_the_maps_unchanged() -> None:
    checkpoint, images = random_checkpoint(PLAIN_VIT), torch.randn(2, 3, 56, 56)
    plain = load_backbone(checkpoint, maps=MapOptions(norm="none")).eval()
    for options in (
        MapOptions(norm="none", rel_pos="table"),
        MapOptions(norm="none", rel_pos="table", layer_scale=1.0),
    ):
        model = load_backbone(checkpoint, maps=options).eval()
        assert len(model.state_dict()) > len(plain.state_dict())
        for found, wanted in zip(
            model.forward_maps(images), plain.forward_maps(images), strict=True
        ):
            torch.testing.assert_close(found, wanted)


def test_relative_position_vectors_are_resized_as_in_detectron2() -> None:
    utils = pytest.importorskip("detectron2.modeling.backbone.utils")
    trained = load_backbone(random_checkpoint(PLAIN_VIT), window_size=5, maps=VITDET)
    state = {
        name: torch.randn_like(v) if "rel_pos" in name else v
        for name, v in trained.state_dict().items()
    }
    checkpoint = replace(
        random_checkpoint(PLAIN_VIT), spec=trained.spec, form="transfer", state=state
    )
    larger = load_backbone(checkpoint, (96, 96))
    name = "blocks.1.attn.rel_pos_h"  # of a block with global attention
    wanted = utils.get_rel_pos(24, 24, state[name])
    index = torch.arange(24)[:, None] - torch.arange(24)[None] + 23
    torch.testing.assert_close(larger.state_dict()[name][index], wanted)


def test_a_position_embedding_is_resized_by_the_filter_of_the_option() -> None:
    checkpoint = random_checkpoint(PLAIN_VIT)
    assert checkpoint.state is not None
    table = checkpoint.state["encoder.pos_embed"][:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    filters: list[tuple[Position, bool]] = [("antialiased", True), ("bicubic", False)]
    for position, antialias in filters:
        model = load_backbone(
            checkpoint,
            (96, 96),
            maps=MapOptions(position=position),
        )
        wanted = nn.functional.interpolate(
            table, size=(24, 24), mode="bicubic", antialias=antialias
        )
        found = model.state_dict()["pos_embed"][:, 1:].unflatten(1, (24, 24)).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, wanted)
    kept = load_backbone(checkpoint, (96, 96), maps=MapOptions(position="kept"))
    torch.testing.assert_close(
        kept.state_dict()["pos_embed"], checkpoint.state["encoder.pos_embed"]
    )


def test_patches_are_resized() -> None:
    model = load_backbone(random_checkpoint(PLAIN_VIT), (64, 64), maps=MapOptions(patch_size=8))
    assert model.spec.grid == (8, 8)
    assert model.state_dict()["patch_embed.proj.weight"].shape[2:] == (8, 8)
    assert [m.shape[2:] for m in model.forward_maps(torch.randn(1, 3, 64, 64))] == [(8, 8)] * 4


def test_the_levels_are_the_blocks_of_the_options() -> None:
    checkpoint, images = random_checkpoint(PLAIN_VIT), torch.randn(1, 3, 56, 56)
    model: Any = load_backbone(checkpoint, maps=MapOptions(blocks=(2, 3, 5, 8), norm="none"))
    outputs: list[Tensor] = []
    for block in (1, 2, 4, 7):
        model.blocks[block].register_forward_hook(lambda _m, _i, out: outputs.append(out))
    maps = model.forward_maps(images)
    for found, tokens in zip(maps, outputs, strict=True):
        assert torch.equal(found, tokens[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("family", ["swin", "swinv2", "convnext", "vit"])
def test_affine_norms_learn_and_start_as_plain_ones(family: str) -> None:
    model = build_backbone(replace(TINY[family], map_norm="affine"))
    raw = build_backbone(replace(TINY[family], map_norm="none"))
    raw.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("map_norms.")}
    )
    images = torch.randn(1, 3, 32, 32)
    maps = model.eval().forward_maps(images)
    for found, level in zip(maps, raw.eval().forward_maps(images), strict=True):
        cells = level.permute(0, 2, 3, 1)
        wanted = nn.functional.layer_norm(
            cells, cells.shape[-1:], eps=1e-5 if family.startswith("swin") else 1e-6
        )
        torch.testing.assert_close(found, wanted.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    torch.stack([(m.square() * torch.randn_like(m)).sum() for m in maps]).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == set(model.unused_in_maps())


def test_a_spec_with_options_survives_its_json() -> None:
    spec = PLAIN_VIT.at((96, 96), 5).with_maps(
        replace(VITDET, blocks=(2, 4, 6, 8)), trained=PLAIN_VIT
    )
    assert spec.position_grid == (14, 14)
    assert BackboneSpec.from_json(spec.to_json()) == spec


def test_options_that_a_network_cannot_have_are_refused() -> None:
    vit = ARCHS["vit_b"]
    with pytest.raises(UsageError, match=r"map_blocks \(13,\).* 1 to 12"):
        vit.with_maps(MapOptions(blocks=(13,)), trained=vit)
    with pytest.raises(UsageError, match=r"\(8, 4, 12, 12\) must increase.*map_blocks=4,8,12\."):
        vit.with_maps(MapOptions(blocks=(8, 4, 12, 12)), trained=vit)
    external = read_checkpoint("random:test_vit").spec
    with pytest.raises(UsageError, match=r"\(2, 1\) must increase; use -o map_blocks=1,2\."):
        external.with_maps(MapOptions(blocks=(2, 1)), trained=external)
    bare = replace(vit, rel_pos_bias=False)
    with pytest.raises(UsageError, match="needs a ViT without class token"):
        bare.with_maps(VITDET, trained=bare)
    with pytest.raises(UsageError, match="resnet50, whose blocks end with a BatchNorm"):
        ARCHS["resnet50"].with_maps(MapOptions(norm="affine"), trained=ARCHS["resnet50"])
    with pytest.raises(UsageError, match="a ViT, which swin_b is not; use another --recipe"):
        ARCHS["swin_b"].with_maps(VITDET, trained=ARCHS["swin_b"])
    with pytest.raises(UsageError, match="swin_b, which is not a ViT"):
        ARCHS["swin_b"].at(patch_size=8)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("arch", "name"), [("convnext_t", "convnext_tiny"), ("resnet50", "resnet50")]
)
@pytest.mark.parametrize("size", [(64, 96), (70, 90)])
def test_maps_of_a_convolutional_network_equal_timms(
    arch: str, name: str, size: tuple[int, int]
) -> None:
    """timm's ConvNeXt drops cells that do not fill a patch, ours pads: both get whole patches."""
    ours = build_backbone(replace(ARCHS[arch], map_norm="none")).eval()
    theirs: Any = timm.create_model(name, num_classes=0).eval()
    theirs.load_state_dict(to_timm(ours))
    images = torch.randn(1, 3, *size)
    if arch == "convnext_t":
        images = nn.functional.pad(images, (0, -size[1] % 32, 0, -size[0] % 32))
    with torch.no_grad():
        found = ours.forward_maps(images)
        wanted = theirs.forward_intermediates(images, intermediates_only=True)[-4:]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
