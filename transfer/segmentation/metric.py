"""Compute one confusion matrix per validation image within MMSegmentation's evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from simmim_bench.distributed import DistContext
from transfer.segmentation.confusion import SHOWN, confusion_matrix, interleave, write_label_map
from transfer.segmentation.label_maps import LabelScheme


class ConfusionMetric(BaseMetric):
    """Collects a confusion matrix (K, K) per image, rows the ground truth, and the first predictions (H, W).

    Args:
        images: folder of the split's images.
        label_maps: folder to write every predicted map into, as a PNG; None to write none.
    """

    default_prefix = "ade20k"

    def __init__(self, images: Path, label_maps: Path | None = None) -> None:
        super().__init__()
        self.images, self.label_maps = images, label_maps
        self.confusions: list[np.ndarray] = []
        self.shown: list[np.ndarray] = []

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Add a batch; the Runner calls this in the order of the images."""
        classes = len(self.dataset_meta["classes"])
        scheme = LabelScheme(
            classes=classes, reduce_zero_label=self.dataset_meta["reduce_zero_label"]
        )
        for sample in data_samples:
            truth = sample["gt_sem_seg"]["data"].squeeze(0).cpu().numpy()
            predicted = sample["pred_sem_seg"]["data"].squeeze(0).cpu().numpy()
            self.confusions.append(confusion_matrix(truth, predicted, classes))
            if len(self.shown) < SHOWN:
                self.shown.append(predicted)
            if self.label_maps is not None:
                image = Path(sample["img_path"]).relative_to(self.images)
                write_label_map(self.label_maps, image, predicted, scheme)
            self.results.append(len(self.confusions))  # mmengine warns of a metric without results

    def evaluate(self, size: int) -> dict[str, float]:
        """Return no score: scores are computed from the stored matrices."""
        self.results.clear()
        return {}

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Return no score, as `evaluate` does."""
        return {}

    def gather(self, dist: DistContext, images: int) -> None:
        """Collect the matrices and predictions of all processes on rank 0, in the images' order.

        Args:
            images: number of images of the split.
        """
        by_rank = dist.gather((self.confusions, self.shown))
        if dist.is_main:
            confusions, shown = zip(*by_rank, strict=True)
            self.confusions = interleave(confusions, images)
            self.shown = interleave(shown, min(images, SHOWN))
