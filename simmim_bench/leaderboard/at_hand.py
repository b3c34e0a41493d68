"""Read the earlier records that are similar to planned ones, with the predictions of few of their runs.

Records of the same recipe and data come first, then those of the same data, of the same recipe, and of the same
task. Planning stays quick: what is read of the predictions is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from simmim_bench.errors import DataError
from simmim_bench.leaderboard.find import FoundRecords, find_records
from simmim_bench.leaderboard.pretrainings import method_key, pretraining_seed
from simmim_bench.leaderboard.protocols import checkpoint_key, protocol_id
from simmim_bench.results.per_image import ImageScores
from simmim_bench.results.record import Record
from simmim_bench.results.row_runs import (
    RowRuns,
    join_rows,
    number_runs,
    read_run,
    varies_with_seed,
)
from simmim_bench.tasks import Predictions, predictions_of
from simmim_bench.uncertainty.interval import Side, Unit
from simmim_bench.uncertainty.run_scores import RunScores

# The largest number of runs of one column that are read, and the largest size of their predictions together, in bytes,
# by kind. A run on ImageNet's 50,000 images has 1.5 to 2.6 MB and takes 15 ms; matching detections to the ground truth
# takes 0.2 s per megabyte.
MOST_RUNS = 24
MOST_BYTES: dict[Predictions, int] = {
    "ranking": 64 << 20,
    "multilabel": 64 << 20,
    "confusion": 16 << 20,
    "corruptions": 16 << 20,
    "coco": 8 << 20,
}
MOST_ROWS = 100  # of one protocol
SAME_PROTOCOL = "same recipe and data"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The column and protocol that a plan will have records of.

    Attributes:
        task: the task as records name it.
        recipe: hash of the resolved recipe.
        data: the folder and the name of the data set, as given.
        limit: the recipe's number of images; None for all.
        unit: what the units of a row are.
        varies: whether another unit has another score.
        paired: whether units of equal keys share their training images.
    """

    task: str
    metric: str
    recipe: str
    data: tuple[str, str | None]
    limit: int | None = None
    unit: Unit = "seed"
    varies: bool = True
    paired: bool = False


@dataclass(frozen=True)
class RecordsAtHand:
    """Earlier records, and the predictions that have been read of them.

    Attributes:
        warn: called with one sentence for each record whose predictions cannot be used.
        scores: what has been read.
        unread: tasks with records whose predictions would take too long to read.
    """

    records: Mapping[Path, Record]
    warn: Callable[[str], None]
    scores: dict[tuple[Path, str], ImageScores | None] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)

    def read(self, path: Path, metric: str) -> ImageScores | None:
        """Read one metric of a record image by image; None if it is not available."""
        if (path, metric) not in self.scores:
            self.scores[path, metric] = self._read(path, metric)
        return self.scores[path, metric]

    def _read(self, path: Path, metric: str) -> ImageScores | None:
        try:
            return read_run(path, self.records[path], [metric]).get(metric)
        except DataError as error:
            self.warn(f"the spread over images is estimated without {path.parent}: {error}")
            return None


def read_at_hand(folder: Path, warn: Callable[[str], None]) -> RecordsAtHand:
    """Read the records below a folder; none if it does not exist or has none."""
    try:
        found = find_records([folder])
    except DataError:
        found = FoundRecords({})
    for problem in found.problems:
        warn(f"a record is left out: {problem}")
    return RecordsAtHand(found.records, warn)


@dataclass(frozen=True)
class Sample:
    """The runs of some rows of one protocol.

    Attributes:
        has_images: whether the covariance of the runs over images is known; otherwise it is zero.
    """

    runs: RunScores
    sides: Sequence[Side]
    has_images: bool


def by_similarity(
    records: Mapping[Path, Record], target: Target
) -> Iterator[tuple[str, list[Path]]]:
    """Yield the complete records of the target's task by how similar they are, with the similarity in words."""
    complete = {
        path: record
        for path, record in records.items()
        if record.task == target.task
        and record.status != "partial"
        and target.metric in record.metrics
    }
    of_recipe = {p for p, record in complete.items() if record.recipe["sha256"] == target.recipe}
    of_data = {p for p, record in complete.items() if _data(record) == target.data}
    for kind, paths in (
        (SAME_PROTOCOL, of_recipe & of_data),
        ("same data", of_data),
        ("same recipe", of_recipe),
        ("same task", complete.keys()),
    ):
        yield kind, [path for path in complete if path in paths]


