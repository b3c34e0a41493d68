"""How sure an ablation's scores and differences are, from the predictions of its runs.

Each seed of a cell is a pretraining with its transfer, and a difference of two cells is one between pretrainings. One
seed does not show their spread, and two hardly do: it is then pooled over the cells with several seeds. Random weights
are left out of the pool, since their scores may vary less, but a difference to them takes the pooled spread as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.results.ablation import (
    FEW_SEEDS,
    Ablation,
    CellResult,
    SeedScore,
    SeedSpread,
    from_json,
)
from simmim_bench.results.per_image import ImageScores
from simmim_bench.results.record import read_record
from simmim_bench.results.row_runs import RowRuns, join_rows, read_run
from simmim_bench.tasks import find_variant
from simmim_bench.uncertainty.interval import (
    Difference,
    Side,
    Spread,
    difference,
    pooled_spread,
    uncertainty,
)
from simmim_bench.uncertainty.multiple import holm
from simmim_bench.uncertainty.run_scores import RunScores
from simmim_bench.untrusted.json_text import read_json

Locate = Callable[[SeedScore], Path]  # the path of a score's record; DataError if there is none


@dataclass(frozen=True)
class _Cell:
    """The runs of one row, with their scores by the path of the record."""

    row: CellResult
    runs: RowRuns
    scores: Mapping[Path, ImageScores]
    caveats: tuple[str, ...]

    @property
    def images(self) -> set[tuple[int, str]]:
        return {(run.images, run.identity) for run in self.scores.values()}


@dataclass(frozen=True)
class _Comparison:
    """All cells on the same images.

    Attributes:
        spread: see `Ablation.spread`.
        pooled: number of cells that the spread is pooled over.
        paired: whether runs of one seed share their training images.
    """

    cells: Mapping[str, _Cell]
    sides: Mapping[str, Side]
    runs: RunScores
    spread: Spread | None
    pooled: int
    paired: bool

    def difference(self, ours: str, theirs: str) -> Difference:
        sides = self.sides[ours], self.sides[theirs]
        return difference(self.runs, *sides, paired=self.paired, spread=self.spread)


def add_intervals(ablation: Ablation, locate: Locate, others: Sequence[Ablation] = ()) -> Ablation:
    """Add intervals, p-values, errors and the best rows to an ablation's scores.

    Args:
        others: ablations of other axes; the spread over seeds is pooled over their cells too if they have the same
            protocol.
    """
    cells, reasons = _read_cells(ablation, locate)
    reference = next((cells[name].images for name in (ablation.own, *cells) if name in cells), None)
    for name, cell in cells.items():
        if cell.images != reference or len(cell.images) > 1:
            reasons[name] = f"scored on other images than {ablation.own}"
    compared = {name: cell for name, cell in cells.items() if name not in reasons}
    rows = {
        row.name: replace(_without_intervals(row), caveats=cells[row.name].caveats)
        if row.name in cells
        else _without_intervals(row)
        for row in ablation.rows
    }
    spread = None
    if compared:
        comparison = _compare(ablation, compared, locate, others)
        rows |= _with_errors(comparison, rows)
        rows |= _with_differences(comparison, rows, ablation.own)
        rows |= _with_best(comparison, rows)
        if comparison.spread is not None:
            spread = SeedSpread(
                comparison.spread.variance**0.5, comparison.spread.freedom, comparison.pooled
            )
    return replace(ablation, rows=tuple(rows.values()), spread=spread, not_compared=reasons)


def read_ablations(folder: Path) -> Iterator[tuple[Path, Ablation]]:
    """Yield the ablations of all axes in a folder of runs, with their files.

    Raises:
        DataError: a file is damaged.
    """
    for path in sorted(folder.glob("*/ablation.json")):
        try:
            yield path, from_json(read_json(path, "ablation"))
        except (DataError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"ablation {path} is damaged; remove it, or write it again with --only-table."
            ) from error


def _read_cells(ablation: Ablation, locate: Locate) -> tuple[dict[str, _Cell], dict[str, str]]:
    """Read the runs of every row; return the reason where a row's cannot be read."""
    cells, reasons = dict[str, _Cell](), dict[str, str]()
    for row in ablation.rows:
        try:
            cell = _read_cell(row, ablation.protocol["metric"], locate)
        except DataError as error:
            reasons[row.name] = str(error)
            continue
        if cell is None:
            reasons[row.name] = f"{ablation.metric} is not stored image by image"
        else:
            cells[row.name] = cell
    return cells, reasons


