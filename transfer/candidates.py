"""What a score on frozen features may learn from, and what it gives.

Every such score first compares candidates (feature sets, norms, and what its classifier adds) on training
images that it has not learnt from, then takes the best one to the images that are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from simmim_bench.data import balanced_subset
from simmim_bench.sources import ImageList
from transfer.features import Features, FeatureSet


@dataclass(frozen=True)
class Seen:
    """Training images that may be learnt from.

    Attributes:
        listed: the images whose features are kept together.
        rows: those of them that may be learnt from; None for all.
        features: of `listed`, of their centre crops.
    """

    listed: ImageList
    rows: Sequence[int] | None
    features: Features

    @property
    def images(self) -> ImageList:
        """The images that may be learnt from."""
        return self.listed if self.rows is None else self.listed.subset(self.rows)

    @property
    def labels(self) -> Tensor:
        """Their classes, (N,)."""
        return torch.tensor(self.images.labels)

    @property
    def classes(self) -> int:
        """How many classes there are to choose from."""
        return len(self.listed.classes)

    def read(self, one: FeatureSet, part: Tensor | None = None) -> Tensor:
        """Read a set's features (N, D) of the images, or of some of them; float16.

        Args:
            part: numbers among the images.
        """
        rows = self.rows
        if part is not None:
            rows = part.tolist() if rows is None else [rows[i] for i in part.tolist()]
        return self.features.read(one, rows)


@dataclass(frozen=True)
class Outcome:
    """What a score on frozen features comes to.

    Attributes:
        logits: (M, K) of the images that are scored.
        chosen: the candidate that served.
        compared: all candidates with their top-1 on training images, in percent.
        scored: the numbers of the training images that are scored; None where val/ is.
    """

    logits: Tensor
    chosen: dict[str, Any]
    compared: list[dict[str, Any]] = field(default_factory=list)
    scored: list[int] | None = None


def best(compared: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Give the candidate of the highest top-1; of equal ones the last: deeper blocks, later rates."""
    return max(reversed(compared), key=lambda candidate: candidate["held_out_top1"])


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor] | None:
    """Split images into those to learn from and those to compare candidates on.

    Returns:
        Numbers of both; None where a class would have no image left to learn from.
    """
    held_out = torch.tensor(balanced_subset(labels.tolist(), share, seed))
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[held_out] = False
    if len(labels[kept].unique()) < len(labels.unique()):
        return None
    return kept.nonzero()[:, 0], held_out


def assign_folds(labels: Tensor, folds: int, seed: int) -> Tensor | None:
    """Give every image a fold, each class spread evenly over them: (N,).

    Returns:
        None where a class has one image only, so that a fold would have to be predicted without it.
    """
    generator = torch.Generator().manual_seed(seed)
    assigned = torch.empty_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        if len(members) < 2:
            return None
        order = torch.randperm(len(members), generator=generator)
        # Not every class begins with the first fold, or a few images a class would leave the last empty.
        assigned[members[order]] = (torch.arange(len(members)) + int(label)) % folds
    return assigned
