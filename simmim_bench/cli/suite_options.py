"""The options of `simmim-bench suite`, and the texts that they read.

In: click's parameters. Out: what a suite is to do, and how. Nothing here loads torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from simmim_bench.cli.job_options import JOB_OPTIONS, read_job_options
from simmim_bench.cli.options import SEED, Command, complete_ckpt
from simmim_bench.tasks import DATA_SETS, GROUPS, KINDS
from transfer.suite.options import SuiteOptions


def _complete_recipe(recipes: Callable[[], dict[str, Any]]) -> Callable[..., list[CompletionItem]]:
    """Complete TASK=NAME."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        task, equals, _ = incomplete.partition("=")
        words: Iterable[str] = (f"{name}=" for name in (*KINDS, *GROUPS))
        if equals:
            words = (f"{task}={name}" for name in recipes())
        return [CompletionItem(word) for word in words if word.startswith(incomplete)]

    return complete


def suite_options(recipes: Callable[[], dict[str, Any]]) -> Callable[[Command], Command]:
    """Add the options of a suite, handed to the command as `options` and `execution`.

    Args:
        recipes: gives the recipes by name that `--recipe` completes.
    """
    folder = click.Path(path_type=Path)
    declared = (
        click.option(
            "--ckpt",
            "ckpts",
            required=True,
            multiple=True,
            metavar="CKPT",
            shell_complete=complete_ckpt,
            help="As for `transfer`; may be repeated, for a row each.",
        ),
        click.option("--imagenet", type=folder, help="Data of linear, knn, fewshot and imagenet."),
        click.option("--coco", type=folder, help="Data of coco."),
        click.option("--ade20k", type=folder, help="Data of ade20k."),
        click.option(
            "--out",
            type=folder,
            default=Path("runs"),
            show_default=True,
            help="Folder of all runs, OUT/CKPT/TASK/seedN, and of OUT/leaderboard.",
        ),
        click.option(
            "--baseline",
            type=click.Choice(["random"]),
            help="A row of random weights of each arch as well.",
        ),
        click.option(
            "--tasks",
            multiple=True,
            metavar="TASK,...",
            help=f"Only these of {', '.join(KINDS)}; fewshot means both.",
        ),
        click.option(
            "--seeds",
            multiple=True,
            metavar="N|TASK=N",
            help="Seeds of all tasks, or of one; 1 by default. May be repeated.",
        ),
        click.option("--seed", default=0, show_default=True, type=SEED, help="The first seed."),
        click.option(
            "--recipe",
            "recipes",
            multiple=True,
            metavar="TASK=NAME",
            shell_complete=_complete_recipe(recipes),
            help="Named recipe of a task; the arch's own by default. May be repeated.",
        ),
        click.option(
            "-o",
            "--override",
            "overrides",
            multiple=True,
            metavar="TASK.KEY=VALUE",
            help="Change one number of a task's recipe, such as coco.max_iters=9000; may be repeated.",
        ),
        click.option(
            "--accumulate",
            type=click.IntRange(1),
            metavar="N",
            help="For coco: cut each process's share of a batch into N parts; as few as fit by default.",
        ),
        click.option("--grad-checkpointing", is_flag=True, help="Less memory for coco."),
        click.option(
            "--label-maps", is_flag=True, help="Keep the label maps that ade20k predicts."
        ),
        click.option(
            "--dry-run", is_flag=True, help="Print the plan with its cost, and write nothing."
        ),
    )
    printed = (
        click.option("--json", "as_json", is_flag=True, help="Print plan or results as JSON."),
        click.option("--quiet", is_flag=True, help="No log and no progress on stderr."),
    )
    names = [f.name for f in fields(SuiteOptions) if f.name != "data_sets"]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collect(**given: Any) -> None:
            folders = {name: given.pop(name) for name in DATA_SETS}
            options = SuiteOptions(
                data_sets={name: path for name, path in folders.items() if path is not None},
                **{name: given.pop(name) for name in names},
            )
            execution = read_job_options(given)
            command(options=options, execution=execution, **given)

        for option in reversed((*declared, *JOB_OPTIONS, *printed)):
            collect = option(collect)
        return collect

    return decorate
