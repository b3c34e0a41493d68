"""Classifiers that pool the tokens of an image by attention.

All heads share one form. Learnt queries score the tokens, a softmax over the tokens turns the scores into weights, and
each query's weighted mean of the tokens is projected to some channels of a vector. A BatchNorm without weights and a
linear classifier follow, as after every pooling of efficient-probing (probe_heads.py:106).

The published modules project every token and then take the mean. A mean of projected tokens is the projection of their
mean, and the score of a projected key is that of the token with a projected query. So projections are applied to the
few queries and means instead of all tokens, for a small part of the cost; the results are the same up to rounding.

Lines are those of billpsomas/efficient-probing at b8f4fb8.

Legend: B images, L tokens, D channels, Q queries, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from simmim_bench.errors import UsageError
from transfer.attentive.batch_norm import BatchNorm, Total, normalise
from transfer.attentive.recipes import AttentiveRecipe, Head

QUERY_STD = 0.02  # of a query's initial values: poolings/ep.py:26, poolings/aim.py:355


class Pooling(nn.Module):
    """Queries, and the projection of the tokens' means."""

    @abstractmethod
    def queries(self) -> Tensor:
        """Return the queries (Q, D) whose products with the tokens are the scores."""

    @abstractmethod
    def project(self, means: Tensor) -> Tensor:
        """Map the weighted means (B, Q, D) of the tokens to a vector (B, D)."""


class EfficientPooling(Pooling):
    """The efficient probe (arXiv 2506.10178; poolings/ep.py): keys are the tokens, each query has D / Q values."""

    def __init__(self, channels: int, queries: int) -> None:
        super().__init__()
        self.value = nn.Linear(channels, channels, bias=False)
        self.query = nn.Parameter(torch.randn(queries, channels) * QUERY_STD)

    def queries(self) -> Tensor:
        """Return the scaled queries."""
        return self.query * self.query.shape[1] ** -0.5

    def project(self, means: Tensor) -> Tensor:
        """Project each query's mean to the query's values."""
        return _project_each(means, self.value.weight)


class CrossPooling(Pooling):
    """AIM's multi-head cross-attention (arXiv 2401.08541; poolings/aim.py): one query, projected keys and values.

    AIM normalises the tokens by a BatchNorm without weights before: `token_norm=batch`. CAE's block
    (poolings/cae_att.py) has LayerNorms and an output projection in addition, V-JEPA's also an MLP, which
    `LatentPooling` has.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.query = nn.Parameter(torch.randn(num_heads, channels // num_heads) * QUERY_STD)

    def queries(self) -> Tensor:
        """Return the query of every head, projected by the head's keys."""
        return _project_back(self.query, self.key.weight)

    def project(self, means: Tensor) -> Tensor:
        """Project each head's mean to the head's values."""
        return _project_each(means, self.value.weight)


class LatentPooling(Pooling):
    """timm's `AttentionPoolLatent` with its defaults: one latent query, output projection, and an MLP."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.pool = AttentionPoolLatent(channels, num_heads=num_heads)

    def queries(self) -> Tensor:
        """Return the query of every head; the bias of the keys adds the same to all scores of a query."""
        query = self.pool.q(self.pool.latent).view(self.pool.num_heads, -1)
        return _project_back(query, self.pool.kv.weight.chunk(2)[0])

    def project(self, means: Tensor) -> Tensor:
        """Apply the values, whose bias survives a mean, the output projection and the MLP."""
        _, weight = self.pool.kv.weight.chunk(2)
        _, bias = self.pool.kv.bias.chunk(2)
        x: Tensor = self.pool.proj(_project_each(means, weight) + bias)
        return x + self.pool.mlp(self.pool.norm(x))


def _project_each(means: Tensor, weight: Tensor) -> Tensor:
    """Project the mean of query q by the q-th part of a weight's rows: (B, Q, D) to (B, D)."""
    queries = means.shape[1]
    parts = weight.unflatten(0, (queries, -1))  # (Q, D / Q, D)
    return torch.bmm(means.transpose(0, 1), parts.transpose(1, 2)).transpose(0, 1).flatten(1)


