"""Choose the map, the norm and the classifier's setting of a dense probe on held-out training images.

Candidates are compared by their mIoU over all pixels of the held-out images at their original size, as the validation
images are scored. The classifiers have learnt from the other training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from simmim_bench.errors import DataError
from simmim_bench.recipe import Norm
from simmim_bench.results.metrics import segmentation_scores
from transfer.dense.classifiers import fit_scorer, settings_of
from transfer.dense.label_map import predict_image
from transfer.dense.patches import Level, PatchReader, PatchSample
from transfer.dense.recipes import DenseRecipe
from transfer.dense.windows import WindowDataset, image_generator
from transfer.segmentation.confusion import confusion_matrix


@dataclass(frozen=True)
class Choice:
    """The chosen candidate.

    Attributes:
        number: of the chosen level.
        norm, setting: of the chosen candidate; the setting is its k or l2.
        chosen: the candidate as the record names it.
        compared: all candidates with their mIoU on the held-out images, in percent; empty for a single candidate.
        held_out: indices of the held-out images.
    """

    number: int
    norm: Norm
    setting: float
    chosen: dict[str, Any]
    compared: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[int] = field(default_factory=list)


def count_candidates(recipe: DenseRecipe, levels: Sequence[Level]) -> int:
    """Return the number of candidates."""
    return len(levels) * len(recipe.norm) * len(settings_of(recipe)[1])


def check_enough_images(images: int) -> None:
    """Check that there are training images to hold out.

    Raises:
        DataError: there are fewer than two.
    """
    if images < 2:
        raise DataError(
            f"images/training has {images} image with a labelled pixel, too few to hold out some for comparing "
            "candidates; add images, or name a single candidate: -o blocks=... -o norm=... with -o k=... or -o l2=..."
        )


def hold_out(dataset: WindowDataset, sample: PatchSample, choose_on: int) -> list[int]:
    """Sample the images to hold out, at most half of those with a labelled patch; their indices ascend.

    The sample depends on the images' paths, not on their order.

    Raises:
        DataError: fewer than two images have a labelled patch.
    """
    labelled = sample.images.unique().tolist()
    check_enough_images(len(labelled))
    split = dataset.split

    def order(index: int) -> float:
        path = split.images[index].relative_to(split.folder)
        return float(image_generator(dataset.seed, path).random())

    return sorted(sorted(labelled, key=order)[: min(choose_on, len(labelled) // 2)])


def choose_candidate(
    reader: PatchReader,
    samples: Sequence[PatchSample],
    training: WindowDataset,
    scored: WindowDataset,
    recipe: DenseRecipe,
) -> Choice:
    """Choose a candidate, on every process the same; the processes divide the combinations of map and norm.

    Args:
        samples: patches of all training images, one sample per level.
        training: the training images, which the samples are of.
        scored: the training images with the labels of all pixels.

    Raises:
        DataError: there are too few images to hold out some.
    """
    dist, levels = reader.context.dist, reader.levels
    name, settings = settings_of(recipe)
    combinations = list(product(range(len(levels)), recipe.norm))
    candidates = [
        (number, norm, setting, {"block": levels[number].block, "norm": norm, name: setting})
        for number, norm in combinations
        for setting in settings
    ]
    if len(candidates) == 1:
        return Choice(*candidates[0])
    held_out = hold_out(training, samples[0], recipe.choose_on)
    own = {}
    for index in range(dist.rank, len(combinations), dist.size):
        number, norm = combinations[index]
        learnt = samples[number].without(held_out)
        scorer = fit_scorer(recipe, learnt, norm, settings, reader.context)
        level = levels[number]
        description = f"compare block {level.block}, norm {norm}"
        classes = training.scheme.classes
        totals = [np.zeros((classes, classes), np.int64) for _ in settings]
        for image, maps in reader.read(scored, held_out, description, [level]):
            assert image.classes is not None
            predictions = predict_image(scorer, image, maps[0], recipe, level)
            for total, predicted in zip(totals, predictions, strict=True):
                total += confusion_matrix(image.classes, predicted, classes)
        own[index] = [segmentation_scores(total)["miou"] for total in totals]
    by_index = {
        index: found for part in dist.gather_everywhere(own) for index, found in part.items()
    }
    mious = [miou for index in range(len(combinations)) for miou in by_index[index]]
    compared = [
        {**candidate, "held_out_miou": miou}
        for (*_, candidate), miou in zip(candidates, mious, strict=True)
    ]
    # Of equal ones the last: deeper blocks, as on pooled features.
    best = max(reversed(range(len(compared))), key=lambda number: mious[number])
    number, norm, setting, _ = candidates[best]
    return Choice(number, norm, setting, compared[best], compared, held_out)
