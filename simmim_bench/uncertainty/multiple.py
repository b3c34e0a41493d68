"""Adjust p-values where a table has many comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979, Scandinavian Journal of Statistics 6(2)).

    The smallest is multiplied by their number, the second by one less, and so on; none gets below a smaller one's.

    Args:
        p_values: (tests,) in any order, in [0, 1].

    Returns:
        Adjusted p-values in the same order. Rejecting those below a level rejects any true hypothesis with at most the
        level's probability, for dependent tests as well.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(factors * np.asarray(p_values, np.float64)[order])
    return np.minimum(adjusted, 1.0).tolist()
