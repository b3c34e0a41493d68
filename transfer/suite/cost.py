"""The expected cost of a step of a suite, from the records of similar runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from simmim_bench.display import format_duration
from simmim_bench.results.record import Record
from transfer.suite.step import SuiteStep


@dataclass(frozen=True)
class Estimate:
    """The expected cost of a step, and what the expectation rests on."""

    seconds: float | None
    source: str

    def __str__(self) -> str:
        return f"unknown ({self.source})" if self.seconds is None else format_duration(self.seconds)


def is_similar(record: Record, step: SuiteStep) -> bool:
    """Return whether a record is of a step's task, recipe and architecture."""
    transfer = step.transfer
    return (
        record.task == step.name
        and record.recipe["sha256"] == transfer.recipe.sha256()
        and record.checkpoint.get("arch") == transfer.checkpoint.spec.arch
    )


def estimate_cost(
    step: SuiteStep, seeds: int, records: Sequence[Record], device: str | None
) -> Estimate:
    """Expect what the same recipe has cost for the same architecture, data and device."""
    if not seeds:
        return Estimate(0.0, "done")
    transfer = step.transfer
    similar = [
        record.wall_time_s
        for record in records
        if is_similar(record, step)
        and record.data.get("root") == str(transfer.request.options.data)
        and device in (None, record.environment.get("device"))
    ]
    if similar:
        return Estimate(seeds * statistics.fmean(similar), f"mean of {len(similar)} similar runs")
    recipe = transfer.recipe
    # Every random crop of a frozen protocol is another pass of decoding and of the backbone.
    work = {key: getattr(recipe, key, 0) for key in ("epochs", "crops", "max_iters")}
    shown = ", ".join(f"{key} {value}" for key, value in work.items() if value) or "no training"
    return Estimate(None, f"no similar run yet; {shown}")
