"""Ablations: the grid of choices, the result of each cell, and the JSON form of both.

`ablation_intervals.py` computes how sure the results are; `ablation_report.py` renders them as a table and a figure.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from simmim_bench.recipe import Recipe

NO_PRETRAINING = "no pretraining"
# So few seeds take the spread pooled over the cells of the study. Two estimate theirs with one degree of freedom: the
# pooled spread of four such cells halves the intervals, which cover 95 % if all cells vary alike and 93 % if their
# deviations differ by a factor of 1.8.
FEW_SEEDS = 2


class PublishedScore(NamedTuple):
    """A published score of the same choices with another model on other data: percent, and its source."""

    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class AblationCell:
    """One combination of choices.

    Attributes:
        recipe: the pretraining recipe of the cell.
        changes: the fields that differ from the recipe that the ablation starts from.
    """

    name: str
    recipe: Recipe
    changes: dict[str, Any]
    published: PublishedScore | None = None


@dataclass(frozen=True)
class Grid:
    """The cells of an ablation.

    Attributes:
        cells: the cells that can be trained, the unchanged recipe first.
        left_out: the reason why a combination cannot be trained, by the name of its cell.
    """

    axes: tuple[str, ...]
    cells: tuple[AblationCell, ...]
    left_out: dict[str, str]


class SeedScore(NamedTuple):
    """The score of one seed's transfer, in percent, with the path of its record and its predictions' hash."""

    seed: int
    value: float
    record: str
    predictions_sha256: str


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """The measurements of one cell.

    Attributes:
        scores: the scores of the finished seeds.
        facts: figures of the pretraining checkpoints by name, one per seed; see
            `ablation_report.FACT_COLUMNS`.
        above: difference to the score of the unchanged recipe in points, with the bounds of its 95 %
            interval: (points, low, high); None if the two cannot be compared.
        images_alone: whether the interval of `above` is of the images alone, since no cell has two seeds.
        p_value, adjusted_p_value: of `above`, the latter adjusted by Holm's method for the number of differences in
            the table; None with `images_alone`.
        image_error: standard error of the mean score from the finite number of images, in points.
        error: standard error of the mean score from the images and the seeds; None if the latter is unknown.
        best: whether the score cannot be distinguished from the best one of the table.
        caveats: why the score is not sound: "partial", "changed sources".
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    scores: tuple[SeedScore, ...] = ()
    facts: dict[str, list[float]] = field(default_factory=dict)
    above: tuple[float, float, float] | None = None
    published: PublishedScore | None = None
    images_alone: bool = False
    p_value: float | None = None
    adjusted_p_value: float | None = None
    image_error: float | None = None
    error: float | None = None
    best: bool = False
    caveats: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """The mean score over seeds."""
        return statistics.fmean(score.value for score in self.scores)

    @property
    def std(self) -> float:
        """The sample standard deviation over seeds; 0 for a single one."""
        values = [score.value for score in self.scores]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    @property
    def is_pretrained(self) -> bool:
        """Whether the row is not the one of random weights."""
        return self.name != NO_PRETRAINING

    def mean_fact(self, name: str) -> float | None:
        """Return the mean of a fact over seeds; None if the checkpoints do not have it."""
        values = self.facts.get(name)
        return statistics.fmean(values) if values else None


class SeedSpread(NamedTuple):
    """The spread of one seed's score, pooled over the cells with several seeds.

    Attributes:
        deviation: standard deviation, in points.
        freedom: degrees of freedom.
        cells: number of cells, those of other axes with the same protocol included.
    """

    deviation: float
    freedom: float
    cells: int


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The results of an ablation.

    Attributes:
        protocol: architecture, recipes, the images of both phases, task and metric, in words.
        own: name of the cell with the unchanged recipe, which other cells are compared with.
        rows: results of the cells with a score.
        missing: names of the cells without a score.
        left_out: see `Grid`.
        img_side: shorter side of the pretraining images, in pixels.
        spread: the spread over seeds of cells with at most `FEW_SEEDS`; None if no cell has several.
        not_compared: why rows have no interval, by their names.
    """

    axes: tuple[str, ...]
    protocol: dict[str, Any]
    own: str
    rows: tuple[CellResult, ...]
    missing: tuple[str, ...]
    left_out: dict[str, str]
    img_side: int
    spread: SeedSpread | None = None
    not_compared: dict[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """The task and its metric, such as `linear top1`."""
        return f"{self.protocol['task']} {self.protocol['metric']}"

    @property
    def seeds(self) -> int:
        """The largest number of seeds of a row."""
        return max((len(row.scores) for row in self.rows), default=0)

    @property
    def baseline(self) -> CellResult | None:
        """The row of random weights."""
        return next((row for row in self.rows if row.name == NO_PRETRAINING), None)

    @property
    def pretrained(self) -> tuple[CellResult, ...]:
        """All rows but the one of random weights."""
        return tuple(row for row in self.rows if row.is_pretrained)


def to_json(ablation: Ablation) -> dict[str, Any]:
    """Convert an ablation to JSON-compatible values."""
    plain = asdict(ablation)
    for row, result in zip(plain["rows"], ablation.rows, strict=True):
        row["scores"] = [score._asdict() for score in result.scores]
        row["published"] = result.published and result.published._asdict()
    plain["spread"] = ablation.spread and ablation.spread._asdict()
    return plain


def from_json(plain: Mapping[str, Any]) -> Ablation:
    """Convert the values of `to_json` back to an ablation; older versions had fewer keys.

    Raises:
        KeyError, TypeError: the values are not an ablation's.
    """
    rows = [
        CellResult(
            **{
                **row,
                "scores": tuple(SeedScore(**score) for score in row["scores"]),
                "above": row["above"] and tuple(row["above"]),
                "published": row["published"] and PublishedScore(**row["published"]),
                "caveats": tuple(row.get("caveats", ())),
            }
        )
        for row in plain["rows"]
    ]
    lists = {name: tuple(plain[name]) for name in ("axes", "missing")}
    spread = plain.get("spread") and SeedSpread(**plain["spread"])
    return Ablation(**{**plain, **lists, "rows": tuple(rows), "spread": spread})


def describe_left_out(left_out: Mapping[str, str]) -> list[str]:
    """Return one sentence for each reason why cells are left out."""
    return _describe_reasons("Left out", left_out)


def describe_not_compared(not_compared: Mapping[str, str]) -> list[str]:
    """Return one sentence for each reason why rows have no interval."""
    return _describe_reasons("No interval", not_compared)


def _describe_reasons(what: str, reasons: Mapping[str, str]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"{what}: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {reason}"
        for reason, names in by_reason.items()
    ]


def describe_changes(changes: Mapping[str, Any]) -> str:
    """Return the changes of a cell as they are written on the command line."""
    return ", ".join(f"{key}={value}" for key, value in changes.items()) or "as given"
