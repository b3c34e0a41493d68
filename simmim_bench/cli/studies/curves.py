"""Scores against epochs, width or number of images of the pretraining, and against cost.

Rows that differ in one of these alone are the points of one curve.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.cost import LENGTH
from pretrain.step import PretrainStep
from simmim_bench.cli.studies.results import StudyResults
from simmim_bench.cli.studies.rows import StudyRow
from simmim_bench.files import sha256_json
from simmim_bench.leaderboard.comparable import Table
from simmim_bench.leaderboard.rows import Row, ScoreCell
from simmim_bench.recipe import ABOUT, MACHINE

LABELS = {
    "epochs": "epochs of pretraining",
    "width": "width (embed_dim)",
    "images": "images of pretraining",
    "cost": "seconds, with pretraining",
}


@dataclass(frozen=True)
class CurvePoint:
    """A row in a figure.

    Attributes:
        error: standard error of the score over images and units; 0 if it is unknown.
        device: of the cost; empty on the other axes.
    """

    row: str
    x: float
    score: float
    error: float
    device: str = ""


@dataclass(frozen=True)
class Panel:
    """One column of a table in a figure.

    Attributes:
        title: the column's heading.
        curves: points by name of the curve, in ascending order; of the cost, the points of each row.
        levels: scores of random weights by name, for horizontal lines.
    """

    title: str
    curves: Mapping[str, tuple[CurvePoint, ...]]
    levels: Mapping[str, float]


def collect_panels(results: StudyResults, axis: str) -> list[Panel]:
    """Return the panels of an axis; none where no two rows differ in it alone."""
    panels = []
    tables = results.tables
    for table in tables:
        for index, title in enumerate(table.titles):
            shown = f"{title}, {table.name}" if len(tables) > 1 else title
            panel = _panel(results, table, index, shown, axis)
            if panel is not None:
                panels.append(panel)
    return panels


def _panel(results: StudyResults, table: Table, index: int, title: str, axis: str) -> Panel | None:
    cells = dict(_cells(results, table, index))
    if axis == "cost":
        return _cost_panel(results, cells, title)
    curves: dict[Hashable, list[CurvePoint]] = {}
    for row in results.rows:
        if row.name not in cells or not isinstance(row.members[0].source, PretrainStep):
            continue
        for key, x in _places(row, axis, cells[row.name], results):
            curves.setdefault(key, []).append(_point(row.name, x, cells[row.name]))
    found = [
        sorted(points, key=lambda point: point.x)
        for points in curves.values()
        if len({point.x for point in points}) > 1
    ]
    if not found:
        return None
    named: dict[str, tuple[CurvePoint, ...]] = {}
    for points in found:
        named[_name_curve(results.rows, points, named)] = tuple(points)
    random = [row for row in results.rows if row.members[0].ckpt.startswith("random:")]
    random = [row for row in random if row.name in cells]
    if axis == "width" and len(random) > 1:
        widths = [
            _point(row.name, row.members[0].checkpoint.spec.embed_dim, cells[row.name])
            for row in random
        ]
        named["random"] = tuple(sorted(widths, key=lambda point: point.x))
        random = []
    return Panel(title, named, {row.name: cells[row.name].mean for row in random})


def _cost_panel(results: StudyResults, cells: Mapping[str, ScoreCell], title: str) -> Panel | None:
    """Return the panel of the cost; rows that differ in epochs alone are one curve."""
    curves: dict[Hashable, list[CurvePoint]] = {}
    for row in results.rows:
        point = _cost(results, row, cells[row.name]) if row.name in cells else None
        if point is not None:
            step = row.members[0].source
            same: list[Any] = [row.name, point.device]
            if isinstance(step, PretrainStep):
                same = [_fields(step, *LENGTH), str(step.data), point.device]
            curves.setdefault(sha256_json(same), []).append(point)
    several = len({point.device for points in curves.values() for point in points}) > 1
    named: dict[str, tuple[CurvePoint, ...]] = {}
    for points in curves.values():
        points.sort(key=lambda point: point.x)
        on = f" ({points[0].device})" if several else ""
        named[_name_curve(results.rows, points, named, on)] = tuple(points)
    return Panel(title, named, {}) if named else None


def _cells(results: StudyResults, table: Table, index: int) -> Iterator[tuple[str, ScoreCell]]:
    """Yield the cells of a column by the study's rows; of one with several pretrainings, the cell of their means."""
    inside = {one.label for row in table.rows.values() for one in row.pretrainings}
    rows: dict[str, list[Row]] = {}
    for label, row in table.rows.items():
        if label not in inside and row.cells[index] is not None:
            rows.setdefault(results.row_name(row), []).append(row)
    for name, of_name in rows.items():
        cell = of_name[0].cells[index]
        if cell is not None and len(of_name) == 1:
            yield name, cell


