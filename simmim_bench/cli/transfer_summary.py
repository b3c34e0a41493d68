"""What `simmim-bench transfer` prints at its end: the scores of one data set, or a table of several."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simmim_bench.tasks import TASKS, format_metric

if TYPE_CHECKING:
    from simmim_bench.results.record import Record
    from transfer.compare import Difference


@dataclass(frozen=True)
class TransferResult:
    """The result of a transfer to one data set.

    Attributes:
        name: name of the data set; None without one.
        records: one per seed.
        baseline: CKPT of the baseline; empty without one.
        above: the difference from the baseline.
    """

    name: str | None
    records: Sequence[Record]
    baseline: str = ""
    above: Difference | None = None

    def mean(self, metric: str) -> float | None:
        """Return the mean over seeds of a metric; None if a record lacks it."""
        return _mean_of_all([record.metrics.get(metric) for record in self.records])


def summarise(result: TransferResult) -> tuple[list[str], dict[str, Any]]:
    """Return the scores of one seed, or their mean and deviation over several, as lines and as JSON."""
    from transfer.launch import summarise_seeds

    records = result.records
    plain: dict[str, Any] = dataclasses.asdict(records[0])
    lines = [
        f"{metric} {format_metric(metric, value)}" for metric, value in records[0].metrics.items()
    ]
    if len(records) > 1:
        spread = summarise_seeds(records)
        plain = {"metrics": spread, "seeds": [dataclasses.asdict(record) for record in records]}
        lines = [
            f"{metric} {format_metric(metric, value['mean'])} ± {format_metric(metric, value['std'])} over "
            f"{len(records)} seeds"
            for metric, value in spread.items()
        ]
    for metric, reason in TASKS[records[0].task.partition("-")[0]].inapplicable.items():
        if metric not in records[0].metrics:
            lines.append(f"{metric} n/a: {reason}")
    if result.above is not None:
        plain["above_baseline"] = {
            "baseline": result.baseline,
            **dataclasses.asdict(result.above),
        }
        lines.append(f"above {result.baseline}: {result.above}")
    return lines, plain


def summarise_data_sets(results: Sequence[TransferResult]) -> tuple[list[str], dict[str, Any]]:
    """Return one row of scores per data set, and their mean over the data sets, as lines and as JSON."""
    metrics = list(dict.fromkeys(m for result in results for m in result.records[0].metrics))
    rows = {str(result.name): {m: result.mean(m) for m in metrics} for result in results}
    means = {m: _mean_of_all([row[m] for row in rows.values()]) for m in metrics}
    lines = _format_table([*rows.items(), ("mean", means)])
    lines += [f"{r.name}, above {r.baseline}: {r.above}" for r in results if r.above is not None]
    by_name = {str(result.name): summarise(result)[1] for result in results}
    return lines, {"data_sets": by_name, "mean": means}


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a value is missing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _format_table(rows: Sequence[tuple[str, Mapping[str, float | None]]]) -> list[str]:
    """Return the lines of a table, one row per name and one column per metric."""
    table = [["", *rows[0][1]]]
    for name, row in rows:
        table.append([name, *("–" if v is None else format_metric(m, v) for m, v in row.items())])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in table
    ]