def _read_cell(row: CellResult, metric: str, locate: Locate) -> _Cell | None:
    """Read the runs of a row; None for a metric without data by image."""
    scores, caveats, units = dict[Path, ImageScores](), [], []
    for score in row.scores:
        path = locate(score)
        record = read_record(path)
        caveats += ["partial"] if record.status == "partial" else []
        caveats += ["changed sources"] if record.environment.get("dirty") else []
        if record.predictions["sha256"] != score.predictions_sha256:
            raise DataError(
                f"{path} does not have the predictions that were scored; run {path.parent} again."
            )
        found = read_run(path, record, [metric])
        if metric not in found:
            return None
        scores[path] = found[metric]
        units.append((score.seed, [path]))
    runs = RowRuns(units, unit="pretraining" if row.is_pretrained else "seed")
    return _Cell(row, runs, scores, tuple(dict.fromkeys(caveats)))


def _without_intervals(row: CellResult) -> CellResult:
    """Return the scores and facts of a row alone."""
    return CellResult(
        name=row.name,
        changes=row.changes,
        scores=row.scores,
        facts=row.facts,
        published=row.published,
    )


def _compare(
    ablation: Ablation, cells: Mapping[str, _Cell], locate: Locate, others: Sequence[Ablation]
) -> _Comparison:
    """Join the runs of all cells, and pool the spread over seeds."""
    images = next(iter(cells.values())).images
    further = [cell for cell in _further_cells(ablation, locate, others) if cell.images == images]
    pool = [*cells.values(), *further]
    scores = {path: one for cell in pool for path, one in cell.scores.items()}
    runs, sides = join_rows([cell.runs for cell in pool], scores)
    several = [
        (cell, side)
        for cell, side in zip(pool, sides, strict=True)
        if cell.row.is_pretrained and len(cell.runs.units) > 1
    ]
    # Sources that are being changed leave all runs of a study unsound, and a spread is needed all the same.
    sound = [pair for pair in several if not pair[0].caveats] or several
    spread = pooled_spread(runs, [side for _, side in sound])
    variant = find_variant(ablation.protocol["task"])
    return _Comparison(
        cells=cells,
        sides=dict(zip(cells, sides, strict=False)),
        runs=runs,
        spread=spread and replace(spread, below=FEW_SEEDS + 1),
        pooled=len(sound),
        paired=variant is not None and variant.task.samples_images,
    )


def _further_cells(
    ablation: Ablation, locate: Locate, others: Sequence[Ablation]
) -> Iterator[_Cell]:
    """Yield the cells with several seeds that only other axes have."""
    known = {score.predictions_sha256 for row in ablation.rows for score in row.scores}
    for other in others:
        if other.protocol != ablation.protocol:
            continue
        for row in other.pretrained:
            hashes = {score.predictions_sha256 for score in row.scores}
            if len(row.scores) < 2 or hashes & known:
                continue
            try:
                cell = _read_cell(row, ablation.protocol["metric"], locate)
            except DataError:  # its own table reports it; this one pools over the others
                continue
            if cell is not None and len(cell.images) == 1:
                known |= hashes
                yield cell


def _with_errors(comparison: _Comparison, rows: Mapping[str, CellResult]) -> dict[str, CellResult]:
    """Add the standard errors of the mean scores."""
    found = {}
    for name, side in comparison.sides.items():
        pooled = comparison.spread if len(side.units) <= FEW_SEEDS else None
        known = uncertainty(comparison.runs, side, pooled)
        several = pooled is not None or len(side.units) > 1
        found[name] = replace(
            rows[name], image_error=known.images, error=known.total if several else None
        )
    return found


def _with_differences(
    comparison: _Comparison, rows: Mapping[str, CellResult], own: str
) -> dict[str, CellResult]:
    """Add the differences to the recipe's own cell."""
    if own not in comparison.sides:
        return {}
    differences = {
        name: comparison.difference(name, own) for name in comparison.sides if name != own
    }
    tested = [name for name, found in differences.items() if not found.without_units]
    adjusted = dict(zip(tested, holm([differences[name].p_value for name in tested]), strict=True))
    return {
        name: replace(
            rows[name],
            above=(found.points, found.low, found.high),
            images_alone=found.without_units,
            p_value=None if found.without_units else found.p_value,
            adjusted_p_value=adjusted.get(name),
        )
        for name, found in differences.items()
    }


def _with_best(comparison: _Comparison, rows: Mapping[str, CellResult]) -> dict[str, CellResult]:
    """Mark the sound rows that cannot be distinguished from the best; a single seed is none, nor the best of others."""
    sound = [name for name, cell in comparison.cells.items() if not cell.caveats]
    several = [name for name in sound if len(comparison.cells[name].runs.units) > 1]
    best = max(sound, key=lambda name: rows[name].mean, default=None)
    if best not in several or len(sound) < 2:
        return {}
    names = [n for n in several if n == best or comparison.difference(n, best).includes_zero]
    return {name: replace(rows[name], best=True) for name in names}
