"""Tests of the attention that trains on a CPU: equal to timm's modules in both passes, without denormal numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn

from simmim_bench.models import swin, vit
from simmim_bench.models.archs import find_spec
from simmim_bench.models.attention import select_attention
from simmim_bench.models.cpu_attention import attend_by_products
from simmim_bench.models.swin import pad_before_shift

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def perturb(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    select_attention(module, training=True)
    return module


def gradients(call: Callable[[Tensor], Tensor], tokens: Tensor, module: nn.Module) -> list[Tensor]:
    """Return the output and the gradients of tokens and parameters of the output's products with fixed numbers."""
    output = call(tokens)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    used = [p for p in module.parameters() if p.requires_grad]
    return [output, *torch.autograd.grad(output, [tokens, *used], weights)]


def without_products(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (swin, vit):
        monkeypatch.setattr(module, "suits_products", lambda *_: False)


@pytest.mark.parametrize("size", [(12, 18), (12, 6), (10, 15)])
@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("block_class", [SwinTransformerBlock, SwinTransformerV2Block])
def test_windows_equal_timms_in_both_passes(
    block_class: Any, size: tuple[int, int], shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = block_class(32, size, 2, window_size=6, shift_size=shift, dynamic_mask=True)
    pad_before_shift(perturb(block))
    tokens = torch.randn(3, *size, 32, requires_grad=True)
    ours = gradients(block._attn, tokens, block.attn)
    without_products(monkeypatch)
    theirs = gradients(block._attn, tokens, block.attn)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


def test_vit_attention_equals_timms_in_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = find_spec("vit_pocket")
    block = vit.ViTBlock(spec, drop_path=0, own_position_bias=True, class_token=True, window=0)
    perturb(block)
    assert block.rel_pos_bias is not None
    tokens = torch.randn(2, 1 + 6 * 4, spec.embed_dim, requires_grad=True)
    modules = nn.ModuleList([block.attn, block.rel_pos_bias])
    ours = gradients(lambda x: block._attend(x, (6, 4), None), tokens, modules)
    without_products(monkeypatch)
    theirs = gradients(lambda x: block._attend(x, (6, 4), None), tokens, modules)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("shape", [(3, 2, 5, 5), (2, 5, 5), (3, 1, 5, 5), (1, 2, 1, 5), (5, 5)])
def test_a_bias_of_any_shape_that_broadcasts_has_its_gradient(shape: tuple[int, ...]) -> None:
    """A bias of each image's visible tokens differs by image."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 5, 3 * 2 * 4, generator=generator, requires_grad=True)
    bias = torch.randn(shape, generator=generator, requires_grad=True)
    queries, keys, values = qkv.view(3, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    logits = 0.5 * queries @ keys.transpose(2, 3) + bias
    expected = (logits.softmax(-1) @ values).transpose(1, 2).flatten(2)
    ours = attend_by_products(qkv, bias, 2, 0.5)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn(ours.shape, generator=generator)
    found, wanted = (torch.autograd.grad(x, (qkv, bias), weights) for x in (ours, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("largest", [1.0, 120.0])
def test_hidden_pairs_have_minus_100_as_the_official_code_where_it_can_be_seen(
    largest: float,
) -> None:
    generator = torch.Generator().manual_seed(0)
    windows, tokens, heads, width = 4, 6, 2, 8
    qkv = torch.randn(windows, tokens, 3 * heads * width, generator=generator)
    bias = largest * torch.randn(heads, tokens, tokens, generator=generator)
    hidden = torch.rand(2, tokens, tokens, generator=generator) < 0.5
    hidden.diagonal(dim1=1, dim2=2).fill_(False)
    queries, keys, values = (
        qkv.double().view(windows, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)
    )
    mask = -100.0 * hidden.double().repeat(2, 1, 1)
    logits = queries @ keys.transpose(2, 3) / math.sqrt(width) + bias + mask[:, None]
    expected = (logits.softmax(-1) @ values).transpose(1, 2).flatten(2)
    leaked = ((logits.softmax(-1) > 1e-6) & hidden.repeat(2, 1, 1)[:, None]).any()
    assert leaked == (largest > 100)
    ours = attend_by_products(qkv, bias, heads, width**-0.5, hidden)
    torch.testing.assert_close(ours, expected.float(), rtol=1e-4, atol=1e-5)


def test_shifted_windows_save_no_denormal_numbers() -> None:
    block = SwinTransformerBlock(32, (12, 12), 2, window_size=6, shift_size=3, dynamic_mask=True)
    pad_before_shift(block)
    select_attention(block, training=True)
    saved: list[Tensor] = []

    def remember(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        block._attn(torch.randn(1, 12, 12, 32, requires_grad=True))
    weights = next(t for t in saved if t.shape == (8, 36, 36))
    assert (weights == 0).any()
    assert not ((weights > 0) & (weights < SMALLEST_NORMAL)).any()
