"""Training data of a classifier on frozen features, the choice of a candidate, and the probe's result.

Each protocol first compares its candidates (feature sets, norms and the classifier's own settings) on training
images that the classifier has not learnt from. The best candidate is then scored once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simmim_bench.data.sources import ImageSource
from simmim_bench.errors import DataError
from simmim_bench.results.metrics import Ranking
from simmim_bench.runs.run_dir import RunDir
from transfer.frozen.feature_store import StoredFeatures
from transfer.frozen.features import FeatureSet


@dataclass(frozen=True)
class TrainingSubset:
    """The training images that a classifier may learn from.

    Attributes:
        stored: the images whose features are stored in one array.
        rows: the images of `stored` that may be learnt from; None for all.
        features: features of the centre crops of `stored`.
    """

    stored: ImageSource
    rows: Sequence[int] | None
    features: StoredFeatures

    @property
    def images(self) -> ImageSource:
        """The images that may be learnt from."""
        return self.stored if self.rows is None else self.stored.subset(self.rows)

    @property
    def labels(self) -> Tensor:
        """Class numbers of `images`, (N,)."""
        return torch.tensor(self.images.labels)

    @property
    def num_classes(self) -> int:
        """The number of classes of the data set."""
        return len(self.stored.classes)

    def read(self, feature_set: FeatureSet, indices: Tensor | None = None) -> Tensor:
        """Return a feature set's vectors (N, D) of `images`; float16.

        Args:
            indices: positions in `images` to read; None for all.
        """
        rows = self.rows
        if indices is not None:
            rows = indices.tolist() if rows is None else [rows[i] for i in indices.tolist()]
        return self.features.read(feature_set, rows)


@dataclass(frozen=True)
class LinearHead:
    """A fitted linear classifier on normalised features: its logits are `weight @ norm(x) + bias`.

    Attributes:
        weight: (K, D) float32.
        bias: (K,) float32.
        mean, deviation: (D,) float32, subtracted from and divided by; 0 and 1 for norms without statistics.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor

    def state(self) -> dict[str, Tensor]:
        """Return the tensors by name, on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in vars(self).items()}


@dataclass(frozen=True)
class ProbeResult:
    """The result of one protocol on frozen features.

    Attributes:
        ranking: the ranked classes of the scored images.
        chosen: the candidate that was scored.
        compared: all candidates with their top-1 on held-out training images, in percent.
        scored: indices of the training images that were scored; None if the validation set was.
        by_setting: rankings of k-NN for every k, among them `ranking`, whose scores the record's details list.
        head: the fitted linear classifier; None for k-NN.
        note: a remark on the choice for the record, such as that nothing could be compared.
    """

    ranking: Ranking
    chosen: dict[str, Any]
    compared: list[dict[str, Any]] = field(default_factory=list)
    scored: list[int] | None = None
    note: str | None = None
    by_setting: dict[int, Ranking] = field(default_factory=dict)
    head: LinearHead | None = None


def best_candidate(compared: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the candidate of the highest top-1; of equal ones the last: deeper blocks, later rates."""
    return max(reversed(compared), key=lambda candidate: candidate["held_out_top1"])


def log_choice(run: RunDir, chosen: Mapping[str, Any]) -> None:
    """Log the fields of the chosen candidate."""
    fields = (
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in chosen.items()
    )
    run.log(f"candidates: chosen on training images: {' '.join(fields)}")


SINGLE_LINEAR = (
    "use --recipe logistic, or a single candidate: -o blocks=... -o pooling=... -o norm=... "
    "-o base_lr=..."
)


def hold_out(
    labels: Tensor, fraction: float, seed: int, fix: str = SINGLE_LINEAR
) -> tuple[Tensor, Tensor]:
    """Split images into those to learn from and those to compare candidates on.

    Each class holds out `fraction` of its images, at least one, and keeps at least one. A class of one image
    holds out none.

    Args:
        fix: what to do where the images are too few, for the message.

    Returns:
        Indices of the images to learn from and of the held-out images, both ascending.

    Raises:
        DataError: no class has two images.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    kept = torch.ones(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        kept[generator.permutation(members)[:count]] = False
    check_enough(len(labels), len(labels.unique()), fix)
    return kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]


def check_enough(images: int, classes: int, fix: str = SINGLE_LINEAR) -> None:
    """Check that some class has two images, one of which can be held out; no class is empty.

    Raises:
        DataError: every class has one image.
    """
    if images <= classes:
        raise DataError(
            f"{images} images in {classes} classes are too few to hold out some of each class for comparing "
            f"candidates; {fix}"
        )


def assign_folds(labels: Tensor, folds: int, seed: int) -> Tensor | None:
    """Assign every image to a cross-validation fold, each class spread evenly over the folds.

    Returns:
        The fold of each image, (N,), or -1 for the only image of a class: no fold could hold it out without
        losing the class. None if no class has two images.
    """
    generator = torch.Generator().manual_seed(seed)
    assigned = torch.full_like(labels, -1)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        if len(members) < 2:
            continue
        order = torch.randperm(len(members), generator=generator)
        # Classes start with different folds; otherwise few images per class would leave the last fold empty.
        assigned[members[order]] = (torch.arange(len(members)) + int(label)) % folds
    return assigned if (assigned >= 0).any() else None
