"""Collect the results of an ablation's completed steps: scores, facts of the checkpoints, intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.cli.ablation.study import AblationStep, AblationStudy

if TYPE_CHECKING:
    from simmim_bench.results.ablation import Ablation, CellResult


def collect_results(study: AblationStudy) -> Ablation:
    """Collect the scores of all completed steps of the grid, with any seed that has been run."""
    from simmim_bench.results.ablation import Ablation
    from simmim_bench.results.ablation_intervals import add_intervals, read_ablations

    folders = study.out.glob("*/seed*") if study.out.is_dir() else ()
    found = {int(name) for f in folders if (name := f.name.removeprefix("seed")).isdecimal()}
    steps = list(dataclasses.replace(study, seeds=tuple(sorted(found))).steps())
    done = [step for step in steps if all(state == "done" for state, _ in step.statuses())]
    names = [cell.name for cell in study.grid.cells]
    by_cell = [[step for step in done if step.name == name] for name in names]
    by_cell.append([step for step in done if step.cell is None])
    ablation = Ablation(
        axes=study.grid.axes,
        protocol=_protocol(study, done),
        own=names[0],
        rows=tuple(_measured(study, of_cell) for of_cell in by_cell if of_cell),
        missing=tuple(name for name, of_cell in zip(names, by_cell, strict=False) if not of_cell),
        left_out=study.grid.left_out,
        img_side=min(study.recipe.img_size),
    )
    others = [a for path, a in read_ablations(study.out) if path.parent != study.results]
    return add_intervals(ablation, lambda score: study.out / score.record, others)


def _protocol(study: AblationStudy, done: Sequence[AblationStep]) -> dict[str, str]:
    """Return what all cells have in common."""
    from simmim_bench.local_paths import shorten_paths
    from simmim_bench.recipe import deviations

    changed = shorten_paths(deviations(study.recipe, study.named))
    return {
        "arch": study.arch,
        "pretraining": _with_changes(
            study.named.name, [f"{key}={value}" for key, value in changed.items()]
        ),
        "images": study.data.name,
        "task": study.task,
        "metric": study.metric,
        "transfer": _with_changes(study.transfer_recipe_name, study.transfer_overrides),
        "scored": _scored_on(study, done),
    }


def _scored_on(study: AblationStudy, done: Sequence[AblationStep]) -> str:
    """Return the data set that is scored, with its number of images."""
    from simmim_bench.results.record import read_record

    name = study.transfer_data.name
    if not done:
        return name
    record = read_record(done[0].transfer / "record.json")
    return f"{name}, {record.expected} images"


def _with_changes(name: str, changes: Sequence[str]) -> str:
    return name + (f" with {', '.join(changes)}" if changes else "")


def _measured(study: AblationStudy, steps: Sequence[AblationStep]) -> CellResult:
    """Collect a cell's scores and facts of its checkpoints."""
    from simmim_bench.local_paths import shorten_paths
    from simmim_bench.results.ablation import CellResult, SeedScore
    from simmim_bench.results.ablation_report import FACT_COLUMNS
    from simmim_bench.results.record import read_record

    scores = []
    for step in steps:
        path = step.transfer / "record.json"
        record = read_record(path)
        relative = path.relative_to(study.out).as_posix()
        value, predictions = record.metrics[study.metric], record.predictions["sha256"]
        scores.append(SeedScore(step.seed, value, relative, predictions))
    facts: dict[str, list[float]] = {}
    for step in steps:
        if step.cell is not None:
            for name, value in _facts(step.pretraining).items():
                if name in FACT_COLUMNS and value is not None:
                    facts.setdefault(name, []).append(value)
    cell = steps[0].cell
    return CellResult(
        name=steps[0].name,
        changes={} if cell is None else shorten_paths(cell.changes),
        scores=tuple(scores),
        facts=facts,
        published=None if cell is None else cell.published,
    )


def _facts(run_dir: Path) -> dict[str, Any]:
    """Read what a checkpoint's provenance says of its pretraining."""
    from pretrain.step import read_provenance

    provenance = read_provenance(run_dir)
    count = provenance.get("parameters")
    return {**provenance, "params_m": None if count is None else count / 1e6}
