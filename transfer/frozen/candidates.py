"""What a score on frozen features may learn from, and what it gives.

Every such score first compares candidates (feature sets, norms, and what its classifier adds) on training
images that it has not learnt from, then takes the best one to the images that are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simmim_bench.data.sources import ImageList
from simmim_bench.errors import DataError
from simmim_bench.results.metrics import Ranking
from transfer.frozen.feature_store import Features
from transfer.frozen.features import FeatureSet


@dataclass(frozen=True)
class TrainingSubset:
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
class ProbeResult:
    """What a score on frozen features comes to.

    Attributes:
        ranking: of the images that are scored.
        chosen: the candidate that served.
        compared: all candidates with their top-1 on training images, in percent.
        scored: the numbers of the training images that are scored; None where val/ is.
        remark: what the record says of the choice, such as that nothing could be compared.
    """

    ranking: Ranking
    chosen: dict[str, Any]
    compared: list[dict[str, Any]] = field(default_factory=list)
    scored: list[int] | None = None
    remark: str | None = None


def best(compared: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Give the candidate of the highest top-1; of equal ones the last: deeper blocks, later rates."""
    return max(reversed(compared), key=lambda candidate: candidate["held_out_top1"])


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split images into those to learn from and those to compare candidates on.

    Each class gives its share, one image at least, and keeps one at least; a class of one image keeps it.

    Returns:
        Numbers of both, ascending.

    Raises:
        DataError: no class has two images.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    kept = torch.ones(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = np.flatnonzero(labels == label)
        wanted = min(max(1, round(share * len(members))), len(members) - 1)
        kept[generator.permutation(members)[:wanted]] = False
    if kept.all():
        raise DataError(
            f"{len(labels)} images in {len(labels.unique())} classes are too few to hold some out of each; use "
            "--recipe logistic, or one candidate: -o blocks=... -o pooling=... -o norm=... -o base_lr=..."
        )
    return kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]


def assign_folds(labels: Tensor, folds: int, seed: int) -> Tensor | None:
    """Give every image a fold, each class spread evenly over them: (N,).

    Returns:
        The fold, -1 for the image of a class that has only one: no fold could be asked for it without
        unlearning the class. None where no class has two.
    """
    generator = torch.Generator().manual_seed(seed)
    assigned = torch.full_like(labels, -1)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        if len(members) < 2:
            continue
        order = torch.randperm(len(members), generator=generator)
        # Not every class begins with the first fold, or a few images a class would leave the last empty.
        assigned[members[order]] = (torch.arange(len(members)) + int(label)) % folds
    return assigned if (assigned >= 0).any() else None
