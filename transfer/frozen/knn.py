"""A vote of the nearest training images by cosine similarity, as in DINO (arXiv 2104.14294, section 4.1).

Legend: N training images, M queries, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from simmim_bench.errors import DataError
from simmim_bench.results.metrics import join_rankings, rank_logits
from simmim_bench.runs.run_dir import RunDir
from transfer.frozen.candidates import ProbeResult, TrainingSubset, best
from transfer.frozen.feature_store import Features
from transfer.frozen.features import FeatureSet
from transfer.frozen.norms import Normaliser
from transfer.frozen.recipes import KnnRecipe, Norm

SHORTEST = 1e-12  # torch's for a cosine: a row of zeros is like nothing
SIMILARITIES = 2**27  # at a time; half a GiB


def knn_votes(
    train: Tensor,
    labels: Tensor,
    queries: Tensor | None,
    classes: int,
    *,
    ks: Sequence[int],
    temperature: float,
    own_rows: Tensor | None = None,
) -> Iterator[list[Tensor]]:
    """Let the k nearest training images vote, for several k, on some queries after others.

    Args:
        train: (N, D) float32, each of length 1; labels: (N,); queries: (M, D), as `train`. All on one device.
        own_rows: (M,) rows of `train` that are asked instead of `queries`, and do not vote on themselves.

    Returns:
        Sums of exp((similarity - 1) / temperature) on the CPU, (queries at a time, K) for each k.
    """
    request = own_rows if queries is None else queries
    assert request is not None
    most = min(max(ks), len(train) - (queries is None))
    for part in request.to(train.device).split(max(1, SIMILARITIES // len(train))):
        similarity = (train[part] if queries is None else part) @ train.T
        if queries is None:
            similarity.scatter_(1, part[:, None], -torch.inf)
        nearest, index = similarity.topk(most, dim=1)
        weight = ((nearest - 1) / temperature).exp()
        found = []
        for k in ks:
            sums = torch.zeros(len(part), classes, device=train.device)
            found.append(sums.scatter_add_(1, labels[index[:, :k]], weight[:, :k]).cpu())
        yield found


def probe_knn(
    seen: TrainingSubset,
    val: Features | None,
    sets: Sequence[FeatureSet],
    recipe: KnnRecipe,
    *,
    seed: int,
    run: RunDir,
    device: torch.device,
) -> ProbeResult:
    """Choose feature set, norm and k on some training images, each among all others, and score `val`.

    Args:
        val: None to score the other training images instead, each among all others.

    Raises:
        DataError: too few images to choose on some and score others.
    """
    labels = seen.labels.to(device)
    # Where the others are scored, they are the same for every seed: one protocol, one set of images.
    generator = torch.Generator().manual_seed(0 if val is None else seed)
    order = torch.randperm(len(labels), generator=generator)
    share = 1.0 if val is not None else 0.5
    choosing = order[: min(recipe.choose_on, int(share * len(labels)))].sort().values
    if not len(choosing):
        raise DataError(
            f"{len(labels)} training image is too few for knn: none would be left to vote."
        )

    def vote(
        one: FeatureSet, norm: Norm, ks: Sequence[int], queries: Features | Tensor
    ) -> Iterator[list[Tensor]]:
        features = seen.read(one)
        normalise = Normaliser([norm], features, device)
        if isinstance(queries, Tensor):
            own_rows, request = queries, None
        else:
            own_rows, request = None, _to_length_one(normalise.whole(queries.read(one)))
        return knn_votes(
            _to_length_one(normalise.whole(features)),
            labels,
            request,
            seen.classes,
            ks=ks,
            temperature=recipe.temperature,
            own_rows=own_rows,
        )

    compared = []
    wanted = seen.labels[choosing]
    with run.display.task("compare", len(sets) * len(recipe.norm)) as task:
        for one in sets:
            for norm in recipe.norm:
                right, done = [0] * len(recipe.k), 0
                for votes in vote(one, norm, recipe.k, choosing):
                    truth = wanted[done : done + len(votes[0])]
                    right = [
                        r + int((v.argmax(1) == truth).sum())
                        for r, v in zip(right, votes, strict=True)
                    ]
                    done += len(truth)
                compared += [
                    {**asdict(one), "norm": norm, "k": k, "held_out_top1": 100 * r / len(choosing)}
                    for k, r in zip(recipe.k, right, strict=True)
                ]
                task.advance()
    chosen = best(compared)
    one = FeatureSet(chosen["block"], chosen["pooling"])
    scored = None
    if val is None:
        others = torch.ones(len(labels), dtype=torch.bool)
        others[choosing] = False
        scored = others.nonzero()[:, 0]
    request = val if scored is None else scored
    assert request is not None
    # The votes of a million images for a thousand classes are 5 GB; their ten best classes 40 MB.
    ranking = join_rankings(
        [
            rank_logits(votes.numpy())
            for (votes,) in vote(one, chosen["norm"], [chosen["k"]], request)
        ]
    )
    return ProbeResult(ranking, chosen, compared, None if scored is None else scored.tolist())


def _to_length_one(features: Tensor) -> Tensor:
    """Scale each row to length 1, in place: another copy may not fit."""
    return features.div_(features.norm(dim=1, keepdim=True).clamp_min_(SHORTEST))
