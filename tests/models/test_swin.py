"""Tests of Swin and Swin V2 at any size: maps equal independent implementations that pad before the shift."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import timm.models.swin_transformer as timm_swin
import timm.models.swin_transformer_v2 as timm_swinv2
import torch
import torch.nn.functional as F
import torchvision.models.swin_transformer as torchvision_swin
from support.tiny import TINY
from torch import Tensor, nn

from simmim_bench.models.archs import find_spec
from simmim_bench.models.build import build_backbone
from simmim_bench.models.spec import BackboneSpec

# With patches of 2 pixels and windows of 4 tokens, the maps of the four stages have these sizes in tokens.
DIVISIBLE = (64, 64)  # 32x32, 16x16, 8x8, 4x4
PADDED = (58, 70)  # 29x35, 15x18, 8x9, 4x5: by one, two or three tokens
SIZES = [
    DIVISIBLE,
    PADDED,
    (60, 52),  # 30x26, 15x13, 8x7, 4x4
    (56, 72),  # 28x36, 14x18, 7x9, 4x5
    (100, 68),  # 50x34, 25x17, 13x9, 7x5
]
OTHER_SIZES = [*SIZES[:4], (6, 10), (33, 47)]  # smaller than a window; not whole patches
FAMILIES = ["swin", "swinv2"]


def spec_of(family: str, img_size: tuple[int, int] = (128, 128)) -> BackboneSpec:
    """Return a tiny spec with one shifted block in every stage."""
    return replace(TINY[family], depths=(2, 2, 2, 2), img_size=img_size)


def build(spec: BackboneSpec) -> Any:
    """Build a backbone with all parameters perturbed, because some are initialised to constants."""
    model: Any = build_backbone(spec).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def noise(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def build_torchvisions(spec: BackboneSpec, model: nn.Module) -> nn.Module:
    """Build torchvision's Swin or Swin V2 with the weights of a backbone."""
    v2 = spec.family == "swinv2"
    net = torchvision_swin.SwinTransformer(
        patch_size=[spec.patch_size] * 2,
        embed_dim=spec.embed_dim,
        depths=list(spec.depths),
        num_heads=list(spec.num_heads),
        window_size=[spec.window_size] * 2,
        mlp_ratio=spec.mlp_ratio,
        block=torchvision_swin.SwinTransformerBlockV2 if v2 else None,
        downsample_layer=torchvision_swin.PatchMergingV2 if v2 else torchvision_swin.PatchMerging,
    ).eval()
    ours = model.state_dict()
    if v2:  # torchvision stores the three biases in one parameter, the keys' being zero
        for name in [name for name in ours if name.endswith("q_bias")]:
            queries, values = ours.pop(name), ours.pop(name.replace("q_bias", "v_bias"))
            joined = torch.cat((queries, torch.zeros_like(queries), values))
            ours[name.replace("q_bias", "qkv.bias")] = joined
    result = net.load_state_dict(
        {torchvision_name(name): value for name, value in ours.items()}, strict=False
    )
    kept = ("head.", "relative_coords_table", "relative_position_index")
    assert not result.unexpected_keys
    assert all(any(part in name for part in kept) for name in result.missing_keys)
    return net


def torchvision_name(name: str) -> str:
    if name.startswith("layers."):
        _, stage, kind, *rest = name.split(".")
        number = 2 * int(stage) + (kind == "blocks")
        name = ".".join(["features", str(number), *rest])
    for ours, theirs in (
        ("patch_embed.proj.", "features.0.0."),
        ("patch_embed.norm.", "features.0.2."),
        ("mlp.fc1.", "mlp.0."),
        ("mlp.fc2.", "mlp.3."),
    ):
        name = name.replace(ours, theirs)
    return name


def torchvision_maps(net: Any, images: Tensor, patch: int) -> list[Tensor]:
    """Return torchvision's maps, normalised as `forward_maps` normalises them."""
    height, width = images.shape[-2:]
    tokens = net.features[0](F.pad(images, (0, -width % patch, 0, -height % patch)))
    maps = []
    for number, layer in enumerate(net.features[1:]):
        tokens = layer(tokens)
        if number % 2 == 0:
            maps.append(F.layer_norm(tokens, tokens.shape[-1:]))
    maps[-1] = net.norm(tokens)
    return [level.permute(0, 3, 1, 2) for level in maps]


