"""Compare attention with relative positions: time, memory and gradients of SDPA with a bias and of FlexAttention.

The product uses the cases named "aligned" and "in the product of queries and keys". FlexAttention is measured here and
not used: its backward pass adds to a bias table with atomics, in no fixed order, so that two runs differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.beit import gen_relative_position_index
from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from gpu_checks.harness import CheckFailed, Setup
from gpu_checks.numerics import cosine
from gpu_checks.product import GIB, RelativePositionBias, attend_without_bias, autocast
from gpu_checks.report import Findings

LEAST_COSINE = 0.99  # of a gradient in bfloat16 and in float32
# Images or windows, heads, channels of a head and grid. At 1,024 pixels, ViTDet's ViT-B has global blocks and windows.
SHAPES = {"global": (2, 12, 64, (64, 64)), "windows": (50, 12, 64, (14, 14))}
TINY_SHAPES = {"global": (1, 2, 8, (5, 3))}
FLEX = "FlexAttention"
PRODUCT = ("aligned", "in the product of queries and keys")
Attend = Callable[..., Tensor]  # of query, key, value and the parameters of the positions


@dataclass(frozen=True)
class Problem:
    """Queries, keys and values, and the parameters of the positions of a grid."""

    grid: tuple[int, int]
    attended: list[Tensor]
    positions: list[Tensor]
    upstream: Tensor


def attention(setup: Setup) -> Findings:
    """Compare ways to compute attention with a bias table, and with ViTDet's decomposed positions.

    Gradients are compared with explicit products in float32.
    """
    findings: Findings = {}
    wrong = []
    for shape_name, shape in (TINY_SHAPES if setup.tiny else SHAPES).items():
        for kind, variants in (("table", TABLE), ("decomposed", DECOMPOSED)):
            problem = _problem(setup, shape, kind)
            expected = _reference(problem, kind)
            for variant, attend in variants.items():
                name = f"{kind}, {shape_name}: {variant}"
                findings[name] = _measure(setup, problem, attend, expected, variant)
                lowest = findings[name].get("lowest_cosine", 0.0)
                if variant in PRODUCT and not lowest > LEAST_COSINE:
                    wrong.append(name)
    if wrong:
        raise CheckFailed(f"{'; '.join(wrong)}: gradients differ from those in float32", findings)
    return findings


def attend_with_plain_table(problem: Problem) -> Attend:
    """Index the table in float32, permute the bias and convert it; torch aligns it by a copy where it has to."""
    index = gen_relative_position_index(problem.grid, device=problem.upstream.device)[1:, 1:]

    def attend(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        bias = table[index].permute(2, 0, 1).contiguous().to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])

    return attend


def attend_with_aligned_table(problem: Problem) -> Attend:
    """Compute the bias with the module of the product."""
    module = RelativePositionBias(problem.grid, problem.upstream.shape[1])
    name = "relative_position_bias_table"

    def attend(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        bias = torch.func.functional_call(
            module, {name: table}, (problem.grid,), {"class_token": False, "dtype": query.dtype}
        )
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)

    return attend


def attend_with_flex_table(problem: Problem) -> Attend:
    """Read the table in the kernel."""
    height, width = problem.grid
    flex = _flex(problem)

    def attend(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        def add_bias(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            rows, columns = q // width - k // width, q % width - k % width
            return score + table[(rows + height - 1) * (2 * width - 1) + columns + width - 1, h]

        return flex(query, key, value, score_mod=add_bias)

    return attend


def attend_with_decomposed_bias(problem: Problem) -> Attend:
    """Compute the bias of every image."""

    def attend(
        query: Tensor, key: Tensor, value: Tensor, by_row: Tensor, by_column: Tensor
    ) -> Tensor:
        bias = get_decomposed_rel_pos_bias(
            query.flatten(0, 1), by_row, by_column, problem.grid, problem.grid
        ).view(*query.shape[:2], query.shape[2], key.shape[2])
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))

    return attend


def attend_with_extended_keys(problem: Problem) -> Attend:
    """Compute the positions as the product does."""

    def attend(
        query: Tensor, key: Tensor, value: Tensor, by_row: Tensor, by_column: Tensor
    ) -> Tensor:
        scale = query.shape[-1] ** -0.5
        return attend_without_bias(query, key, value, by_row, by_column, problem.grid, scale)

    return attend


def attend_with_flex_decomposed(problem: Problem) -> Attend:
    """Add the two numbers of a query and a key in the kernel."""
    (height, width), flex = problem.grid, _flex(problem)
    rows, columns = (
        torch.arange(side, device=problem.upstream.device)[:, None]
        - torch.arange(side, device=problem.upstream.device)
        + side
        - 1
        for side in (height, width)
    )

    def attend(
        query: Tensor, key: Tensor, value: Tensor, by_row: Tensor, by_column: Tensor
    ) -> Tensor:
        placed = query.unflatten(2, problem.grid)
        to_row = torch.einsum("bnhwd,hkd->bnhwk", placed, by_row[rows]).flatten(2, 3)
        to_column = torch.einsum("bnhwd,wkd->bnhwk", placed, by_column[columns]).flatten(2, 3)

        def add_positions(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return score + to_row[b, h, q, k // width] + to_column[b, h, q, k % width]

        return flex(query, key, value, score_mod=add_positions)

    return attend


TABLE: dict[str, Callable[[Problem], Attend]] = {
    "float32, converted": attend_with_plain_table,
    "aligned": attend_with_aligned_table,
    FLEX: attend_with_flex_table,
}
DECOMPOSED: dict[str, Callable[[Problem], Attend]] = {
    "bias of every image": attend_with_decomposed_bias,
    "in the product of queries and keys": attend_with_extended_keys,
    FLEX: attend_with_flex_decomposed,
}


def _flex(problem: Problem) -> Callable[..., Tensor]:
    """Return FlexAttention: compiled on a GPU; on a CPU, where only the forward pass could be, eager."""
    if not problem.upstream.is_cuda:
        return flex_attention
    return torch.compile(flex_attention, dynamic=False)


def _problem(setup: Setup, shape: tuple[int, int, int, tuple[int, int]], kind: str) -> Problem:
    images, heads, channels, grid = shape
    tokens = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(setup.device)

    dtype = torch.float32 if setup.tiny else torch.bfloat16
    query, key, value, upstream = (
        random(images, heads, tokens, channels).to(dtype) for _ in range(4)
    )
    positions = [random((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, heads)]
    if kind == "decomposed":
        positions = [0.2 * random(2 * side - 1, channels) for side in grid]
    leaves = [query, key, value, *positions]
    for leaf in leaves:
        leaf.requires_grad_()
    return Problem(grid, leaves[:3], positions, upstream)


def _reference(problem: Problem, kind: str) -> list[Tensor]:
    """Return the gradients of explicit products in float32, one image at a time, whose scores are large."""
    positions = [p.detach().requires_grad_() for p in problem.positions]
    of_attended, upstream = list[Sequence[Tensor]](), problem.upstream.float()
    total = [torch.zeros_like(p) for p in positions]
    for index in range(len(upstream)):
        query, key, value = (
            x[index : index + 1].detach().float().requires_grad_() for x in problem.attended
        )
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        if kind == "table":
            pairs = gen_relative_position_index(problem.grid, device=upstream.device)[1:, 1:]
            scores = scores + positions[0][pairs].permute(2, 0, 1)
        else:
            bias = get_decomposed_rel_pos_bias(query[0], *positions, problem.grid, problem.grid)
            scores = scores + bias
        output = scores.softmax(-1) @ value
        found = torch.autograd.grad(
            output, [query, key, value, *positions], upstream[index : index + 1]
        )
        of_attended.append(found[:3])
        total = [a + b for a, b in zip(total, found[3:], strict=True)]
    return [torch.cat(parts) for parts in zip(*of_attended, strict=True)] + total


def _measure(
    setup: Setup,
    problem: Problem,
    build: Callable[[Problem], Attend],
    expected: list[Tensor],
    variant: str,
) -> Findings:
    """Measure a forward and backward pass, and compare its gradients; a failure of FlexAttention is a finding."""
    inputs = [*problem.attended, *problem.positions]
    if setup.tiny and variant == FLEX:
        # On a CPU it computes gradients of what a score function reads, but refuses queries and keys that need one.
        inputs = [*(x.detach() for x in problem.attended), *problem.positions]
    needed = [x for x in inputs if x.requires_grad]

    def call() -> tuple[Tensor, ...]:
        with autocast(setup.device, setup.precision):
            output = attend(*inputs)
        return torch.autograd.grad(output, needed, problem.upstream)

    try:
        attend = build(problem)
        gradients = call()
        found = _time_and_memory(setup, call)
    except Exception as error:
        if variant != FLEX:
            raise
        return {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    compared = expected[len(inputs) - len(needed) :]
    cosines = [cosine(a.float(), b) for a, b in zip(gradients, compared, strict=True)]
    return {**found, "lowest_cosine": min(cosines)}


def _time_and_memory(setup: Setup, call: Callable[[], object]) -> Findings:
    """Return the milliseconds of a call, and the GPU memory that it takes beyond what is allocated."""
    cuda, rounds = setup.device.type == "cuda", 2 if setup.tiny else 8
    before = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    started = time.perf_counter()
    for _ in range(rounds):
        call()
    setup.synchronize()
    found: Findings = {"step_ms": 1e3 * (time.perf_counter() - started) / rounds}
    if cuda:
        found["peak_gib"] = (torch.cuda.max_memory_allocated() - before) / GIB
    return found
