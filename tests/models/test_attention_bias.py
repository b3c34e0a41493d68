"""Test position biases in the layout and precision of fused attention, against plain lookups and sums."""

from __future__ import annotations

import pytest
import torch
from timm.models.beit import gen_relative_position_index
from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias
from torch import Tensor

from simmim_bench.models.archs import find_spec
from simmim_bench.models.decomposed_position import attend_without_bias
from simmim_bench.models.position_bias import ALIGNMENT, Grid, RelativePositionBias, aligned_bias
from simmim_bench.models.vit import ViTBlock


def random_bias(grid: Grid) -> RelativePositionBias:
    bias = RelativePositionBias(grid, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        bias.relative_position_bias_table.normal_(generator=generator)
    return bias


def rows_are_aligned(bias: Tensor) -> bool:
    """Return what preprocess_mask of torch's attention.cpp asks for."""
    return bias.stride(-1) == 1 and all(stride % 8 == 0 for stride in bias.stride()[:-1])


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_and_its_gradient_are_those_of_a_plain_lookup(
    class_token: bool, dtype: torch.dtype
) -> None:
    module, grid = random_bias((5, 3)), (5, 3)
    table = module.relative_position_bias_table
    first = 0 if class_token else 1
    plain = table[gen_relative_position_index(grid)[first:, first:]].permute(2, 0, 1).to(dtype)
    found = module(grid, class_token=class_token, dtype=dtype)
    assert torch.equal(found[0], plain)
    assert rows_are_aligned(found)
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = [torch.autograd.grad(b, table, upstream)[0] for b in (found[0], plain)]
    assert torch.equal(*gradients)


def test_the_gradient_of_a_bfloat16_bias_is_summed_in_float32() -> None:
    """576 pairs of tokens share the middle row of the table; a sum of ones in bfloat16 stops at 256."""
    module = random_bias((24, 24))
    module((24, 24), class_token=False, dtype=torch.bfloat16).sum().backward()
    gradient = module.relative_position_bias_table.grad
    assert gradient is not None
    counts = torch.cat([torch.arange(1.0, 25), torch.arange(23.0, 0, -1)])
    assert torch.equal(gradient[: 47 * 47, 0].view(47, 47), counts[:, None] * counts)
    assert not gradient[47 * 47 :].any()


def test_an_aligned_bias_has_the_same_values_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(3, 2, 5, 5, generator=generator).transpose(0, 1).requires_grad_()
    found = aligned_bias(bias, torch.bfloat16)
    assert rows_are_aligned(found)
    assert torch.equal(found, bias.to(torch.bfloat16))
    upstream = torch.randn(found.shape, generator=generator).to(torch.bfloat16)
    found.backward(upstream)
    assert bias.grad is not None
    assert torch.equal(bias.grad, upstream.float())
    assert aligned_bias(found, torch.bfloat16) is found


@pytest.mark.parametrize("shared", [True, False])
def test_a_block_passes_an_aligned_bias_of_the_precision_it_computes_in(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def record(
        query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor, dropout_p: float
    ) -> Tensor:
        seen.append(attn_mask)
        return attend(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    spec = find_spec("vit_pocket")
    block = ViTBlock(spec, drop_path=0, own_position_bias=not shared, class_token=True, window=0)
    block.attn.fused_attn = True
    tokens = torch.randn(2, 1 + spec.grid[0] * spec.grid[1], spec.embed_dim)
    bias = RelativePositionBias(spec.grid, spec.num_heads[0])(spec.grid) if shared else None
    with torch.autocast("cpu", torch.bfloat16):
        block(tokens, spec.grid, bias)
    assert rows_are_aligned(seen[0])
    assert seen[0].dtype == torch.bfloat16
    assert tokens.shape[1] % ALIGNMENT


@pytest.mark.parametrize("resized", [False, True])
def test_attention_without_bias_equals_attention_with_the_decomposed_bias(resized: bool) -> None:
    generator, grid = torch.Generator().manual_seed(0), (4, 3)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    query, key, value = (random(2, 3, 12, 6) for _ in range(3))
    sides = (5, 2) if resized else grid
    by_row, by_column = (random(2 * side - 1, 6) for side in sides)
    inputs = [query, key, value, by_row, by_column]
    scale = 6**-0.5
    bias = get_decomposed_rel_pos_bias(query.flatten(0, 1), by_row, by_column, grid, grid)
    logits = query @ key.transpose(-2, -1) * scale + bias.view(2, 3, 12, 12)
    expected = logits.softmax(-1) @ value
    found = attend_without_bias(query, key, value, by_row, by_column, grid, scale)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad(output, inputs, upstream) for output in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
