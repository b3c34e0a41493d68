"""Count a segmentation's pixels by true and predicted class, and write what is kept of the predictions.

This module does not need MMSegmentation.

Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.files import replacing, write_json
from simmim_bench.results.metrics import iou_by_class, write_confusion
from simmim_bench.runs.after import warn_only
from simmim_bench.runs.run_dir import RunDir
from transfer.segmentation.ade20k_layout import SegmentationSplit
from transfer.segmentation.figure import write_figure
from transfer.segmentation.label_maps import IGNORED, LabelScheme

SHOWN = 8  # images whose predictions are kept for the figure


def interleave(by_rank: Sequence[Sequence[np.ndarray]], count: int) -> list[np.ndarray]:
    """Return the first `count` results of all processes; process r of n has results r, r + n, ..."""
    return [by_rank[i % len(by_rank)][i // len(by_rank)] for i in range(count)]


def write_label_map(folder: Path, image: Path, classes: np.ndarray, scheme: LabelScheme) -> None:
    """Write a map (H, W) of classes as a PNG of the data's labels.

    Args:
        image: the path of its image below the split's folder. The map gets the same subfolders, because names may
            repeat between subfolders.
    """
    path, labels = folder / image.with_suffix(".png"), scheme.to_labels(classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(labels).save(temporary, format="PNG")


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count the pixels of two maps (H, W) by (true, predicted) class; ignored pixels are left out.

    Returns:
        Counts (classes, classes).
    """
    kept = truth != IGNORED
    pairs = truth[kept].astype(np.int64) * classes + predicted[kept]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def write_predictions(
    run: RunDir,
    validation: SegmentationSplit,
    names: list[str],
    confusions: list[np.ndarray],
    shown: Sequence[np.ndarray],
    palette: np.ndarray,
    scheme: LabelScheme,
    pixel_format: PixelFormat = RGB,
) -> Path:
    """Write the confusion matrices, IoU by class and the figure into the run directory.

    Args:
        confusions: of every image, (K, K).
        shown: predicted classes (H, W) of the first images, for the figure.
        palette: (K, 3) colours in 0..255, for the figure.

    Returns:
        The file of the matrices, from which the scores are computed.
    """
    predictions = run.predictions / "confusion.npz"
    write_confusion(predictions, confusions, names)
    write_json(run.path / "iou_by_class.json", iou_by_class(np.sum(confusions, axis=0), names))
    with warn_only(run.log, "predictions.png"):
        write_figure(
            run.path / "predictions.png",
            validation,
            shown,
            palette,
            scheme,
            pixel_format,
            names=names,
        )
    return predictions
