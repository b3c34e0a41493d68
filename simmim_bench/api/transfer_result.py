"""The results of transfers: the scores of one data set, or a table of several, as lines and as JSON."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from simmim_bench.api.score_context import (
    ScoreContext,
    describe_files,
    score_context,
    warn_not_above,
)
from simmim_bench.html import html_table
from simmim_bench.tasks import TASKS

if TYPE_CHECKING:
    from simmim_bench.results.record import Record
    from simmim_bench.results.scored_runs import Score, ScoredRuns
    from simmim_bench.uncertainty.interval import Difference


@dataclass(frozen=True)
class TransferResult:
    """The result of a transfer to one data set.

    Attributes:
        name: name of the data set; None without one.
        runs: one per seed.
        baseline: CKPT of the baseline; empty without one.
        above: by metric, the difference from the baseline.
    """

    name: str | None
    runs: ScoredRuns
    baseline: str = ""
    above: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        """The records, one per seed."""
        return list(self.runs.records.values())

    @cached_property
    def context(self) -> ScoreContext:
        """What the scores are read against; the differences from a baseline show the baseline's scores themselves."""
        context = score_context(self.runs)
        return replace(context, random={}, wants_random=False) if self.baseline else context

    def scores(self) -> dict[str, Score]:
        """Return the mean over seeds of every metric, with its standard deviation and standard error."""
        return self.runs.scores()

    def __str__(self) -> str:
        return "\n".join([*summarise(self)[0], *describe_files([self.runs])])

    def _repr_html_(self) -> str:
        title = self.runs.first.task + (f", {self.name}" if self.name else "")
        return html_table([(title,), *((line,) for line in summarise(self)[0])])


def summarise(result: TransferResult) -> tuple[list[str], dict[str, Any]]:
    """Return the scores and the differences from the baseline, as lines and as JSON."""
    from transfer.compare import describe_difference

    scores, record = result.runs.scores(), result.runs.first
    lines = [f"{metric} {score}" for metric, score in scores.items()]
    for metric, reason in TASKS[record.task.partition("-")[0]].inapplicable.items():
        if metric not in record.metrics:
            lines.append(f"{metric} n/a: {reason}")
    if result.runs.unknown:
        lines.append(f"without images ±: {result.runs.unknown}")
    lines += result.context.lines(scores)
    for metric, found in result.above.items():
        lines.append(f"above {result.baseline}: {describe_difference(metric, found)}")
    lines += _below_random(result)
    return [*lines, *_about([result])], _plain(result, scores)


def summarise_data_sets(results: Sequence[TransferResult]) -> tuple[list[str], dict[str, Any]]:
    """Return the scores of each data set, and their mean over the data sets, as lines and as JSON."""
    from transfer.compare import describe_difference

    rows = {str(result.name): result.runs.scores() for result in results}
    metrics = dict.fromkeys(metric for scores in rows.values() for metric in scores)
    means = {metric: _mean_of_all(metric, results, list(rows.values())) for metric in metrics}
    lines = _format_table({**rows, "mean": {m: s for m, s in means.items() if s is not None}})
    for result in results:
        if result.runs.unknown:
            lines.append(f"{result.name}, without images ±: {result.runs.unknown}")
        context = result.context.lines(rows[str(result.name)])
        lines += [f"{result.name}, {line}" for line in context]
        for metric, found in result.above.items():
            text = describe_difference(metric, found)
            lines.append(f"{result.name}, above {result.baseline}: {text}")
        lines += [f"{result.name}, {line}" for line in _below_random(result)]
    lines += [*_adjusted(results), *_about(results)]
    by_name = {str(r.name): _plain(r, rows[str(r.name)]) for r in results}
    mean = {metric: None if score is None else score.mean for metric, score in means.items()}
    return lines, {"data_sets": by_name, "mean": mean}


def images_se(scores: Mapping[str, Score]) -> dict[str, float]:
    """Return the standard errors from the finite number of images, where they are known."""
    return {metric: score.images for metric, score in scores.items() if score.images is not None}