def _places(
    row: StudyRow, axis: str, cell: ScoreCell, results: StudyResults
) -> Iterator[tuple[Hashable, float]]:
    """Yield what a row shares with the rows of a curve, and its place on the axis.

    Rows that differ in the number of images share their epochs, or the number of images seen, whatever the epochs.
    """
    step = row.members[0].source
    assert isinstance(step, PretrainStep)
    if axis == "epochs":
        yield sha256_json([_fields(step, *LENGTH), str(step.data)]), float(step.recipe.epochs)
    elif axis == "width":
        spec = step.spec
        same = [_fields(step, "arch"), str(step.data), spec.family, spec.patch_size, spec.depths]
        yield sha256_json(same), float(spec.embed_dim)
    elif (images := _images(cell, results)) is not None:
        yield sha256_json([_fields(step, "limit")]), float(images)
        seen = images * step.recipe.epochs
        yield sha256_json([_fields(step, "limit", *LENGTH), seen]), float(images)


def _fields(step: PretrainStep, *left_out: str) -> dict[str, Any]:
    """Return the fields of a step's recipe that change its result, without some, and its initial weights."""
    no_part = (*ABOUT, *MACHINE, *left_out)
    fields = {key: value for key, value in step.recipe.to_json().items() if key not in no_part}
    return {**fields, "init_from": step.init_from}


def _images(cell: ScoreCell, results: StudyResults) -> int | None:
    """Return the number of images of a row's pretraining; None if its records do not say it."""
    data = results.board.records[cell.records[0]].checkpoint["provenance"].get("data")
    images = data.get("images") if isinstance(data, dict) else None
    return images if isinstance(images, int) else None


def _point(name: str, x: float, cell: ScoreCell, device: str = "") -> CurvePoint:
    error = None if cell.uncertainty is None else cell.uncertainty.total
    return CurvePoint(name, float(x), cell.mean, error or 0.0, device)


def _cost(results: StudyResults, row: StudyRow, cell: ScoreCell) -> CurvePoint | None:
    """Return a row's score at its cost; None if the cost of its pretraining or its runs is unknown."""
    name = row.name
    transfer, training = results.transfer_cost(cell), results.training.get(name)
    random = row.members[0].ckpt.startswith("random:")
    if transfer is None or (training is None and not random):
        return None
    seconds, devices = transfer.seconds, [transfer.device]
    if training is not None:
        seconds, devices = seconds + training.seconds, [training.device, transfer.device]
    return _point(name, seconds, cell, " and ".join(dict.fromkeys(devices)))


def _name_curve(
    rows: Sequence[StudyRow], points: Sequence[CurvePoint], taken: Collection[str], suffix: str = ""
) -> str:
    """Return the name that the file has for the rows of a curve, or the names of its ends."""
    names = [point.row for point in points]
    keys = {row.key for row in rows if row.name in names}
    ends = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    name = (keys.pop() if len(keys) == 1 else ends) + suffix
    return name if name not in taken else ends + suffix
