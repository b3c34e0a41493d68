"""`simmim-bench transfer`: transfer a checkpoint to a task and record the score."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from simmim_bench.cli.arguments import check_ckpt, check_data, check_transfer
from simmim_bench.cli.options import (
    complete_ckpt,
    open_display,
    task_option,
    transfer_recipes,
)
from simmim_bench.cli.recipe_help import RecipeCommand, transfer_recipe
from simmim_bench.cli.run_options import run_options
from simmim_bench.cli.transfer_shift import (
    SHIFT_SUMMARY,
    print_shift_scores,
    refuse_options,
    shift_table,
)
from simmim_bench.cli.transfer_summary import TransferResult, summarise, summarise_data_sets
from simmim_bench.errors import BenchError, UsageError
from simmim_bench.imports import without_collection
from simmim_bench.recipe import Recipe
from simmim_bench.runs.options import RunOptions
from simmim_bench.shift_sets import SHIFT_TASK
from simmim_bench.tasks import LAYOUTS, OPTIONS, TASKS, check_options, given_options

if TYPE_CHECKING:
    from simmim_bench.data.named import DataSet
    from simmim_bench.display import Display
    from transfer.launch import TransferPlan


class TaskType(click.ParamType):  # type: ignore[type-arg]
    """The name of a task in the registry."""

    name = "task"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or fail with the names that exist."""
        if value not in _names():
            self.fail(f"{value!r} is not one of {', '.join(_names())}.", param, ctx)
        return value

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the names for the usage line."""
        return f"{{{'|'.join(_names())}}}"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete the name of a task."""
        return [CompletionItem(name) for name in _names() if name.startswith(incomplete)]


def _names() -> list[str]:
    """Return the tasks of the registry at the time of the call, and `shift`."""
    return [*TASKS, SHIFT_TASK]