def _project_back(query: Tensor, weight: Tensor) -> Tensor:
    """Return the queries (Q, D) whose scores are those of scaled queries (Q, d) with projected keys (Q * d, D)."""
    queries, width = query.shape
    parts = weight.unflatten(0, (queries, width))
    return torch.bmm(query.unsqueeze(1), parts).squeeze(1) * width**-0.5


HEADS: dict[Head, Callable[[int, AttentiveRecipe], Pooling]] = {
    "efficient": lambda channels, recipe: EfficientPooling(channels, recipe.queries),
    "latent": lambda channels, recipe: LatentPooling(channels, recipe.num_heads),
    "cross": lambda channels, recipe: CrossPooling(channels, recipe.num_heads),
}


class AttentiveHead(nn.Module):
    """One pooling with its norms and its linear classifier."""

    def __init__(self, name: Head, channels: int, classes: int, recipe: AttentiveRecipe) -> None:
        super().__init__()
        self.pooling = HEADS[name](channels, recipe)
        self.token_norm = BatchNorm(channels) if recipe.token_norm == "batch" else None
        self.norm = BatchNorm(channels)
        self.classifier = nn.Linear(channels, classes)

    def queries(self, moments: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the queries (Q, D) for tokens that are not normalised.

        Args:
            moments: mean (D,) and variance (D,) by which BatchNorm normalises the tokens; None for no BatchNorm. Its
                mean adds the same to all scores of a query.
        """
        queries = self.pooling.queries()
        return queries if moments is None else normalise(queries, queries.new_zeros(()), moments[1])

    def classify(
        self,
        means: Tensor,
        moments: tuple[Tensor, Tensor] | None,
        counted: Tensor,
        total: Total,
    ) -> Tensor:
        """Return logits (B, K) from the weighted means (B, Q, D) of tokens that are not normalised."""
        if moments is not None:
            means = normalise(means, *moments)
        logits: Tensor = self.classifier(self.norm(self.pooling.project(means), counted, total))
        return logits

    def running_moments(self) -> tuple[Tensor, Tensor] | None:
        """Return the running statistics of the tokens; None where they have no BatchNorm."""
        return None if self.token_norm is None else (self.token_norm.mean, self.token_norm.var)


def attend(tokens: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted means (B, Q, D) of tokens (B, L, D), and the weights (B, L, Q), which sum to 1 over L."""
    weights = (tokens @ queries.T).softmax(1)
    return weights.transpose(1, 2) @ tokens, weights


def divides(name: Head, channels: int, recipe: AttentiveRecipe) -> bool:
    """Return whether a head's number of queries or attention heads divides a number of channels."""
    return channels % (recipe.queries if name == "efficient" else recipe.num_heads) == 0


def check_width(name: Head, channels: int, block: int, recipe: AttentiveRecipe) -> None:
    """Refuse a number of queries or attention heads that does not divide the channels after a block.

    Raises:
        UsageError: the message names a number that does.
    """
    key = "queries" if name == "efficient" else "num_heads"
    wanted: int = getattr(recipe, key)
    if not divides(name, channels, recipe):
        fits = next(n for n in range(min(wanted, channels), 0, -1) if channels % n == 0)
        raise UsageError(
            f"{key}={wanted} does not divide the {channels} channels after block {block}; use -o {key}={fits}, or "
            "other -o blocks=..."
        )


def build_heads(
    name: Head, channels: int, classes: int, recipe: AttentiveRecipe, *, seed: int, copies: int
) -> list[AttentiveHead]:
    """Build heads with the same initial weights, which follow from the seed."""
    heads = []
    for _ in range(copies):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads.append(AttentiveHead(name, channels, classes, recipe))
    return heads
