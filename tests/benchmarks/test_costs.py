"""The committed table of costs against the estimates that `doctor --recipe` makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simmim_bench.training.memory import StepMemory

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


def test_another_card_takes_longer_by_the_ratio_of_the_peaks_and_splits_what_does_not_fit() -> None:
    import cards

    tuning = next(cost for cost in COSTS if cost["recipe"] == "imagenet_vit_b_800ep")
    by_name = {card.name: card for card in cards.CARDS}
    alone = tuning["images"] / tuning["images_per_s"]
    assert cards.seconds_on(by_name["H200"], tuning) == pytest.approx(alone)
    assert cards.seconds_on(by_name["A100 80GB"], tuning) == pytest.approx(alone * 989 / 312)
    memory = StepMemory(fixed=0, per_image=10**9, available=None)
    # 1.1 GB an image with its backward pass, of which 0.9 of 24 GB hold 19.6.
    assert [cards.accumulation_steps(by_name["L4"], memory, count) for count in (19, 20, 64)] == [
        1,
        2,
        4,
    ]
    # The measured peaks themselves come out again.
    checks = json.loads((BENCHMARKS / "results" / "gpu_check_h200.json").read_text())["checks"]
    found = cards.step_memories(checks)
    assert found["imagenet"].needed(256) / 2**30 == pytest.approx(19.8, rel=0.02)
    assert found["coco"].needed(2) / 2**30 == pytest.approx(9.5)
