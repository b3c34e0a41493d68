"""Holm's adjustment against its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from simmim_bench.uncertainty.multiple import holm


def rejected(p_values: list[float], level: float) -> list[bool]:
    """Reject hypotheses one by one, from the smallest p-value, as in Holm's paper."""
    result = [False] * len(p_values)
    left = sorted(range(len(p_values)), key=lambda index: p_values[index])
    while left and p_values[left[0]] <= level / len(left):
        result[left.pop(0)] = True
    return result


@pytest.mark.parametrize("seed", range(5))
def test_adjusted_p_values_reject_what_the_procedure_rejects(seed: int) -> None:
    p_values = (np.random.default_rng(seed).random(7) ** 3).tolist()
    p_values[3] = p_values[5]
    adjusted = holm(p_values)
    for level in [0.001, 0.01, 0.05, 0.2, 0.5, 0.9]:
        assert [p <= level for p in adjusted] == rejected(p_values, level)


def test_order_of_the_comparisons_does_not_matter() -> None:
    p_values = [0.01, 0.04, 0.03, 0.2]
    expected = dict(zip(p_values, [0.04, 0.09, 0.09, 0.2], strict=True))
    for order in itertools.permutations(p_values):
        assert holm(order) == pytest.approx([expected[p] for p in order])


def test_few_and_certain_comparisons() -> None:
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([1.0, 1.0, 0.9]) == [1.0, 1.0, 1.0]
