"""Write a study's report: `report.md` with its figures, and `report.json` with the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simmim_bench.cli.studies.curves import LABELS, Panel, collect_panels
from simmim_bench.cli.studies.definition import Study
from simmim_bench.cli.studies.differences import (
    Differences,
    compare_with,
    difference_lines,
    plain_differences,
)
from simmim_bench.cli.studies.figures import plot_panels
from simmim_bench.cli.studies.results import Cost, StudyResults
from simmim_bench.display import format_duration
from simmim_bench.files import write_json, write_together
from simmim_bench.leaderboard.small_set_tables import small_sets_to_markdown
from simmim_bench.leaderboard.tables import to_markdown
from simmim_bench.leaderboard.text_tables import escape_markdown

FOLDER = "figures"


def write_report(study: Study, results: StudyResults, progress: str) -> Path:
    """Write the report of a study's completed steps, with its figures; return its path.

    Args:
        progress: how much of the study is done, in words.
    """
    panels = {axis: collect_panels(results, axis) for axis in study.figures}
    figures = {axis: found for axis, found in panels.items() if found}
    for axis in LABELS:
        path = study.out / FOLDER / f"{axis}.png"
        if axis in figures:
            plot_panels(figures[axis], axis, path)
        else:
            path.unlink(missing_ok=True)
    reference = study.reference or study.checkpoints[0].name
    differences = compare_with(results, reference)
    lines = [
        f"# {escape_markdown(study.path.stem)}",
        "",
        progress,
        "",
        "## Scores",
        "",
        *_tables(results),
        *difference_lines(results, differences, reference),
        *_cost_lines(results),
        *_figure_lines(figures),
    ]
    path = study.out / "report.md"
    write_together({path: "\n".join(lines).rstrip() + "\n"}, study.out)
    write_json(study.out / "report.json", _plain(results, reference, differences, figures))
    return path


def _tables(results: StudyResults) -> list[str]:
    """Return the tables of the scores."""
    parts = (to_markdown(results.board), small_sets_to_markdown(results.board))
    return [text for part in parts if part for text in (part.rstrip(), "")]


def _cost_lines(results: StudyResults) -> list[str]:
    """Return the table of costs: a pretraining of every row, and a run of every column."""
    groups = [(group.rows, results.board.columns) for group in results.board.groups]
    scored = {*results.row_of.values()}
    names = [row.name for row in results.rows if row.name in scored]
    tasks = list(dict.fromkeys(c.task for c in results.board.columns))
    if not groups:
        return []
    costs: dict[tuple[str, str], Cost] = {}
    for rows, columns in groups:
        for row in rows:
            for cell, column in zip(row.cells, columns, strict=True):
                cost = None if cell is None else results.transfer_cost(cell)
                if cost is not None:
                    costs[results.row_name(row), column.task] = cost
    devices = list(dict.fromkeys(c.device for c in (*results.training.values(), *costs.values())))
    several = len(devices) > 1
    lines = ["## Cost", "", f"| row | pretraining | {' | '.join(map(escape_markdown, tasks))} |"]
    lines += ["| --- |" + " ---: |" * (1 + len(tasks))]
    for name in names:
        found = [results.training.get(name), *(costs.get((name, task)) for task in tasks)]
        texts = [_format_cost(cost, several) for cost in found]
        lines.append(f"| {escape_markdown(name)} | {' | '.join(texts)} |")
    on = "" if several else f" on {devices[0]}" if devices else ""
    lines += [
        "",
        f"Mean time of one pretraining and of one run of each task{on}, summed over devices.",
    ]
    if any(cost.beside_others for cost in (*results.training.values(), *costs.values())):
        lines.append(
            "Some ran beside other steps on the same device, so that they took longer than alone; --exclusive runs one "
            "step at a time."
        )
    lines.append("")
    return lines


def _format_cost(cost: Cost | None, with_device: bool) -> str:
    if cost is None:
        return "–"
    text = format_duration(cost.seconds)
    return f"{text} ({escape_markdown(cost.device)})" if with_device else text


def _figure_lines(figures: Mapping[str, Sequence[Panel]]) -> list[str]:
    lines = []
    for axis in figures:
        what = "cost" if axis == "cost" else LABELS[axis]
        lines += [f"## Score against {what}", "", f"![{what}]({FOLDER}/{axis}.png)", ""]
    if figures:
        lines += [
            "Bars: ± 1 standard error over the images, and over pretrainings or seeds where a row has several. "
            "Dashed: random weights.",
            "",
        ]
    return lines


def _plain(
    results: StudyResults,
    reference: str,
    differences: Differences,
    figures: Mapping[str, Sequence[Panel]],
) -> dict[str, Any]:
    """Return the numbers of the report as plain JSON."""
    return {
        "reference": reference,
        "differences": plain_differences(differences),
        "figures": {
            axis: [
                {
                    "column": panel.title,
                    "curves": {
                        name: [asdict(point) for point in points]
                        for name, points in panel.curves.items()
                    },
                    "random": dict(panel.levels),
                }
                for panel in panels
            ]
            for axis, panels in figures.items()
        },
        "training_seconds": {
            name: {"seconds": cost.seconds, "device": cost.device}
            for name, cost in results.training.items()
        },
    }
