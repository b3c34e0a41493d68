"""What a score is read against: the chance level, and random weights under the same protocol; and where its files are.

A record of random weights is looked for where `transfer` puts it: in folders with "random" in their name, next to the
run directory or up to four folders above it, and in `runs`.
"""

from __future__ import annotations

import os
import shlex
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.errors import BenchError
from simmim_bench.tasks import TASKS, format_metric

if TYPE_CHECKING:
    from simmim_bench.results.record import Record
    from simmim_bench.results.scored_runs import Score, ScoredRuns

RUNS = Path("runs")
LEVELS = 4  # of OUT/CKPT/TASK/DATA/seedN
BELOW = (
    "record.json",
    "seed*/record.json",
    "{task}/seed*/record.json",
    "{task}/*/seed*/record.json",
)
MOST_RECORDS = 100  # that are read


@dataclass(frozen=True)
class ScoreContext:
    """What the scores of one checkpoint and task are read against.

    Attributes:
        chance: by metric, the score of a guess that is uniform over the classes; empty where it is not known.
        classes: number of classes; 0 where it is not known.
        random: records of random weights of the same architecture, by path; empty without one, or if the scores
            themselves are of random weights.
        wants_random: whether random weights would be a baseline of the scores.
    """

    chance: Mapping[str, float] = field(default_factory=dict)
    classes: int = 0
    random: Mapping[Path, Record] = field(default_factory=dict)
    wants_random: bool = False

    def random_metrics(self) -> dict[str, float]:
        """Return the mean of every metric over the records of random weights."""
        records = self.random.values()
        common = set.intersection(*(set(r.metrics) for r in records)) if records else set()
        return {m: statistics.fmean(r.metrics[m] for r in records) for m in sorted(common)}

    def lines(self, scores: Mapping[str, Score]) -> list[str]:
        """Return the chance level, the scores of random weights, and a warning where these are not surpassed."""
        columns = {column.metric for task in TASKS.values() for column in task.columns}
        metrics = [m for m in scores if m in self.chance or m in columns]
        lines = []
        if self.chance:
            lines.append(
                f"chance: {_shown(self.chance, metrics)} (one of {self.classes:,} classes)"
            )
        random = self.random_metrics()
        if random:
            seeds = f"{len(self.random)} seeds, " if len(self.random) > 1 else ""
            where = _common_folder(self.random)
            lines.append(f"random weights: {_shown(random, metrics)} ({seeds}{where})")
        elif self.wants_random:
            lines.append("random weights: no run of this protocol here; --baseline random adds it")
        for name, others in (("chance", self.chance), ("random weights", random)):
            compared = columns & others.keys()
            beaten = [m for m in metrics if m in compared and scores[m].mean <= others[m]]
            if beaten:
                lines.append(warn_not_above(beaten, name))
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the plain form."""
        return {
            "chance": dict(self.chance) or None,
            "random_weights": {
                "metrics": self.random_metrics(),
                "records": [str(path) for path in self.random],
            }
            if self.random
            else None,
        }


def warn_not_above(metrics: Sequence[str], what: str) -> str:
    """Return a warning that some metrics do not surpass chance, or random weights."""
    return (
        f"warning: {', '.join(metrics)} not above {what}; check the loss of the pretraining, --recipe and the labels "
        "of the data"
    )


def score_context(runs: ScoredRuns) -> ScoreContext:
    """Return what the scores of some runs are read against."""
    from simmim_bench.results.row_runs import is_random

    record = runs.first
    classes = record.data.get("classes")
    task = TASKS.get(record.task.partition("-")[0])
    chance = {}
    if task is None or type(classes) is not int or classes < 1 or task.predictions != "ranking":
        classes = 0
    else:
        guesses = {"top1": 1, "top5": 5}
        chance = {
            m: min(100.0, 100.0 * k / classes) for m, k in guesses.items() if m in record.metrics
        }
    evaluated = record.details.get("evaluated_without_training", False)
    if task is None or is_random(record) or evaluated:
        return ScoreContext(chance, classes)
    return ScoreContext(chance, classes, find_random_runs(runs), wants_random=True)


def find_random_runs(runs: ScoredRuns) -> dict[Path, Record]:
    """Find the records of random weights of the same architecture, under the same protocol and with the same seeds.

    Returns:
        By path; those of other seeds where none has the same.
    """
    from simmim_bench.leaderboard.protocols import protocol_id
    from simmim_bench.results.record import read_record
    from simmim_bench.results.row_runs import is_random

    ours = runs.first
    found: dict[int, tuple[Path, Record]] = {}
    for path in islice(_places(next(iter(runs.records)).parent, ours.task), MOST_RECORDS):
        with suppress(BenchError, OSError):  # the leaderboard reports it
            record = read_record(path)
            if (
                (record.task, record.checkpoint["arch"]) == (ours.task, ours.checkpoint["arch"])
                and record.status == ours.status
                and is_random(record)
                and protocol_id(record) == protocol_id(ours)
            ):
                found.setdefault(record.seed, (path, record))
    seeds = {record.seed for record in runs.records.values()}
    same = [one for seed, one in found.items() if seed in seeds]
    return dict(same or list(found.values()))


def _places(run_dir: Path, task: str) -> Iterator[Path]:
    """Yield the records that may be of random weights, each once."""
    patterns = [pattern.format(task=task.replace("%", "pct")) for pattern in BELOW]
    seen = set[Path]()
    for folder in (*list(run_dir.parents)[:LEVELS], RUNS):
        for pattern in patterns:
            with suppress(OSError):  # a folder that may not be read
                for path in sorted(folder.glob(f"*random*/{pattern}")):
                    if path.resolve() not in seen:
                        seen.add(path.resolve())
                        yield path


def describe_files(all_runs: Sequence[ScoredRuns]) -> list[str]:
    """Return where records and predictions are, and the command that shows the records as a table."""
    records = {path: record for runs in all_runs for path, record in runs.records.items()}
    lines = [f"record: {path}" for path in records]
    lines += [f"predictions: {path.parent / r.predictions['file']}" for path, r in records.items()]
    return [*lines, f"next: {show_command(list(records))}"]


def show_command(records: Sequence[Path]) -> str:
    """Return the command that shows the records, and those next to them, as a table."""
    folder = _common_folder(records)
    folder = RUNS if folder.parts[:1] == RUNS.parts else folder
    return shlex.join(["simmim-bench", "leaderboard", "show", str(folder)])


def _common_folder(records: Iterable[Path]) -> Path:
    """Return the folder that holds the runs of some records; absolute where one of the records' paths is."""
    folders = [path.parent for path in records]
    if any(folder.is_absolute() for folder in folders):
        folders = [folder.absolute() for folder in folders]
    return Path(os.path.commonpath(folders))


def _shown(values: Mapping[str, float], metrics: Sequence[str]) -> str:
    return ", ".join(f"{m} {format_metric(m, values[m])}" for m in metrics if m in values)
