"""One row per checkpoint or method, and its scores.

Several transfer seeds of one checkpoint are summarised by mean and standard deviation. Checkpoints that one method
gave with several pretraining seeds become one row, whose scores are means over pretrainings.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simmim_bench.leaderboard.pretrainings import method_key, pretraining_seed
from simmim_bench.leaderboard.reported import ReportedScore
from simmim_bench.results.record import Record
from simmim_bench.results.row_runs import varies_with_seed
from simmim_bench.results.score_text import DEVIATES, DIRTY, PARTIAL, describe_uncertainty
from simmim_bench.tasks import Column
from simmim_bench.uncertainty.interval import Uncertainty, Unit


@dataclass(frozen=True)
class ScoreCell:
    """One score and the records that it was computed from; a published score has no records.

    Attributes:
        values: percent, one per unit.
        deviates: some settings differ from the named recipe.
        partial: not every image of the split was evaluated.
        dirty: the code had uncommitted changes.
        published: the published score of this checkpoint under the same recipe; None if there is none.
        unit: what the values are of: transfer seeds of a checkpoint, or pretrainings of a method.
        varies: whether another unit would have another score.
        uncertainty: None where the predictions are missing or have no data by image.
        rank: rank in the column among comparable rows, shared by rows that cannot be distinguished; None for an
            unsound score, and where a score that may be higher cannot be compared.
        best: whether the score cannot be distinguished from the column's best.
    """

    values: tuple[float, ...]
    records: tuple[Path, ...] = ()
    deviates: bool = False
    partial: bool = False
    dirty: bool = False
    published: ReportedScore | None = None
    unit: Unit = "seed"
    varies: bool = True
    uncertainty: Uncertainty | None = None
    rank: int | None = None
    best: bool = False

    @property
    def mean(self) -> float:
        """Mean over units, in percent."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over units; None for a single unit."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def is_sound(self) -> bool:
        """Whether the score may be ranked."""
        return not (self.partial or self.dirty)

    @property
    def is_unreplicated(self) -> bool:
        """Whether the score is of a single unit, although another would have another score."""
        return self.varies and len(self.values) == 1

    @property
    def comparison(self) -> str | None:
        """Comparison with the published score, such as `published 83.8, here 83.5 (-0.3)`, if there is one."""
        if self.published is None:
            return None
        # Adding zero turns -0.0 into 0.0.
        difference = round(self.mean - self.published.value, 1) + 0.0
        return f"published {self.published.value:.1f}, here {self.mean:.1f} ({difference:+.1f})"

    @property
    def marks(self) -> tuple[str, ...]:
        """The marks after the score; see `score_text.MEANINGS`."""
        marks = {DEVIATES: self.deviates, PARTIAL: self.partial, DIRTY: self.dirty}
        return tuple(mark for mark, applies in marks.items() if applies)

    @property
    def lines(self) -> tuple[str, ...]:
        """The score with its marks, and what is known of its uncertainty, such as `seeds ± 1.4`, `images ± 2.2`."""
        images = None if self.uncertainty is None else self.uncertainty.images
        known = describe_uncertainty(self.std, images, self.unit)
        score = f"{self.mean:.1f}" + "".join(self.marks)
        return (score, *(f"{name} {text}" for name, text in known.items()))

    def __str__(self) -> str:
        return ", ".join(self.lines)


def plain_score(cell: ScoreCell) -> dict[str, Any]:
    """Return a score, its uncertainty, its rank and its marks as plain JSON."""
    return {
        "mean": cell.mean,
        "std": cell.std,
        "seeds": len(cell.values),
        "unit": cell.unit,
        "images_se": images_error(cell),
        "rank": cell.rank,
        "best": cell.best,
        "deviates": cell.deviates,
        "partial": cell.partial,
        "dirty": cell.dirty,
    }


def images_error(cell: ScoreCell) -> float | None:
    """Return the standard error from the finite number of images, with six digits.

    The last digits of a covariance depend on the machine, and a check compares the tables with their texts.
    """
    error = None if cell.uncertainty is None else cell.uncertainty.images
    return None if error is None else float(f"{error:.6g}")


