"""The protocol of k-nearest-neighbour classification: candidates compared on training images, the best scored.

The votes of neighbours rank the classes but are not probabilities: records of k-NN have no calibration. Few neighbours
vote for few classes; the others are ranked by their nearest training image, which top-5 and the stored ranking need.
DINO's evaluator sorts classes without a vote in no particular order (eval_knn.py: knn_classifier).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from simmim_bench.distributed import DistContext
from simmim_bench.errors import DataError
from simmim_bench.probes.knn import count_correct, knn_votes, to_unit_length
from simmim_bench.probes.norms import Normaliser
from simmim_bench.recipe import Norm
from simmim_bench.results.metrics import Ranking, join_rankings, rank_votes
from simmim_bench.runs.run_dir import RunDir
from transfer.frozen.candidates import ProbeResult, TrainingSubset, best_candidate
from transfer.frozen.feature_store import StoredFeatures
from transfer.frozen.features import FeatureSet
from transfer.frozen.recipes import KnnRecipe
from transfer.inference import own_part


def probe_knn(
    train: TrainingSubset,
    val: StoredFeatures | None,
    feature_sets: Sequence[FeatureSet],
    recipe: KnnRecipe,
    *,
    seed: int,
    run: RunDir,
    dist: DistContext,
) -> ProbeResult | None:
    """Choose feature set, norm and k on some training images, each against all others, and score `val`.

    Processes divide the feature sets, then the images to score.

    Args:
        val: None to score the other training images instead, each against all others. By the recipe's `choose_votes`
            these then do not vote while the candidates are compared, so that no label of a scored image has a part
            in the choice.

    Returns:
        The result on rank 0; None on the other processes.

    Raises:
        DataError: too few images to choose on some and score others.
    """
    labels = train.labels.to(dist.device)
    # Leave-one-out scores the same images for every seed, so that scores of several seeds are comparable.
    choosing = (
        _sample_images(len(labels), min(recipe.choose_on, len(labels) // 2), seed=0)
        if val is None
        else _sample_images(len(labels), recipe.choose_on, seed)
    )
    least = 2 if recipe.choose_votes == "choosing" else 1
    if len(choosing) < least:
        raise DataError(
            f"leave_one_out=true chooses on {len(choosing)} of {len(labels)} training images, and needs {least} to "
            f"choose on; use {2 * least} training images or more, and choose_on={least} or more."
        )
    own_sets = feature_sets[dist.rank :: dist.size]
    gathered = dist.gather(_compare(train, labels, own_sets, recipe, choosing, run))
    per_set = len(recipe.norm) * len(recipe.k)
    compared = [
        candidate
        for number in range(len(feature_sets) if gathered else 0)
        for candidate in gathered[number % dist.size][number // dist.size * per_set :][:per_set]
    ]
    number = compared.index(best_candidate(compared)) if compared else 0
    number = dist.all_max(number)
    norm, k = divmod(number % per_set, len(recipe.k))
    chosen = {**feature_sets[number // per_set].to_json(), "norm": recipe.norm[norm]}
    others = torch.ones(len(labels), dtype=torch.bool)
    others[choosing] = False
    scored = others.nonzero()[:, 0] if val is None else None
    rankings = _rank_together(
        train, labels, chosen, recipe, val if scored is None else scored, dist
    )
    if not dist.is_main:
        return None
    ranking = rankings[recipe.k[k]]
    rows = None if scored is None else scored.tolist()
    return ProbeResult(ranking, compared[number], compared, rows, by_setting=rankings)


def _rank_together(
    train: TrainingSubset,
    labels: Tensor,
    chosen: dict[str, Any],
    recipe: KnnRecipe,
    queries: StoredFeatures | Tensor | None,
    dist: DistContext,
) -> dict[int, Ranking]:
    """Rank the classes of the queries; each process ranks a part, and rank 0 joins them."""
    assert queries is not None
    rows = own_part(len(queries), dist)
    own = _rank(train, labels, chosen, recipe, queries, rows) if rows else {}
    parts = [part for part in dist.gather(own) if part]
    return {k: join_rankings([part[k] for part in parts]) for k in recipe.k if parts}


def _sample_images(images: int, count: int, seed: int) -> Tensor:
    """Sample the indices, ascending, of at most `count` images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(images, generator=generator)[:count].sort().values


def _compare(
    train: TrainingSubset,
    labels: Tensor,
    feature_sets: Sequence[FeatureSet],
    recipe: KnnRecipe,
    choosing: Tensor,
    run: RunDir,
) -> list[dict[str, Any]]:
    """Return every candidate with its top-1 on the `choosing` images, in percent."""
    compared = []
    truth = train.labels[choosing]
    with run.display.task("compare", len(feature_sets) * len(recipe.norm)) as task:
        for feature_set in feature_sets:
            for norm in recipe.norm:
                voters = choosing if recipe.choose_votes == "choosing" else None
                chunks = _vote(
                    train, labels, feature_set, norm, recipe, choosing, others=False, voters=voters
                )
                correct = count_correct(chunks, truth, len(recipe.k))
                compared += [
                    {
                        **feature_set.to_json(),
                        "norm": norm,
                        "k": k,
                        "held_out_top1": 100 * count / len(choosing),
                    }
                    for k, count in zip(recipe.k, correct, strict=True)
                ]
                task.advance()
    return compared


def _rank(
    train: TrainingSubset,
    labels: Tensor,
    chosen: dict[str, Any],
    recipe: KnnRecipe,
    queries: StoredFeatures | Tensor,
    rows: range,
) -> dict[int, Ranking]:
    """Rank the classes of some rows of the queries by the chosen feature set and norm, for every k."""
    feature_set = FeatureSet.of(chosen)
    some = (
        queries[rows.start : rows.stop]
        if isinstance(queries, Tensor)
        else queries.read(feature_set, rows if len(rows) < len(queries) else None)
    )
    chunks = _vote(
        train,
        labels,
        feature_set,
        chosen["norm"],
        recipe,
        some,
        others=not isinstance(queries, Tensor),
        rank_others=True,
    )
    # The votes of a million images for a thousand classes are 5 GB; their ten best classes 40 MB.
    ranked = [[rank_votes(votes.numpy()) for votes in by_k] for by_k in chunks]
    return {
        k: join_rankings(parts)
        for k, parts in zip(recipe.k, zip(*ranked, strict=True), strict=True)
    }


def _vote(
    train: TrainingSubset,
    labels: Tensor,
    feature_set: FeatureSet,
    norm: Norm,
    recipe: KnnRecipe,
    queries: Tensor,
    *,
    others: bool,
    voters: Tensor | None = None,
    rank_others: bool = False,
) -> Iterator[list[Tensor]]:
    """Score queries by the votes of the training images; see `knn_votes`.

    Args:
        labels: class numbers of the training images, on the device that computes.
        queries: features of other images, or indices of training images.
        others: whether `queries` are features.
        voters: indices of the training images that vote, if not all; the queries are these images.
    """
    features = train.read(feature_set)
    normaliser = Normaliser([norm], features, labels.device)
    vectors = to_unit_length(normaliser.normalise_all(queries)) if others else None
    if voters is not None:
        features, labels, queries = features[voters], labels[voters], torch.arange(len(voters))
    return knn_votes(
        to_unit_length(normaliser.normalise_all(features)),
        labels,
        vectors,
        train.num_classes,
        ks=recipe.k,
        temperature=recipe.temperature,
        query_rows=None if others else queries,
        rank_others=rank_others,
    )