def _data(record: Record) -> tuple[str, str | None]:
    return record.data.get("root", ""), record.data.get("name")


def count_images(at_hand: RecordsAtHand, target: Target) -> int | None:
    """Return the number of images that records of the same task, data and limit expect; None without such a record."""
    return next(
        (
            record.expected
            for record in at_hand.records.values()
            if record.task == target.task
            and _data(record) == target.data
            and record.deviates.get("limit") == target.limit
        ),
        None,
    )


def read_samples(at_hand: RecordsAtHand, paths: Sequence[Path], target: Target) -> Iterator[Sample]:
    """Yield the runs of every protocol: those whose predictions are read, and the scores of the others."""
    protocols = dict[Hashable, list[Path]]()
    for path in paths:
        record = at_hand.records[path]
        protocols.setdefault((protocol_id(record), record.data.get("name")), []).append(path)
    budget = _Budget(MOST_RUNS, MOST_BYTES[predictions_of(target.task)])
    for of_protocol in protocols.values():
        rows = _rows(at_hand.records, of_protocol, target)
        read = _read_rows(at_hand, rows, target, budget)
        known = [row for row in rows if all(path in read for path in row.paths)]
        if known:
            yield Sample(*join_rows(known, read), has_images=True)
        others = [row for row in rows if row not in known]
        if others:
            unread = [path for row in others for path in row.paths]
            values = np.array([at_hand.records[path].metrics[target.metric] for path in unread])
            runs = RunScores(values, np.zeros((len(values), len(values))), images=1)
            yield Sample(runs, number_runs(others, unread), has_images=False)


def _rows(records: Mapping[Path, Record], paths: Sequence[Path], target: Target) -> list[RowRuns]:
    """Group runs of one protocol by row and unit, rows with most units first; one run is kept of each seed."""
    rows = dict[Hashable, dict[int | str, dict[int, Path]]]()
    varying = set[Hashable]()
    of_methods = target.unit == "pretraining"
    for path in paths:
        record = records[path]
        row = method_key(record) if of_methods else checkpoint_key(record)
        if row is None:
            continue
        key = str(pretraining_seed(record)) if of_methods else record.seed
        rows.setdefault(row, {}).setdefault(key, {}).setdefault(record.seed, path)
        if of_methods or varies_with_seed(record):
            varying.add(row)
    found = [
        RowRuns(
            [(key, [*runs.values()]) for key, runs in units.items()],
            unit=target.unit,
            varies=row in varying,
        )
        for row, units in rows.items()
    ]
    return sorted(found, key=lambda row: -len(row.units))[:MOST_ROWS]


@dataclass
class _Budget:
    """The runs that may still be read, and the bytes of their predictions."""

    runs: int
    size: int

    def spend(self, files: Sequence[Path]) -> bool:
        """Return whether some files may be read, and subtract them if so."""
        size = sum(map(_size, files))
        if len(files) > self.runs or size > self.size:
            return False
        self.runs -= len(files)
        self.size -= size
        return True


def _read_rows(
    at_hand: RecordsAtHand, rows: Sequence[RowRuns], target: Target, budget: _Budget
) -> dict[Path, ImageScores]:
    """Read the runs of as many rows as the budget allows; all are on the same images."""
    identity = ""
    found = dict[Path, ImageScores]()
    for row in rows:
        files = [path.parent / at_hand.records[path].predictions["file"] for path in row.paths]
        if not budget.spend(files):
            at_hand.unread.add(target.task)
            continue
        read = {path: at_hand.read(path, target.metric) for path in row.paths}
        complete = {path: one for path, one in read.items() if one is not None}
        identity = identity or next((one.identity for one in complete.values()), "")
        if len(complete) == len(read) and all(i.identity == identity for i in complete.values()):
            found |= complete
    return found


def _size(path: Path) -> int:
    """Return the size of a file in bytes; 0 where reading will report that it cannot be used."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0
