"""`simmim-bench suite`: run every transfer task on some checkpoints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from simmim_bench.api.suites import BOARD, plan_suite_of
from simmim_bench.cli.options import (
    DETERMINISTIC_OPTION,
    LOG_OPTION,
    PATH,
    QUIET_OPTION,
    SEED,
    complete_ckpt,
    data_set_options,
    job_options,
    join_names,
    open_display,
    pop_data_sets,
    read_data_sets,
    task_option,
    transfer_recipes,
)
from simmim_bench.cli.recipe_options import (
    CONFIG_OPTION,
    SUITE_FLAGS,
    apply_key_options,
    pop_overrides,
)
from simmim_bench.data.named import read_titles
from simmim_bench.errors import UsageError
from simmim_bench.jobs.options import JobOptions
from simmim_bench.methods import ALL_METHODS
from simmim_bench.tasks import LAYOUTS, OPTIONS, TASKS, tasks_on, variants


class SuiteCommand(click.Command):
    """A command whose data sets and task options are those of the registry at the time of the call."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's parameters with an option per data layout and per offered task option."""
        ckpt, *declared, help_option = super().get_params(ctx)
        data_sets = data_set_options(
            lambda layout: f"Data of {join_names([task.name for task in tasks_on(layout.name)])}."
        )
        offered = [task_option(option) for option in OPTIONS.values() if option.in_suite]
        return [ckpt, *data_sets, *declared, *offered, help_option]


