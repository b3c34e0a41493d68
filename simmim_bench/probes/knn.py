"""k-nearest-neighbour classification by cosine similarity, as in DINO (arXiv 2104.14294, section 4.1).

Legend: N training images, M queries, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

MIN_NORM = 1e-12  # as in torch's cosine similarity: a row of zeros is similar to nothing
SIMILARITIES = 2**27  # computed at a time; half a GiB


def knn_votes(
    train: Tensor,
    labels: Tensor,
    queries: Tensor | None,
    num_classes: int,
    *,
    ks: Sequence[int],
    temperature: float,
    query_rows: Tensor | None = None,
) -> Iterator[list[Tensor]]:
    """Sum the votes of the k nearest training images, for several k, one chunk of queries after another.

    Args:
        train: (N, D) float32, each of length 1; labels: (N,); queries: (M, D), as `train`. All on one device.
        query_rows: (M,) rows of `train` that are queried instead of `queries`; they do not vote on themselves.

    Yields:
        For each k, sums of exp((similarity - 1) / temperature): (queries of the chunk, K), on the CPU.
    """
    rows_or_vectors = query_rows if queries is None else queries
    assert rows_or_vectors is not None
    max_k = min(max(ks), len(train) - (queries is None))
    for chunk in rows_or_vectors.to(train.device).split(max(1, SIMILARITIES // len(train))):
        similarity = (train[chunk] if queries is None else chunk) @ train.T
        if queries is None:
            similarity.scatter_(1, chunk[:, None], -torch.inf)
        nearest, index = similarity.topk(max_k, dim=1)
        weight = ((nearest - 1) / temperature).exp()
        votes = []
        for k in ks:
            sums = torch.zeros(len(chunk), num_classes, device=train.device)
            votes.append(sums.scatter_add_(1, labels[index[:, :k]], weight[:, :k]).cpu())
        yield votes


def count_correct(chunks: Iterator[list[Tensor]], truth: Tensor, num_ks: int) -> list[int]:
    """Count, for each k, the queries whose label has the most votes."""
    correct, done = [0] * num_ks, 0
    for votes in chunks:
        labels = truth[done : done + len(votes[0])]
        for number, sums in enumerate(votes):
            correct[number] += int((sums.argmax(1) == labels).sum())
        done += len(labels)
    return correct


def to_unit_length(features: Tensor) -> Tensor:
    """Scale each row to length 1, in place: another copy may not fit in memory."""
    return features.div_(features.norm(dim=1, keepdim=True).clamp_min_(MIN_NORM))