@dataclass(frozen=True)
class Row:
    """One checkpoint, or one method, with its cells in the order of the board's columns.

    Attributes:
        checkpoint: hash of the weights; empty for a method.
        inapplicable: indices of columns whose task was run on data that cannot provide the metric, such as
            mask AP on a data set without masks.
        pretrainings: the rows of the single checkpoints, if this row is of a method pretrained with several seeds.
        pretraining_seed: of the checkpoint, where it is one of several pretrainings.
        mean_rank: mean of the ranks in the tasks, see `ranking.mean_ranks`; None where not requested.
        mean: in a table of named data sets, the mean over them; None if a score is missing.
    """

    label: str
    checkpoint: str
    arch: str
    cells: tuple[ScoreCell | None, ...]
    inapplicable: frozenset[int] = frozenset()
    pretrainings: tuple[Row, ...] = ()
    pretraining_seed: int | None = None
    mean_rank: float | None = None
    mean: ScoreCell | None = None

    @property
    def records(self) -> tuple[Path, ...]:
        """The records of all cells, without duplicates."""
        paths = (path for cell in self.cells if cell is not None for path in cell.records)
        return tuple(dict.fromkeys(paths))

    @property
    def is_partial(self) -> bool:
        """Whether any cell is partial."""
        return any(cell is not None and cell.partial for cell in self.cells)

    @property
    def is_sound(self) -> bool:
        """Whether all of its scores may be ranked."""
        return all(cell.is_sound for cell in self.cells if cell is not None)


def with_pretrainings(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in their order, those of methods followed by the rows of their pretrainings."""
    return [one for row in rows for one in (row, *row.pretrainings)]


def build_cell(
    column: Column, paths: Sequence[Path], records: Mapping[Path, Record]
) -> ScoreCell | None:
    """Summarise a column's records of one checkpoint; None if none of them has the metric."""
    by_seed: dict[int, Path] = {}
    for path in paths:
        if column.metric not in records[path].metrics:
            continue
        # A baseline may be evaluated along with each of several checkpoints; equal predictions count once.
        by_seed.setdefault(records[path].seed, path)
    if not by_seed:
        return None
    used = [records[path] for path in by_seed.values()]
    return ScoreCell(
        values=tuple(r.metrics[column.metric] for r in used),
        records=tuple(by_seed.values()),
        deviates=any(r.deviates for r in used),
        partial=any(r.status == "partial" for r in used),
        dirty=any(bool(r.environment.get("dirty")) for r in used),
        varies=varies_with_seed(used[0]),
    )


def merge_pretrainings(rows: Sequence[Row], records: Mapping[Path, Record]) -> list[Row]:
    """Merge the rows of checkpoints that one method gave with several pretraining seeds.

    Checkpoints of one method with the same pretraining seed keep their rows: they are not independent.
    """
    by_method: dict[Hashable, list[Row]] = {}
    for row in rows:
        record = records[row.records[0]]
        key = method_key(record)
        if key is not None:
            one = replace(row, pretraining_seed=pretraining_seed(record))
            by_method.setdefault(key, []).append(one)
    methods: dict[str, list[Row]] = {}
    for members in by_method.values():
        seeds = [row.pretraining_seed for row in members]
        alone = [row for row, seed in zip(members, seeds, strict=True) if seeds.count(seed) == 1]
        if len(alone) > 1:
            alone.sort(key=lambda row: row.pretraining_seed or 0)
            methods |= {row.label: alone for row in alone}
    labels = [_method_label(methods[row.label], records) for row in rows if row.label in methods]
    merged = {}
    for row in rows:
        members = methods.get(row.label, [])
        if not members:
            merged[row.label] = row
            continue
        label = _method_label(members, records)
        if labels.count(label) > len(members) or label in {other.label for other in rows}:
            label += f" [{members[0].checkpoint[:8]}]"
        merged.setdefault(label, _method_row(label, members))
    return list(merged.values())


def _method_label(members: Sequence[Row], records: Mapping[Path, Record]) -> str:
    """Return the label of the checkpoints of one method, and their number."""
    first = records[members[0].records[0]]
    return f"{first.checkpoint['label']} ({len(members)} pretrainings)"


def _method_row(label: str, members: Sequence[Row]) -> Row:
    """Build the row of a method from those of its checkpoints."""
    cells = [
        _method_cell([cell for row in members if (cell := row.cells[i]) is not None])
        for i in range(len(members[0].cells))
    ]
    without = frozenset.intersection(*(row.inapplicable for row in members))
    return Row(label, "", members[0].arch, tuple(cells), without, tuple(members))


def _method_cell(parts: Sequence[ScoreCell]) -> ScoreCell | None:
    """Summarise the scores of a method's checkpoints; None if there are none."""
    if not parts:
        return None
    return ScoreCell(
        values=tuple(part.mean for part in parts),
        records=tuple(path for part in parts for path in part.records),
        deviates=any(part.deviates for part in parts),
        partial=any(part.partial for part in parts),
        dirty=any(part.dirty for part in parts),
        unit="pretraining",
    )