def dense_attention(block: Any, tokens: Tensor) -> Tensor:
    """Compute shifted-window attention from its definition, for tokens (B, h, w, C).

    The map is padded to whole windows. Windows start `shift` tokens from the top and the left; the border
    strips before them are windows of their own. Each token attends to the tokens of its window.
    """
    attn, (height, width) = block.attn, tokens.shape[1:3]
    sides, shifts = block.window_size, block.shift_size
    padded = F.pad(tokens, (0, 0, 0, -width % sides[1], 0, -height % sides[0]))
    rows, columns = padded.shape[1:3]
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = torch.stack(grid, -1).flatten(0, 1)
    windows = (places - torch.tensor(shifts)).div(torch.tensor(sides), rounding_mode="floor")
    visible = (windows[:, None] == windows[None]).all(-1)
    offsets = places[:, None] - places[None]

    flat = padded.flatten(1, 2)
    is_v2 = hasattr(attn, "cpb_mlp")
    bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)) if is_v2 else attn.qkv.bias
    heads = F.linear(flat, attn.qkv.weight, bias).unflatten(-1, (3, attn.num_heads, -1))
    q, k, v = heads.permute(2, 0, 3, 1, 4)
    if is_v2:
        scale = attn.logit_scale.clamp(max=torch.tensor(100.0).log()).exp()
        logits = scale * (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT)
        steps = [torch.arange(1 - side, side) / max(side - 1, 1) for side in sides]
        relative = 8 * torch.cartesian_prod(*steps)
        coordinates = relative.sign() * (relative.abs() + 1).log2() / 3
        table = 16 * attn.cpb_mlp(coordinates).sigmoid()
    else:
        logits = q @ k.mT / q.shape[-1] ** 0.5
        table = attn.relative_position_bias_table
    # Offsets of tokens in different windows have no entry in the table; those tokens are masked.
    index = ((offsets + torch.tensor(sides) - 1) * torch.tensor((2 * sides[1] - 1, 1))).sum(-1)
    position = table[index.clamp(0, len(table) - 1)].permute(2, 0, 1)
    logits = (logits + position).masked_fill(~visible, float("-inf"))
    attended = attn.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    return attended.unflatten(1, (rows, columns))[:, :height, :width]


def assert_equal_maps(found: list[Tensor], wanted: list[Tensor]) -> None:
    for level, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, msg=f"level {level}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_equal_torchvisions(family: str, size: tuple[int, int]) -> None:
    # torchvision does not shift a map of one window; neither does a backbone that is built for the map's size.
    spec = spec_of(family, size)
    model = build(spec)
    net = build_torchvisions(spec, model)
    with torch.no_grad():
        images = noise(size)
        wanted = torchvision_maps(net, images, spec.patch_size)
        assert_equal_maps(model.forward_maps(images), wanted)


@pytest.mark.parametrize("size", OTHER_SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_any_size_equal_attention_computed_from_its_definition(
    family: str, size: tuple[int, int]
) -> None:
    model = build(spec_of(family))  # built for another size than that of the images
    reference = copy.deepcopy(model)
    for block in reference.blocks_in_order:
        block._attn = partial(dense_attention, block)
    with torch.no_grad():
        images = noise(size)
        assert_equal_maps(model.forward_maps(images), reference.forward_maps(images))


@pytest.mark.parametrize("family", FAMILIES)
def test_divisible_sizes_equal_timms_blocks_bit_for_bit(family: str) -> None:
    model = build(spec_of(family))
    timms = copy.deepcopy(model)
    plain: type[nn.Module] = timm_swin.SwinTransformerBlock
    if family == "swinv2":
        plain = timm_swinv2.SwinTransformerV2Block
    for block in timms.blocks_in_order:
        assert type(block) is not plain
        block.__class__ = plain
    images = noise(DIVISIBLE)
    for found, wanted in zip(model.forward_maps(images), timms.forward_maps(images), strict=True):
        assert torch.equal(found, wanted)
    images = noise(PADDED)
    pairs = zip(model.forward_maps(images), timms.forward_maps(images), strict=True)
    assert not any(torch.allclose(found, wanted, atol=1e-2) for found, wanted in pairs)


def gradients(model: Any, run: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
    model.zero_grad()
    torch.stack([level.square().mean() for level in run(noise(PADDED))]).sum().backward()
    return [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_and_compiling_keep_the_gradients_of_padded_maps(family: str) -> None:
    model = build(spec_of(family)).train()
    wanted = gradients(model, model.forward_maps)
    compiled = torch.compile(model.forward_maps, backend="eager", fullgraph=True)
    assert_equal_maps(gradients(model, compiled), wanted)
    model.set_grad_checkpointing()
    assert_equal_maps(gradients(model, model.forward_maps), wanted)


@pytest.mark.parametrize(
    ("arch", "side", "window", "pads"),
    [
        ("swin_b", 192, 6, False),
        ("swin_b", 224, 6, True),
        ("swin_b", 224, 7, False),
        ("swin_b", 448, 7, False),
        ("swin_b", 512, 7, True),
        ("swinv2_b", 256, 8, False),
        ("swinv2_b", 224, 14, False),  # the last map has 7 tokens and a window of that size
        ("swinv2_b", 1024, 12, True),
        ("vit_b", 224, 0, False),
        ("resnet50", 224, 0, False),
    ],
)
def test_a_spec_reports_whether_its_windows_are_padded(
    arch: str, side: int, window: int, pads: bool
) -> None:
    assert find_spec(arch).at((side, side), window or None).pads_windows is pads


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_too_many_windows_is_split_without_changing_the_maps(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(spec_of(family)).eval()
    images = torch.randn(5, 3, *PADDED, generator=torch.Generator().manual_seed(0))
    windows: list[int] = []
    for block in model.blocks_in_order:
        block.attn.register_forward_pre_hook(
            lambda attn, inputs: windows.append(len(inputs[0]) * attn.num_heads)
        )
    with torch.no_grad():
        wanted = model.forward_maps(images)
        limit = max(windows) // len(images)  # windows times heads of one image
        windows.clear()
        monkeypatch.setattr("simmim_bench.models.swin.MAX_WINDOWS", limit)
        assert_equal_maps(model.forward_maps(images), wanted)
    assert max(windows) == limit
