"""MMSegmentation's evaluation as one confusion matrix per image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from PIL import Image

from simmim_bench.distributed import DistContext
from simmim_bench.files import replacing
from transfer.segmentation.data import IGNORED


class ConfusionMetric(BaseMetric):
    """Keep a confusion matrix (K, K) an image, rows the truth, and the first predictions (H, W)."""

    default_prefix = "ade20k"

    def __init__(self, images: Path, label_maps: Path | None = None) -> None:
        super().__init__()
        self.images, self.label_maps = images, label_maps
        self.confusions: list[np.ndarray] = []
        self.shown: list[np.ndarray] = []

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count a batch; the Runner calls it in the order of the images."""
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            truth = sample["gt_sem_seg"]["data"].squeeze(0).cpu().numpy()
            predicted = sample["pred_sem_seg"]["data"].squeeze(0).cpu().numpy()
            self.confusions.append(confusion_matrix(truth, predicted, classes))
            if len(self.shown) < SHOWN:
                self.shown.append(predicted)
            if self.label_maps is not None:
                # Below the split's folder, where two may have the same name.
                image = Path(sample["img_path"]).relative_to(self.images)
                write_label_map(self.label_maps / image.with_suffix(".png"), predicted)
            self.results.append(len(self.confusions))  # mmengine warns of a metric without results

    def evaluate(self, size: int) -> dict[str, float]:
        """Give nothing: the score is computed from the stored matrices."""
        self.results.clear()
        return {}

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Give nothing, as `evaluate` does."""
        return {}

    def gather(self, dist: DistContext, images: int) -> None:
        """Put all processes' matrices and pictures together on the main one, in the images' order."""
        shares = dist.gather((self.confusions, self.shown))
        if dist.is_main:
            confusions, shown = zip(*shares, strict=True)
            self.confusions = in_order(confusions, images)
            self.shown = in_order(shown, min(images, SHOWN))


def in_order(shares: Sequence[Sequence[np.ndarray]], count: int) -> list[np.ndarray]:
    """Give the first of all processes' results, of which process r of n has number r, r + n, ..."""
    return [shares[i % len(shares)][i // len(shares)] for i in range(count)]


def write_label_map(path: Path, predicted: np.ndarray) -> None:
    """Write a map (H, W) of classes in the data's own labels, the first class being 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray((predicted + 1).astype(np.uint8)).save(temporary, format="PNG")


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by (true, predicted) class of two maps (H, W); ignored pixels are left out."""
    kept = truth != IGNORED
    pairs = truth[kept].astype(np.int64) * classes + predicted[kept]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


SHOWN = 8  # predictions kept for the pictures