def _plain(result: TransferResult, scores: Mapping[str, Score]) -> dict[str, Any]:
    """Return a result as JSON: the record of one seed, or the mean and deviation of several with their records."""
    from transfer.compare import plain_difference

    records = [dataclasses.asdict(record) for record in result.runs.records.values()]
    if len(records) == 1:
        plain = {**records[0], "images_se": images_se(scores)}
    else:
        spread = {
            name: {"mean": score.mean, "std": score.seeds, "images_se": score.images}
            for name, score in scores.items()
        }
        plain = {"metrics": spread, "seeds": records}
    plain |= result.context.to_json()
    plain["files"] = [
        {"record": str(path), "predictions": str(path.parent / record.predictions["file"])}
        for path, record in result.runs.records.items()
    ]
    if result.above:
        by_metric = {metric: plain_difference(found) for metric, found in result.above.items()}
        first = next(iter(by_metric))
        plain["above_baseline"] = {
            "baseline": result.baseline,
            "metric": first,
            **by_metric[first],
            "by_metric": by_metric,
        }
    return plain


def _below_random(result: TransferResult) -> list[str]:
    """Return a warning where a pretrained checkpoint does not surpass its baseline of random weights."""
    from simmim_bench.results.row_runs import is_random

    below = [metric for metric, found in result.above.items() if found.points <= 0]
    if not below or not result.baseline.startswith("random") or is_random(result.runs.first):
        return []
    return [warn_not_above(below, "random weights")]


def _about(results: Sequence[TransferResult]) -> list[str]:
    """Return what the intervals of a pretrained checkpoint are about."""
    from simmim_bench.results.row_runs import is_random
    from transfer.compare import ABOUT

    pretrained = (r for r in results if r.above and not is_random(r.runs.first))
    return [ABOUT] if any(pretrained) else []


def _adjusted(results: Sequence[TransferResult]) -> list[str]:
    """Return the p-values of several data sets, adjusted for their number."""
    from simmim_bench.uncertainty.multiple import holm

    compared = [
        (f"{result.name} {metric}", found.p_value)
        for result in results
        for metric, found in result.above.items()
    ]
    if len(compared) < 2:
        return []
    values = zip((name for name, _ in compared), holm([p for _, p in compared]), strict=True)
    shown = ", ".join(f"{name} {value:.2g}" for name, value in values)
    return [f"p-values, adjusted for {len(compared)} comparisons (Holm): {shown}"]


def _mean_of_all(
    metric: str, results: Sequence[TransferResult], rows: Sequence[Mapping[str, Score]]
) -> Score | None:
    """Return the mean of a metric over the data sets with its uncertainty; None if one lacks it."""
    from simmim_bench.results.scored_runs import Score

    if not all(metric in row for row in rows):
        return None
    # Each seed has its own mean over the data sets; the images of different data sets are independent.
    by_seed = zip(
        *([r.metrics[metric] for r in one.runs.records.values()] for one in results), strict=True
    )
    means = [statistics.fmean(values) for values in by_seed]
    images = [row[metric].images for row in rows]
    known = [value for value in images if value is not None]
    return Score(
        metric,
        statistics.fmean(means),
        statistics.stdev(means) if len(means) > 1 else None,
        sum(value**2 for value in known) ** 0.5 / len(rows) if len(known) == len(rows) else None,
    )


def _format_table(rows: Mapping[str, Mapping[str, Score]]) -> list[str]:
    """Return the lines of a table, one column per metric; the uncertainty of a row is in lines below it."""
    metrics = list(dict.fromkeys(metric for scores in rows.values() for metric in scores))
    table = [["", *metrics]]
    for name, scores in rows.items():
        parts = {metric: score.parts() for metric, score in scores.items()}
        used = dict.fromkeys(part for texts in parts.values() for part in texts)
        for part in used or [""]:
            missing = "" if part else "–"
            texts = [parts.get(metric, {}).get(part, missing) for metric in metrics]
            table.append([f"  {part}" if part else name, *texts])
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
