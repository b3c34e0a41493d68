"""Compute how well a classifier's probabilities agree with its accuracy: ECE, NLL and the Brier score.

Each image keeps three float32 numbers, 12 bytes, from which the scores follow exactly. The log-sum-exp and the label's
logit (8 bytes) would yield the NLL alone: the stored best logit is rounded to float16, so that a confidence of it may
be off by a percent or more, and the Brier score needs the probabilities of all classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15  # of the confidence, as in Guo et al. (arXiv 1706.04599, section 5)
# Log-probability of the label; probability of the best class; squared error of all classes' probabilities.
COLUMNS = 3
CHUNK = 2**22  # logits in float64 at a time: 32 MiB
LOWEST = float(np.finfo(np.float32).min)  # of a log-probability
ROUNDING = 1e-6  # of probabilities that float32 numbers stand for


def calibration_columns(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute what the calibration scores need of each image, in float64, from finite logits.

    Args:
        logits: (N, K) of the classes among which the model decides.
        labels: (N,) in [0, K).

    Returns:
        (N, 3) float32: the log-probability of the label, the probability of the best class, and the squared error of
        the probabilities of all classes, sum_k (p_k - [k = label])^2.
    """
    columns = np.empty((len(logits), COLUMNS), np.float32)
    rows = max(1, CHUNK // logits.shape[1])
    for start in range(0, len(logits), rows):
        part = logits[start : start + rows].astype(np.float64)
        part -= part.max(1, keepdims=True)
        part -= np.log(np.exp(part).sum(1, keepdims=True))
        images, label = np.arange(len(part)), labels[start : start + rows]
        log_probability = part[images, label].clip(LOWEST)
        probabilities = np.exp(part)
        confidence = probabilities.max(1)
        probabilities[images, label] -= 1
        squared_error = np.square(probabilities).sum(1)
        columns[start : start + rows] = np.stack(
            [log_probability, confidence, squared_error], axis=1
        )
    return columns


def check_columns(
    columns: np.ndarray, ranked: np.ndarray, labels: np.ndarray, classes: int
) -> None:
    """Check that `calibration_columns` can have computed the columns of ranked images.

    Args:
        columns: (N, 3), of any floating-point type.
        ranked: (N, at least 1) class numbers, best first.
        labels: (N,).
        classes: number of classes.

    Raises:
        ValueError: a number that no probabilities have, or one that contradicts the ranking.
    """
    if columns.shape != (len(labels), COLUMNS):
        raise ValueError(f"its calibration has shape {columns.shape}, not {(len(labels), COLUMNS)}")
    if not np.isfinite(columns).all():
        raise ValueError("a number of its calibration is not finite")
    log_label, confidence, squared_error = columns.astype(np.float64).T
    if not ((log_label >= LOWEST) & (log_label <= 0)).all():
        raise ValueError(f"a log-probability of a label is not in [{LOWEST:.4g}, 0]")
    if not ((confidence >= (1 - ROUNDING) / classes) & (confidence <= 1)).all():
        raise ValueError(f"a confidence is not in [1/{classes}, 1]")
    label = np.exp(log_label)
    first = ranked[:, 0] == labels
    # Besides the best class, a label has at most the best class's probability, and what that one leaves over.
    most = np.where(first, confidence, np.minimum(confidence, 1 - confidence))
    least = np.where(first, confidence, 0)
    if not ((label >= least - ROUNDING) & (label <= most + ROUNDING)).all():
        raise ValueError("a label's probability contradicts the confidence and the ranking")
    # The sum of squared probabilities is largest where every class has the confidence or 0, and smallest where all
    # other classes share the rest equally.
    squares = squared_error + 2 * label - 1
    least = confidence**2 + (1 - confidence) ** 2 / max(classes - 1, 1)
    bounds = 4 * ROUNDING  # three rounded terms, one of them doubled
    if not (
        (squared_error >= 0) & (squares >= least - bounds) & (squares <= confidence + bounds)
    ).all():
        raise ValueError("a squared error contradicts the probabilities of its image")


def calibration_scores(columns: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """Compute the calibration scores of some images.

    Args:
        columns: (N, 3); see `calibration_columns`.
        correct: (N,) whether the label is ranked first.

    Returns:
        `ece`: expected calibration error over 15 equal-width bins of the confidence, in percent;
        `nll`: mean negative log-likelihood of the labels, in nats; `brier`: mean squared error of the probabilities
        summed over the classes, from 0 to 2 (Brier, 1950).
    """
    if not np.isfinite(columns).all():
        raise ValueError("a number of its calibration is not finite")
    log_label, confidence, squared_error = columns.astype(np.float64).T
    return {
        "ece": 100.0 * _calibration_error(confidence, correct),
        "nll": max(0.0, -float(np.mean(log_label))),
        "brier": float(np.mean(squared_error)),
    }


def _calibration_error(confidence: np.ndarray[Any, Any], correct: np.ndarray) -> float:
    """Compute the mean distance of a bin's accuracy from its mean confidence, over images; bins are (low, high]."""
    edges = np.linspace(0, 1, BINS + 1)
    number = np.searchsorted(edges, confidence, side="left") - 1
    excess = np.bincount(number, confidence - correct, BINS)
    return float(np.abs(excess).sum() / len(confidence))
