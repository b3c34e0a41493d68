"""The committed table of costs against the estimates that `doctor --recipe` makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COSTS = json.loads((BENCHMARKS / "results" / "costs.json").read_text(encoding="utf-8"))["costs"]
QUICK = ("linear",)
ROWS = [
    pytest.param(cost, id=cost["recipe"], marks=() if cost["recipe"] in QUICK else pytest.mark.slow)
    for cost in COSTS
]


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_every_row_of_the_table_is_committed() -> None:
    import costs

    assert [(cost["recipe"], cost["arch"]) for cost in COSTS] == list(costs.ROWS)


@pytest.mark.heavy
@pytest.mark.parametrize("cost", ROWS)
def test_a_row_of_the_table_is_what_doctor_estimates(cost: dict[str, Any]) -> None:
    import costs

    work = costs.plan(cost["recipe"], cost["arch"])
    estimated = (work.steps, work.batch_size, work.steps * work.batch_size, work.disk)
    assert estimated == (cost["steps"], cost["batch_size"], cost["images"], cost["disk"])