class TransferCommand(RecipeCommand):
    """A command whose tasks and task options are those of the registry at the time of the call."""

    def choose_recipe(self, given: Mapping[str, Any]) -> Recipe:
        """Return the recipe that the arguments choose."""
        return transfer_recipe(given)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's parameters with an option for each task option that a task takes."""
        used = [o for name, o in OPTIONS.items() if any(name in t.options for t in TASKS.values())]
        *declared, help_option = super().get_params(ctx)
        return [*declared, *map(task_option, used), help_option]

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the docstring with the tables of tasks and of shift sets in place of their markers."""
        assert self.help is not None
        filled = inspect.cleandoc(self.help)
        for marker, table in (("SHIFT_SETS\n", shift_table()), ("TASKS\n", task_table())):
            before, after = filled.split(marker, 1)
            filled = f"{before}\b\n{table}\n{after}"
        self.help, text = filled, self.help
        try:
            super().format_help_text(ctx, formatter)
        finally:
            self.help = text


def task_table() -> str:
    """Return the tasks, what each trains and scores, and the layout of its data, as plain text."""
    width = max(map(len, TASKS)) + 2
    summary_width = max(len(line) for t in TASKS.values() for line in t.summary.splitlines()) + 2
    lines, previous = [], ""
    for task in TASKS.values():
        layout = "the same" if task.data == previous else LAYOUTS[task.data].summary
        previous = task.data
        first, *others = task.summary.splitlines()
        lines.append(f"{task.name:<{width}}{first:<{summary_width}}{layout}")
        lines += [f"{'':<{width}}{line}" for line in others]
    for number, line in enumerate(SHIFT_SUMMARY):
        lines.append(f"{'' if number else SHIFT_TASK:<{width}}{line:<{summary_width}}".rstrip())
    return "\n".join(lines)


@click.command(cls=TransferCommand)
@click.argument("task", type=TaskType())
@click.option(
    "--ckpt",
    required=True,
    metavar="CKPT",
    shell_complete=complete_ckpt,
    help="Checkpoint or run directory, a weights file (SimMIM's official ones, MAE, BEiT, timm, "
    "MMPretrain), timm:NAME, hub:ORG/NAME[@REV], py:package.module:factory, or random:ARCH for the baseline.",
)
@run_options(transfer_recipes, several_data_sets=True)
@click.option(
    "--baseline",
    metavar="CKPT",
    help="Run the same recipe from `random`, or another CKPT, and print the difference of each metric with its 95 % "
    "interval, which is about this checkpoint, not about its method.",
)
@click.option(
    "--seeds",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100),
    metavar="N",
    help="Run N seeds, starting with --seed, and print mean, standard deviation over seeds (seeds ±) and standard "
    "error from the number of images (images ±).",
)
@click.option(
    "--model",
    metavar="NAME",
    help="For shift: timm:NAME or torchvision:NAME, the model of a weights file that does not show it.",
)
def transfer(
    task: str,
    ckpt: str,
    baseline: str | None,
    seeds: int,
    model: str | None,
    options: RunOptions,
    data_sets: tuple[DataSet, ...],
    **task_options: Any,
) -> None:
    """Transfer a checkpoint to a task and record the score.

    TASKS

    The run directory holds the predictions and record.json, whose scores are computed from them. It is
    runs/CKPT/TASK/seedN by default, --out for one seed, --out/seedN for several. A data set with a name has
    runs/CKPT/TASK/NAME/seedN; each of several has --out/NAME.

    \b
      simmim-bench transfer linear --ckpt runs/pocket --data pocket/imagenet --seeds 3 --baseline random
      simmim-bench transfer knn --ckpt runs/pocket --data pets=data/pets --data flowers=data/flowers
      simmim-bench transfer coco --ckpt runs/pocket --data pocket/coco
      simmim-bench transfer coco --ckpt random:vit_pocket --data pocket/coco
      torchrun --nproc-per-node 8 -m simmim_bench transfer imagenet --ckpt runs/b --data imagenet

    All tasks also run under torchrun and srun; every image is scored once.

    shift takes a run of imagenet, linear, attentive or fewshot, or a file that `evaluate imagenet` takes, and scores
    its classifier on further validation sets without training. NAME determines the set:

    SHIFT_SETS

    \b
      simmim-bench transfer shift --ckpt runs/b/linear/seed0 --data v2=imagenetv2 --data real=imagenet
      simmim-bench transfer shift --ckpt timm:deit_small_patch16_224 --data a=imagenet-a --data r=imagenet-r
    """
    if task in TASKS:
        check_options(task, given_options(task_options))
    check_data(task, data_sets)
    if task == SHIFT_TASK:
        refuse_options(baseline=baseline, seeds=seeds, seed=options.seed, **task_options)
        print_shift_scores(ckpt, model, data_sets, options)
        return
    if model is not None:
        raise UsageError(f"--model is only for {SHIFT_TASK}, not for {task}; remove it.")
    check_transfer(task, ckpt, options.recipe, options.overrides)
    if baseline not in (None, "random"):
        check_ckpt(str(baseline))
    with without_collection():
        from simmim_bench.distributed import init_distributed
        from simmim_bench.training.determinism import deterministic_algorithms
        from transfer.launch import (
            TransferRequest,
            check_run_dirs,
            plan_baseline,
            plan_transfer,
            requests_by_data_set,
            run_plan,
        )

    general = TransferRequest(task=task, options=options, task_options=task_options)
    checkpoint, pairs = None, []
    for request in requests_by_data_set(general, data_sets):
        range_of_seeds = range(options.seed, options.seed + seeds)
        ours = plan_transfer(request, ckpt, range_of_seeds, checkpoint=checkpoint)
        checkpoint = ours.transfer.checkpoint
        other = None if baseline is None else plan_baseline(request, ours, baseline)
        pairs.append((ours, other))
    with deterministic_algorithms(options.deterministic), init_distributed() as dist:
        display = open_display(options.quiet or not dist.is_main)
        # Check the baselines' directories first, so that none can fail after hours of training.
        for plan in (plan for pair in pairs for plan in pair if plan is not None):
            if dist.is_main:
                check_run_dirs(plan)
        for ours, other in pairs:
            run_plan(ours, display=display, dist=dist)
            if other is not None:
                run_plan(other, display=display, dist=dist)
    if not dist.is_main:
        return
    results, failure = _read_results(pairs, display)
    lines, plain = summarise(results[0]) if len(results) == 1 else summarise_data_sets(results)
    click.echo(json.dumps(plain) if options.as_json else "\n".join(lines))
    if failure is not None:
        raise failure


def _read_results(
    pairs: Sequence[tuple[TransferPlan, TransferPlan | None]], display: Display
) -> tuple[list[TransferResult], BenchError | None]:
    """Read the scores of all runs, and compare each checkpoint with its baseline.

    Returns:
        The results, and the error of a comparison, to be raised after the scores are printed.
    """
    from simmim_bench.results.scored_runs import read_scored_runs
    from transfer.compare import compare_runs

    results, failure = list[TransferResult](), None
    count = sum(len(plan.run_dirs) for pair in pairs for plan in pair if plan is not None)
    # Matching the detections of COCO takes about ten seconds per run.
    with display.task("uncertainty", count) as progress:
        for ours, other in pairs:
            runs, above = read_scored_runs(ours.run_dirs, progress.advance), {}
            if other is not None:
                try:
                    above = compare_runs(runs, read_scored_runs(other.run_dirs, progress.advance))
                except BenchError as error:
                    failure = error
            name = ours.transfer.request.options.data_name
            results.append(TransferResult(name, runs, "" if other is None else other.ckpt, above))
    return results, failure
