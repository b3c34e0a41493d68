"""Run the steps of a study, and write and print its results."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from pretrain.step import PretrainStep
from simmim_bench.cli.studies.definition import Study
from simmim_bench.cli.studies.plan import StudyPlan, study_forecaster
from simmim_bench.cli.studies.report import write_report
from simmim_bench.cli.studies.results import StudyResults, collect_results
from simmim_bench.cli.studies.rows import AnyStudyStep
from simmim_bench.cli.studies.subsets import write_subsets
from simmim_bench.display import Display
from simmim_bench.errors import BenchError, DataError, InterruptedRun
from simmim_bench.files import cannot_write
from simmim_bench.jobs.options import JobOptions
from simmim_bench.jobs.runner import run_steps
from simmim_bench.jobs.running import StepResult
from simmim_bench.jobs.step import is_done
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.reported import read_reported
from simmim_bench.leaderboard.tables import print_table
from simmim_bench.leaderboard.write import write_leaderboard


def run_study(
    plan: StudyPlan, job_options: JobOptions, display: Display
) -> list[StepResult[AnyStudyStep]]:
    """Run the steps that are left; when interrupted, write the results of the completed ones first.

    Raises:
        UsageError: more devices than the machine has, or another subset of a data set in OUT.
        MissingFrameworkError: submitit is not installed.
        DataError: OUT cannot be written, or a data set is too small for a subset.
        InterruptedRun: a signal came; the running steps were asked to save.
    """
    out = plan.study.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error, option="out") from error
    write_subsets(plan.study.subsets)
    try:
        return run_steps(
            plan.listed.steps,
            job_options,
            out,
            display,
            what="study",
            forecast=study_forecaster(plan, job_options),
            waits_for=plan.listed.needed_by,
        )
    except InterruptedRun:
        with suppress(BenchError):
            write_results(plan)
        raise


def write_results(plan: StudyPlan) -> tuple[Path, StudyResults] | None:
    """Write the leaderboard of all records of a study's folder, and the report; return the latter's path and results.

    Returns:
        None where no transfer is done.

    Raises:
        DataError: a file cannot be written.
    """
    study = plan.study
    try:
        found = find_records([study.out / "rows"])
    except DataError:  # no record yet
        return None
    # With the published rows, as `leaderboard build` and `check` have them by default.
    write_leaderboard(found.board(), study.out / "leaderboard", reported=read_reported())
    results = collect_results(plan.listed, found)
    if not results.board.records:
        return None
    done = sum(map(is_done, plan.listed.steps))
    progress = f"{done} of {len(plan.listed.steps)} steps of {study.path.name} are done."
    return write_report(study, results, progress), results


def print_study(
    plan: StudyPlan,
    steps: Sequence[StepResult[AnyStudyStep]],
    written: tuple[Path, StudyResults] | None,
) -> None:
    """Print the table, and every failed step with the command that runs it alone."""
    if written is not None:
        report, results = written
        print_table(results.board)
        click.echo(f"leaderboard  {plan.study.out / 'leaderboard' / 'leaderboard.html'}")
        click.echo(f"report       {report}")
    if steps:
        click.echo(f"{sum(one.state == 'done' for one in steps)} of {len(steps)} steps done")
    for one in steps:
        if one.state == "failed":
            click.echo(
                f"\nfailed   {one.step}: {one.error}\n"
                f"log      {one.step.log}\n"
                f"alone    {one.step.command()}"
            )
    not_run = [one for one in steps if one.state == "not run"]
    for one in not_run:
        click.echo(f"not run  {one.step}: {one.error}")
    if any(one.state == "failed" for one in steps):
        click.echo("\nFix the cause and run the same command again; completed steps are skipped.")


def study_json(
    study: Study,
    steps: Sequence[StepResult[AnyStudyStep]],
    written: tuple[Path, StudyResults] | None,
) -> dict[str, Any]:
    """Return the plain form of the results."""
    return {
        "steps": [
            {
                "step": str(one.step),
                "kind": "pretraining" if isinstance(one.step, PretrainStep) else "transfer",
                "state": one.state,
                "exit_code": one.code,
                "error": one.error or None,
                "seconds": round(one.seconds, 1),
                "log": str(one.step.log),
                "command": one.step.command(),
            }
            for one in steps
        ],
        "leaderboard": None if written is None else str(study.out / "leaderboard"),
        "report": None if written is None else str(written[0]),
    }
