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
    rank_others: bool = False,
) -> Iterator[list[Tensor]]:
    """Sum the votes of the k nearest training images, for several k, one chunk of queries after another.

    Args:
        train: (N, D) float32, each of length 1; labels: (N,); queries: (M, D), as `train`. All on one device.
        query_rows: (M,) rows of `train` that are queried instead of `queries`; they do not vote on themselves.
        rank_others: rank the classes without a vote as well, by the similarity of their nearest training image.

    Yields:
        For each k, sums of exp((similarity - 1) / temperature): (queries of the chunk, K), on the CPU. A class without
        a vote has 0, or with `rank_others` the similarity of its nearest image minus 2, a negative number.
    """
    rows_or_vectors = query_rows if queries is None else queries
    assert rows_or_vectors is not None
    max_k = min(max(ks), len(train) - (queries is None))
    for chunk in rows_or_vectors.to(train.device).split(max(1, SIMILARITIES // len(train))):
        similarity = (train[chunk] if queries is None else chunk) @ train.T
        if queries is None:
            similarity.scatter_(1, chunk[:, None], -torch.inf)
        nearest, index = similarity.topk(max_k, dim=1)
        weight = _weights(nearest, temperature)
        others = _nearest_of_classes(similarity, labels, num_classes) - 2 if rank_others else None
        votes = []
        for k in ks:
            sums = torch.zeros(len(chunk), num_classes, device=train.device)
            sums.scatter_add_(1, labels[index[:, :k]], weight[:, :k])
            if others is not None:
                has_votes = torch.zeros_like(sums, dtype=torch.bool)
                has_votes.scatter_(1, labels[index[:, :k]], True)
                sums = torch.where(has_votes, sums, others)
            votes.append(sums.cpu())
        yield votes


def _weights(nearest: Tensor, temperature: float) -> Tensor:
    """Return the votes of neighbours with similarities (M, k), in descending order.

    Where all would be 0 in float32, at a low temperature, they are scaled by the vote of the nearest one.
    """
    first = nearest[:, :1]
    vanishes = ((first - 1) / temperature).exp() < torch.finfo(nearest.dtype).tiny
    return ((nearest - torch.where(vanishes, first, 1)) / temperature).exp()


def _nearest_of_classes(similarity: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the highest similarity (M, K) of the training images of each class; -1 for a class without images."""
    highest = torch.full((len(similarity), num_classes), -1.0, device=similarity.device)
    return highest.scatter_reduce_(1, labels.expand_as(similarity), similarity, "amax")


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
