"""Score patches by class: by the labels of their nearest training patches, or by logistic regression.

Legend: N training patches, M patches to score, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_bench.probes.knn import SIMILARITIES
from simmim_bench.probes.lbfgs import MAX_ITERATIONS
from simmim_bench.probes.logistic import fit_jointly
from simmim_bench.probes.norms import Normaliser
from simmim_bench.recipe import Norm
from simmim_bench.runs.context import RunContext
from transfer.dense.patches import PatchSample
from transfer.dense.recipes import DenseKnnRecipe, DenseLogisticRecipe, DenseRecipe

# Maps features (M, D) to scores (M, K), one tensor for each setting of the classifier.
Scorer = Callable[[Tensor], list[Tensor]]


def knn_scorer(
    sample: PatchSample, norm: Norm, ks: Sequence[int], temperature: float, device: torch.device
) -> Scorer:
    """Return a function that scores patches by k-nearest neighbours, for several k; see `neighbour_labels`."""
    normaliser = Normaliser([norm], sample.features, device)
    bank = F.normalize(normaliser.normalise_all(sample.features))
    labels = sample.labels.to(device)

    def score(features: Tensor) -> list[Tensor]:
        queries = F.normalize(normaliser.normalise_all(features))
        chunks = neighbour_labels(bank, labels, queries, ks, temperature)
        return [torch.cat(of_k) for of_k in zip(*chunks, strict=True)]

    return score


def neighbour_labels(
    bank: Tensor, labels: Tensor, queries: Tensor, ks: Sequence[int], temperature: float
) -> Iterator[list[Tensor]]:
    """Average the labels of each query's k nearest patches, weighted by the softmax of similarity / temperature.

    This is the cross-attention of arXiv 2306.01667 (section 3.1) to a query's neighbours. Queries are scored chunk by
    chunk.

    Args:
        bank: (N, D), of length 1; labels: (N, K), floating point; queries: (M, D), of length 1. All on one device.

    Yields:
        For each k, scores (queries of the chunk, K), float32.
    """
    most = min(max(ks), len(bank))
    at_once = max(1, SIMILARITIES // max(len(bank), most * labels.shape[1]))
    for chunk in queries.split(at_once):
        similarity, index = (chunk @ bank.T).topk(most)
        neighbours = labels[index].float()
        yield [
            torch.einsum(
                "mn,mnk->mk", (similarity[:, :k] / temperature).softmax(1), neighbours[:, :k]
            )
            for k in ks
        ]


def logistic_scorer(
    sample: PatchSample, norm: Norm, l2: Sequence[float], context: RunContext
) -> Scorer:
    """Fit regressions of the patches' most frequent classes, one for every strength; return their logits."""
    normaliser = Normaliser([norm], sample.features, context.dist.device)
    features = normaliser.normalise_all(sample.features)
    classes = sample.labels.argmax(1).to(features.device)
    fits = fit_jointly([(features, classes)], sample.labels.shape[1], l2)
    limited = [strength for strength, fit in zip(l2, fits, strict=True) if not fit.converged]
    if limited:
        strengths = ", ".join(f"{strength:g}" for strength in limited)
        context.run.log(
            f"ade20k: l2={strengths} not converged after iterations={MAX_ITERATIONS} of L-BFGS"
        )

    def score(features: Tensor) -> list[Tensor]:
        normalised = normaliser.normalise_all(features)
        return [fit.logits(normalised) for fit in fits]

    return score


def settings_of(recipe: DenseRecipe) -> tuple[str, Sequence[float]]:
    """Return the name and the candidates of the classifier's own setting."""
    if isinstance(recipe, DenseKnnRecipe):
        return "k", recipe.k
    assert isinstance(recipe, DenseLogisticRecipe)
    return "l2", recipe.l2


def fit_scorer(
    recipe: DenseRecipe,
    sample: PatchSample,
    norm: Norm,
    settings: Sequence[float],
    context: RunContext,
) -> Scorer:
    """Return the recipe's classifier of a sample, with some settings."""
    if isinstance(recipe, DenseKnnRecipe):
        ks = [int(k) for k in settings]
        return knn_scorer(sample, norm, ks, recipe.temperature, context.dist.device)
    return logistic_scorer(sample, norm, settings, context)
