"""`simmim-bench ablate`: pretrain one recipe with every choice on an axis, and transfer each result."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from simmim_bench.cli.ablation.collect import collect_results
from simmim_bench.cli.ablation.request import make_study
from simmim_bench.cli.ablation.study import AblationStudy, choose_steps, plan_text, step_json
from simmim_bench.cli.options import (
    PATH,
    QUIET_OPTION,
    SEED,
    complete_among,
    complete_arch,
    job_options,
    open_display,
    override_option,
    pretrain_recipes,
    transfer_recipes,
)
from simmim_bench.cli.recipe_options import (
    ABLATE_FLAGS,
    CONFIG_OPTION,
    apply_key_options,
    pop_overrides,
)
from simmim_bench.errors import BenchError, DataError, InterruptedRun, UsageError, nearest
from simmim_bench.jobs.options import JobOptions
from simmim_bench.tasks import variants

if TYPE_CHECKING:
    from simmim_bench.cli.ablation.study import AblationStep
    from simmim_bench.jobs.running import StepResult
    from simmim_bench.leaderboard.forecast import Forecast

AXES = ("masking", "ratio", "head", "resolution", "target", "loss", "scope", "encoder-input")


@click.command()
@click.argument("axes", metavar="AXIS...", nargs=-1, required=True, type=click.Choice(AXES))
@click.option(
    "--arch", required=True, metavar="ARCH", shell_complete=complete_arch, help="Architecture."
)
@click.option("--data", required=True, type=PATH, help="Images to pretrain on.")
@click.option(
    "--transfer",
    "task",
    type=click.Choice(list(variants())),
    default="linear",
    show_default=True,
    help="The transfer task that scores each cell.",
)
@click.option(
    "--transfer-data",
    type=PATH,
    help="Data set of the transfer; by default --data, if its images have classes.",
)
@click.option(
    "--recipe",
    metavar="NAME",
    shell_complete=complete_among(pretrain_recipes),
    help="Pretraining recipe; by default the one for the architecture.",
)
@override_option(
    "Change one setting of the pretraining recipe in every cell, such as epochs=10; may be repeated."
)
@apply_key_options(ABLATE_FLAGS, "the pretraining recipe")
@CONFIG_OPTION
@click.option(
    "--transfer-recipe",
    metavar="NAME",
    shell_complete=complete_among(transfer_recipes),
    help="Transfer recipe; by default the one for the pretraining recipe.",
)
@override_option("Change one setting of the transfer recipe; may be repeated.", of="transfer")
@click.option(
    "--cells",
    multiple=True,
    metavar="NAME",
    help="Run only these cells; the unmodified recipe and the random baseline are always included. May be "
    "repeated; --dry-run lists the names.",
)
@click.option(
    "--seeds",
    default=3,
    show_default=True,
    type=click.IntRange(1, 100),
    metavar="N",
    help="Seeds per cell, each for pretraining and transfer.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="The first seed.")
@click.option(
    "--out",
    type=PATH,
    help="Folder of all runs and of AXIS/ablation.md; runs/ablate/ARCH by default.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the grid, its status, and the smallest difference between two cells that it shows with 80 % power; "
    "write nothing.",
)
@click.option(
    "--only-table",
    is_flag=True,
    help="Run nothing; write the table and the figure of the completed steps.",
)
@click.option(
    "--cell",
    metavar="NAME",
    hidden=True,
    help="Run this cell with --seed in this process, without a table: the command of a step.",
)
@job_options
@click.option("--json", "as_json", is_flag=True, help="Print the grid or the results as JSON.")
@QUIET_OPTION
def ablate(
    cell: str | None,
    cells: tuple[str, ...],
    dry_run: bool,
    only_table: bool,
    as_json: bool,
    quiet: bool,
    job_options: JobOptions,
    **given: Any,
) -> None:
    """Repeat SimMIM's ablations on your data: every choice on an axis, starting from one recipe.

    \b
    masking        random units of five sizes, square, block, regions, multimodal, pixels
    ratio          0.1 to 0.9 hidden
    head           linear, mlp, conv, inverse_swin_t, inverse_swin_b
    resolution     of the target, from every pixel to one point per cell
    target         pixels, patch_norm, bins, clusters, tokens; and a teacher's, for a
                   recipe that has one (-o target=teacher_features -o teacher=CKPT)
    loss           l1, smooth_l1, l2
    scope          loss on masked pixels or on all pixels
    encoder-input  mask tokens, zeros, visible patches alone

    A cell is one combination of choices; several axes give all combinations. Each cell is pretrained
    and transferred with every seed, next to random weights. OUT/AXIS/ablation.md lists scores with
    their deviation over seeds and their difference to the unmodified recipe, AvgDist (SimMIM, section
    4.1: the mean distance from a hidden to a visible pixel), reconstruction metrics, and published
    scores; ablation.png is the figure. Started again, the command skips completed steps; axes share the
    cells that they have in common. --dry-run forecasts from the completed cells which difference between two
    cells the planned pretrainings and images can show.

    \b
      simmim-bench ablate masking --arch vit_pocket --data pocket/imagenet --dry-run
      simmim-bench ablate masking --arch vit_pocket --data pocket/imagenet --workers 2
      simmim-bench ablate target scope --arch vit_b --data imagenet --epochs 100 \\
          --transfer imagenet --seeds 1 --gpus-per-task 8 --slurm --slurm-partition gpu
    """
    given["overrides"], config = pop_overrides(given)
    config.check_arch(given["arch"])
    given["recipe"] = given["recipe"] or config.recipe
    study = make_study(**given)
    if cell is not None:
        _run_cell(study, cell, quiet)
        return
    steps = choose_steps(study, cells)
    obstacles = _print_plan(study, steps, dry_run=dry_run, as_json=as_json, quiet=quiet)
    if obstacles and not only_table:
        raise UsageError(
            f"{len(obstacles)} steps are blocked; nothing was started. {' '.join(obstacles)}"
        )
    if dry_run:
        return
    results = [] if only_table else _run_steps(study, steps, job_options, quiet)
    _write_results(study, only_table=only_table, as_json=as_json)
    failed = [result for result in results if result.state == "failed"]
    for result in failed:
        click.echo(f"failed  {result.step}: {result.error}\nlog     {result.step.log}", err=True)
    if failed:
        click.echo("Fix the cause and run the same command again.", err=True)
        sys.exit(failed[0].code)


def _print_plan(
    study: AblationStudy,
    steps: Sequence[AblationStep],
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> list[str]:
    """Print the grid with the status of every step, and before a run its power; return why steps are blocked."""
    statuses = [step.statuses() for step in steps]
    if dry_run or not as_json:
        plan = [step_json(step, status) for step, status in zip(steps, statuses, strict=True)]
        left_out = study.grid.left_out
        power = _forecast(study, quiet) if dry_run else None
        if as_json:
            shown = {"steps": plan, "left_out": left_out, "power": power and power.to_json()}
            click.echo(json.dumps(shown))
        else:
            click.echo(plan_text(plan, left_out))
            if power is not None:
                from simmim_bench.leaderboard.forecast import forecast_text

                lines = forecast_text([(f"{study.task} {study.metric}", power)])
                click.echo("\n" + "\n".join(lines))
    return [
        f"{step}: {why}"
        for step, status in zip(steps, statuses, strict=True)
        for _, why in status
        if why
    ]


def _forecast(study: AblationStudy, quiet: bool) -> Forecast:
    """Forecast the differences that the study can show, with a warning for every record that cannot be used."""
    from simmim_bench.cli.ablation.power import forecast_ablation

    def warn(text: str) -> None:
        if not quiet:
            click.echo(f"ablate: warning: {text}", err=True)

    return forecast_ablation(study, warn)


def _run_steps(
    study: AblationStudy, steps: Sequence[AblationStep], job_options: JobOptions, quiet: bool
) -> list[StepResult[AblationStep]]:
    """Run the steps that are left; when interrupted, write the results of the completed ones first."""
    from simmim_bench.jobs.runner import run_steps
    from simmim_bench.results.ablation_report import write_ablation

    try:
        study.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot write {study.out}: {error.strerror}; choose another --out."
        ) from error
    try:
        return run_steps(steps, job_options, study.out, open_display(quiet), what="ablate")
    except InterruptedRun:
        with suppress(BenchError):
            ablation = collect_results(study)
            if ablation.rows:
                write_ablation(ablation, study.results)
        raise


def _write_results(study: AblationStudy, *, only_table: bool, as_json: bool) -> None:
    """Write and print the table and the figure of the completed steps.

    Raises:
        UsageError: --only-table without a completed step.
    """
    from simmim_bench.results.ablation import to_json
    from simmim_bench.results.ablation_report import to_markdown, write_ablation

    ablation = collect_results(study)
    if ablation.rows:
        write_ablation(ablation, study.results)
    elif only_table:
        raise UsageError("--only-table: no cell has a score yet; run them first.")
    if as_json:
        click.echo(json.dumps(to_json(ablation)))
    elif ablation.rows:
        click.echo(f"\n{to_markdown(ablation)}\nresults  {study.results}")


def _run_cell(study: AblationStudy, name: str, quiet: bool) -> None:
    """Run one cell with the first seed, in this process."""
    from simmim_bench.distributed import init_distributed

    found = [step for step in study.steps() if step.name == name]
    if not found:
        known = dict.fromkeys(step.name for step in study.steps())
        raise UsageError(f"--cell: unknown cell '{name}'; {nearest(name, known)}")
    with init_distributed() as dist:
        found[0].run(open_display(quiet or not dist.is_main), dist)
