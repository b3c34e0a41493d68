"""`simmim-bench study`: pretrain and transfer the checkpoints that a file describes, and report the results."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path

import click

from simmim_bench.cli.options import PATH, QUIET_OPTION, job_options, open_display
from simmim_bench.errors import UsageError
from simmim_bench.imports import without_collection
from simmim_bench.jobs.options import JobOptions


@click.command()
@click.argument("file", metavar="FILE.yaml", required=False, type=PATH)
@click.option("--example", is_flag=True, help="Print a commented study file, and do nothing else.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the plan with its cost, and the smallest difference between two rows that it shows with 80 % power; "
    "write nothing.",
)
@click.option(
    "--only-report",
    is_flag=True,
    help="Run nothing; write the leaderboard and the report of the completed steps.",
)
@job_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the results as JSON.")
@QUIET_OPTION
def study(
    file: Path | None,
    example: bool,
    dry_run: bool,
    only_report: bool,
    job_options: JobOptions,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a study that a file describes: pretrainings, baselines, tasks and seeds, with a report.

    FILE.yaml names data sets, checkpoints to pretrain or given ones, baselines and tasks; paths are relative to
    the file. Every pretraining and every task of a checkpoint is a step in a separate process. A transfer starts
    when its checkpoint is done, next to other pretrainings. Completed steps are skipped and interrupted ones
    resumed when the same command is given again; what waits for a failed step is not run.

    OUT, by default runs/FILE next to the file, receives rows/, leaderboard/ and report.md: the table, the
    differences to a reference row with 95 % intervals, and figures of score against epochs, width, number of
    images and cost. `suite` and `ablate` are the short forms: tasks of checkpoints that exist, and one recipe
    with every choice on an axis.

    \b
      simmim-bench pocket pocket
      simmim-bench study --example > study.yaml
      simmim-bench study study.yaml --dry-run
      simmim-bench study study.yaml

    Exit code: 0 when all steps are done, else that of the first failed step.
    """
    if example:
        click.echo(_example(), nl=False)
        return
    if file is None:
        raise UsageError("no study file; pass FILE.yaml, or --example to print one to start from.")
    with without_collection():
        from simmim_bench.cli.studies.plan import check_study, plan_study, plan_text
        from simmim_bench.cli.studies.read import read_study
        from simmim_bench.cli.studies.run import print_study, run_study, study_json, write_results

    described = read_study(file)
    plan = plan_study(
        described,
        job_options,
        dry_run=dry_run,
        log=(lambda message: None) if quiet else (lambda message: click.echo(message, err=True)),
    )
    if dry_run and as_json:
        click.echo(json.dumps(plan.to_json()))
    elif not as_json and not only_report:
        click.echo(plan_text(plan) + "\n")
    if not only_report:
        check_study(plan)
    if dry_run:
        return
    results = [] if only_report else run_study(plan, job_options, open_display(quiet))
    report = write_results(plan)
    if only_report and report is None:
        raise UsageError("--only-report: no step has a score yet; run the study first.")
    if as_json:
        click.echo(json.dumps(study_json(described, results, report)))
    else:
        print_study(plan, results, report)
    failed = [result for result in results if result.state == "failed"]
    if failed:
        sys.exit(failed[0].code)


def _example() -> str:
    """Return the commented study file."""
    return resources.files("simmim_bench.cli.studies").joinpath("example.yaml").read_text("utf-8")