def complete_row(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete a CKPT, or the list of all public checkpoints."""
    if incomplete and ALL_METHODS.startswith(incomplete):
        return [CompletionItem(ALL_METHODS)]
    return complete_ckpt(context, parameter, incomplete)


def complete_task(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the last name of a comma-separated list of tasks."""
    before, comma, last = incomplete.rpartition(",")
    names = (name for name in (*variants(), *TASKS) if name.startswith(last))
    return [CompletionItem(f"{before}{comma}{name}") for name in dict.fromkeys(names)]


def complete_recipe(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete TASK=NAME."""
    task, equals, _ = incomplete.partition("=")
    words: Iterable[str] = (f"{name}=" for name in dict.fromkeys((*variants(), *TASKS)))
    if equals:
        words = (f"{task}={name}" for name in transfer_recipes())
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


@click.command(cls=SuiteCommand)
@click.option(
    "--ckpt",
    "ckpts",
    required=True,
    multiple=True,
    metavar="CKPT",
    shell_complete=complete_row,
    help="Checkpoint, as for `transfer`; a list of checkpoints, FILE.txt; or list:methods. May be repeated, for a row "
    "each.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN,...",
    help="Only checkpoints whose name, method, architecture or licence matches, such as 'mae*,vit-b/16'.",
)
@click.option(
    "--data",
    "named",
    multiple=True,
    metavar="NAME=DIR",
    callback=read_data_sets,
    help=f"Named data set of {join_names([t.name for t in TASKS.values() if t.takes_several_data_sets])}, as for "
    "`transfer`. May be repeated.",
)
@click.option(
    "--data-name",
    "titles",
    multiple=True,
    metavar="LAYOUT=TEXT",
    help="What tables call a data set, such as imagenet=CIFAR-10, where the name of its folder says nothing. May be "
    "repeated.",
)
@click.option(
    "--out",
    type=PATH,
    default=Path("runs"),
    show_default=True,
    help="Folder of all runs, as of `transfer`: OUT/CKPT/TASK/seedN; and of OUT/leaderboard.",
)
@click.option(
    "--baseline",
    type=click.Choice(["random"]),
    help="Add a row of random weights for each architecture.",
)
@click.option(
    "--tasks",
    multiple=True,
    metavar="TASK,...",
    shell_complete=complete_task,
    help="Run only these tasks, such as linear,knn; fewshot means 1% and 10%. May be repeated.",
)
@click.option(
    "--seeds",
    multiple=True,
    metavar="N|TASK=N",
    help="Number of seeds of all tasks, or of one; 1 by default. May be repeated.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="The first seed.")
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    metavar="TASK=NAME",
    shell_complete=complete_recipe,
    help="Named recipe of a task; by default the one for the checkpoint. May be repeated.",
)
@click.option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="TASK.KEY=VALUE",
    help="Change one setting of a task's recipe, such as coco.max_iters=9000; may be repeated.",
)
@apply_key_options(SUITE_FLAGS, "every task that has it")
@CONFIG_OPTION
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the runs of these checkpoints, tasks and seeds, finished or not; other runs stay.",
)
@DETERMINISTIC_OPTION
@LOG_OPTION
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the plan with its cost, and the smallest difference between two rows that it shows with 80 % power; "
    "write nothing.",
)
@job_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the results as JSON.")
@QUIET_OPTION
def suite(job_options: JobOptions, dry_run: bool, as_json: bool, quiet: bool, **given: Any) -> None:
    """Run every transfer task on some checkpoints, for complete rows of the leaderboard.

    Each step is a `transfer` in a separate process. Completed steps are skipped, interrupted ones are
    resumed, and the suite continues after a failed step: the end of the output lists what failed and how
    to run it alone. Tasks without a data set are left out.

    FILE.txt has one CKPT per line, written as after --ckpt; # begins a comment. list:methods is the list of public
    checkpoints that `simmim-bench methods` shows. --dry-run downloads nothing. A checkpoint of a list that
    cannot be read blocks its row alone, and the exit code is that of its error.

    Before its cost is spent, --dry-run forecasts for every column which difference between two rows the planned
    seeds and images can show, from how the scores of the records below --out vary with seeds and images.

    \b
      simmim-bench suite --ckpt runs/vit_b --imagenet imagenet --coco coco --ade20k ade20k --dry-run
      simmim-bench suite --ckpt runs/vit_b --imagenet imagenet --coco coco --ade20k ade20k
      simmim-bench suite --ckpt runs/a --ckpt runs/b --baseline random --imagenet pocket/imagenet \\
          --tasks linear,knn --seeds 3 --seeds knn=1 -o linear.epochs=30
      simmim-bench suite --ckpt runs/vit_b --imagenet imagenet --coco coco --gpus-per-task 8 \\
          --slurm --slurm-partition gpu --slurm-time 12:00:00 --slurm-set cpus_per_task=64
      simmim-bench suite --ckpt list:methods --only 'dino*,mae*' --imagenet imagenet --tasks linear,knn

    SIGINT and SIGTERM are passed to the running steps, which save and stop; the same command continues, without
    --overwrite.
    SLURM jobs outlive the suite; started again, it finds them. Exit code: 0 when all steps are done, else
    that of the first failed step or blocked row.
    """
    data_sets = pop_data_sets(given)
    given["data_titles"] = read_titles(given.pop("titles"), [*LAYOUTS])
    given["overrides"], config = pop_overrides(given)
    if config.recipe is not None:
        raise UsageError(
            f"--config {config.path} is of one run; a suite takes TASK: {{KEY: VALUE}} settings."
        )
    offered = {name: given.pop(name) for name, option in OPTIONS.items() if option.in_suite}
    options, plan = plan_suite_of(
        job_options,
        data_sets=data_sets,
        task_options=offered,
        log=(lambda message: None) if quiet else (lambda message: click.echo(message, err=True)),
        dry_run=dry_run,
        **given,
    )
    from transfer.suite.plan import check_obstacles
    from transfer.suite.report import plan_text, print_result
    from transfer.suite.run import result_json, run_suite

    if not as_json:
        click.echo(plan_text(plan) + "\n")
    elif dry_run:
        click.echo(json.dumps(plan.to_json()))
    check_obstacles(plan)
    if dry_run:
        sys.exit(plan.exit_code)
    board = options.out / BOARD
    result = run_suite(plan, job_options, options.out, board, open_display(quiet))
    if as_json:
        steps = [result_json(one) for one in result.results]
        blocked = [row.to_json() for row in result.blocked]
        click.echo(
            json.dumps({"steps": steps, "blocked": blocked, "leaderboard": str(result.leaderboard)})
        )
    else:
        print_result(result)
    sys.exit(result.exit_code)
