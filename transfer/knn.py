"""A vote of the nearest training images by cosine similarity, as in DINO (arXiv 2104.14294, section 4.1).

Legend: N training images, M queries, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_bench.errors import DataError
from simmim_bench.rundir import RunDir
from transfer.candidates import Outcome, Seen, best
from transfer.features import Features, FeatureSet
from transfer.frozen_recipes import KnnRecipe, Norm
from transfer.normaliser import Normaliser

SIMILARITIES = 2**27  # at a time; half a GiB


def knn_votes(
    train: Tensor,
    labels: Tensor,
    queries: Tensor,
    classes: int,
    *,
    ks: Sequence[int],
    temperature: float,
    own_rows: Tensor | None = None,
) -> list[Tensor]:
    """Let the k nearest training images vote, for several k.

    Args:
        train: (N, D) float32; labels: (N,); queries: (M, D). All on one device.
        own_rows: (M,) rows of `train` that the queries are themselves, which do not vote; None where
            they are other images.

    Returns:
        (M, K) sums of exp((similarity - 1) / temperature) on the CPU, one for each k.
    """
    train, queries = F.normalize(train, dim=1), F.normalize(queries, dim=1)
    most = min(max(ks), len(train) - (own_rows is not None))
    votes: list[list[Tensor]] = [[] for _ in ks]
    at_a_time = max(1, SIMILARITIES // len(train))
    for start in range(0, len(queries), at_a_time):
        similarity = queries[start : start + at_a_time] @ train.T
        if own_rows is not None:
            own = own_rows[start : start + at_a_time].to(train.device)
            similarity.scatter_(1, own[:, None], -torch.inf)
        nearest, index = similarity.topk(most, dim=1)
        weight = ((nearest - 1) / temperature).exp()
        for k, found in zip(ks, votes, strict=True):
            sums = torch.zeros(len(similarity), classes, device=train.device)
            found.append(sums.scatter_add_(1, labels[index[:, :k]], weight[:, :k]).cpu())
    return [torch.cat(found) for found in votes]


def probe_knn(
    seen: Seen,
    val: Features | None,
    sets: Sequence[FeatureSet],
    recipe: KnnRecipe,
    *,
    seed: int,
    run: RunDir,
    device: torch.device,
) -> Outcome:
    """Choose feature set, norm and k on some training images, each among all others, and score `val`.

    Args:
        val: None to score the other training images instead, each among all others.

    Raises:
        DataError: too few images to choose on some and score others.
    """
    labels = seen.labels.to(device)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    share = 1.0 if val is not None else 0.5
    choosing = order[: min(recipe.choose_on, int(share * len(labels)))].sort().values
    if not len(choosing):
        raise DataError(
            f"{len(labels)} training image is too few for knn: none would be left to vote."
        )

    def vote(
        one: FeatureSet, norm: Norm, ks: Sequence[int], queries: Features | Tensor
    ) -> list[Tensor]:
        train = seen.read(one).to(device)
        normalise = Normaliser([norm], train)
        if isinstance(queries, Tensor):
            own_rows, asked = queries, train[queries.to(device)]
        else:
            own_rows, asked = None, queries.read(one).to(device)
        return knn_votes(
            normalise(train)[0],
            labels,
            normalise(asked)[0],
            seen.classes,
            ks=ks,
            temperature=recipe.temperature,
            own_rows=own_rows,
        )

    compared = []
    with run.display.task("compare", len(sets) * len(recipe.norm)) as task:
        for one in sets:
            for norm in recipe.norm:
                for k, votes in zip(recipe.k, vote(one, norm, recipe.k, choosing), strict=True):
                    right = votes.argmax(1) == seen.labels[choosing]
                    top1 = 100 * float(right.float().mean())
                    compared.append({**asdict(one), "norm": norm, "k": k, "held_out_top1": top1})
                task.advance()
    chosen = best(compared)
    one = FeatureSet(chosen["block"], chosen["pooling"])
    if val is not None:
        (votes,) = vote(one, chosen["norm"], [chosen["k"]], val)
        return Outcome(votes, chosen, compared)
    others = torch.ones(len(labels), dtype=torch.bool)
    others[choosing] = False
    scored = others.nonzero()[:, 0]
    (votes,) = vote(one, chosen["norm"], [chosen["k"]], scored)
    return Outcome(votes, chosen, compared, scored.tolist())
