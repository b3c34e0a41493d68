"""Attentive heads equal the published modules, which project every token, and treat tokens as a set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from simmim_bench.distributed import DistContext
from transfer.attentive.batch_norm import BatchNorm, total_over
from transfer.attentive.heads import (
    HEADS,
    AttentiveHead,
    CrossPooling,
    EfficientPooling,
    LatentPooling,
    attend,
)
from transfer.attentive.recipes import ATTENTIVE_POCKET, Head, TokenNorm

ALONE = total_over(DistContext())
WIDTH, QUERIES, NUM_HEADS, CLASSES = 24, 6, 4, 5
RECIPE = replace(ATTENTIVE_POCKET, queries=QUERIES, num_heads=NUM_HEADS)


def tokens_of(images: int = 7, length: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, length, WIDTH, generator=generator) * 2 + 0.5


def pooled(pooling: EfficientPooling | CrossPooling | LatentPooling, x: Tensor) -> Tensor:
    return pooling.project(attend(x, pooling.queries())[0])


def test_efficient_pooling_is_a_mean_of_projected_tokens_by_query() -> None:
    torch.manual_seed(0)
    pooling, x = EfficientPooling(WIDTH, QUERIES), tokens_of()
    width = WIDTH // QUERIES
    with torch.no_grad():
        pooling.query.mul_(50)  # for weights that differ between tokens
        wanted = torch.zeros(len(x), WIDTH)
        for image, tokens in enumerate(x):
            values = pooling.value(tokens)
            for q in range(QUERIES):
                scores = torch.stack([pooling.query[q] @ token for token in tokens])
                weights = (scores / WIDTH**0.5).softmax(0)
                for weight, value in zip(weights, values, strict=True):
                    own = slice(q * width, (q + 1) * width)
                    wanted[image, own] += weight * value[own]
        torch.testing.assert_close(pooled(pooling, x), wanted, rtol=1e-5, atol=1e-5)


def test_cross_pooling_is_torch_s_multi_head_attention() -> None:
    torch.manual_seed(0)
    pooling, x = CrossPooling(WIDTH, NUM_HEADS), tokens_of()
    official = nn.MultiheadAttention(WIDTH, NUM_HEADS, bias=False, batch_first=True)
    with torch.no_grad():
        pooling.query.mul_(50)
        # AIM projects neither the query nor the result.
        eye = torch.eye(WIDTH)
        official.in_proj_weight.copy_(torch.cat([eye, pooling.key.weight, pooling.value.weight]))
        official.out_proj.weight.copy_(eye)
        query = pooling.query.flatten().expand(len(x), 1, WIDTH)
        wanted, _ = official(query, x, x, need_weights=False)
        torch.testing.assert_close(pooled(pooling, x), wanted[:, 0], rtol=1e-5, atol=1e-5)


def test_latent_pooling_is_timm_s_with_all_its_gradients() -> None:
    torch.manual_seed(0)
    pooling, x = LatentPooling(WIDTH, NUM_HEADS), tokens_of()
    with torch.no_grad():
        pooling.pool.latent.mul_(20)
    found, wanted = pooled(pooling, x), pooling.pool(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    parameters = list(pooling.parameters())
    gradients = [
        torch.autograd.grad(y.square().sum(), parameters, retain_graph=True)
        for y in (found, wanted)
    ]
    for own, official in zip(*gradients, strict=True):
        torch.testing.assert_close(own, official, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_permutation_of_the_tokens_does_not_change_the_logits(
    name: Head, norm: TokenNorm
) -> None:
    torch.manual_seed(0)
    recipe = replace(RECIPE, token_norm=norm)
    head = AttentiveHead(name, WIDTH, CLASSES, recipe).eval()
    x = tokens_of()
    if head.token_norm is not None:
        head.token_norm.mean.copy_(x.mean((0, 1)))
        head.token_norm.var.copy_(x.var((0, 1)))
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(2))
    found = [logits_of(head, tokens) for tokens in (x, x[:, order])]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    other = logits_of(head, x.flip(2))  # of the channels
    assert not torch.allclose(found[0], other, atol=1e-2)


def logits_of(head: AttentiveHead, x: Tensor) -> Tensor:
    moments = head.running_moments()
    means, _ = attend(x, head.queries(moments))
    return head.classify(means, moments, torch.ones(len(x)), ALONE)


def test_batch_norm_of_the_tokens_is_that_of_torch() -> None:
    torch.manual_seed(0)
    head = AttentiveHead("cross", WIDTH, CLASSES, replace(RECIPE, token_norm="batch")).eval()
    plain = AttentiveHead("cross", WIDTH, CLASSES, replace(RECIPE, token_norm="none")).eval()
    norm, x = nn.BatchNorm1d(WIDTH, affine=False, eps=1e-6), tokens_of()
    norm(x.transpose(1, 2))
    norm.eval()
    plain.load_state_dict(head.state_dict(), strict=False)
    assert head.token_norm is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    head.token_norm.mean.copy_(norm.running_mean)
    head.token_norm.var.copy_(norm.running_var)
    normed = norm(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(logits_of(head, x), logits_of(plain, normed), rtol=1e-4, atol=1e-5)


def test_batch_norm_counts_some_images_as_torch_counts_those_alone() -> None:
    own, official = BatchNorm(WIDTH), nn.BatchNorm1d(WIDTH, affine=False, eps=1e-6)
    x = tokens_of(images=12)[:, 0]
    counted = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1])
    for vectors in (x, 3 * x - 1):
        found, wanted = own(vectors, counted, ALONE), official(vectors[counted > 0])
        torch.testing.assert_close(found[counted > 0], wanted, rtol=1e-5, atol=1e-5)
    assert official.running_mean is not None
    assert official.running_var is not None
    torch.testing.assert_close(own.mean, official.running_mean)
    torch.testing.assert_close(own.var, official.running_var)
