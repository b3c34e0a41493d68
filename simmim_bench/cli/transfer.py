"""`simmim-bench transfer`: transfer a checkpoint to a task and record the score."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from simmim_bench.api.score_context import describe_files
from simmim_bench.api.transfer_result import summarise, summarise_data_sets
from simmim_bench.api.transfer_runs import run_transfers
from simmim_bench.cli.options import (
    complete_ckpt,
    task_option,
    transfer_recipes,
)
from simmim_bench.cli.recipe_help import RecipeCommand, transfer_recipe
from simmim_bench.cli.run_options import run_options
from simmim_bench.cli.transfer_shift import SHIFT_SUMMARY, shift_table, summarise_shift
from simmim_bench.recipe import Recipe
from simmim_bench.runs.options import RunOptions
from simmim_bench.shift_sets import SHIFT_TASK
from simmim_bench.tasks import LAYOUTS, OPTIONS, TASKS

if TYPE_CHECKING:
    from simmim_bench.data.named import DataSet


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
    runs/CKPT/TASK/NAME/seedN; each of several has --out/NAME. Where runs/CKPT/TASK holds runs on another data
    set, the name of the data's folder follows TASK.

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
    found = run_transfers(
        task,
        ckpt,
        data_sets,
        options,
        seeds=seeds,
        baseline=baseline,
        model=model,
        task_options=task_options,
    )
    if not found.is_main:
        return
    if task == SHIFT_TASK:
        lines, plain = summarise_shift(found.results)
    elif len(found.results) == 1:
        lines, plain = summarise(found.results[0])
    else:
        lines, plain = summarise_data_sets(found.results)
    lines += describe_files([result.runs for result in found.results])
    click.echo(json.dumps(plain) if options.as_json else "\n".join(lines))
    if found.failure is not None:
        raise found.failure
