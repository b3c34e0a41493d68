"""The options of the commands that write a run directory: `pretrain`, `transfer` and `evaluate`.

Nothing here loads torch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

from simmim_bench.cli.options import (
    DETERMINISTIC_OPTION,
    JSON_OPTION,
    LOG_OPTION,
    PATH,
    QUIET_OPTION,
    SEED_OPTION,
    Command,
    apply_options,
    complete_among,
    override_option,
    read_data_sets,
)
from simmim_bench.cli.recipe_help import HELP_RECIPE_OPTION
from simmim_bench.cli.recipe_options import (
    CONFIG_OPTION,
    DEVICE_OPTION,
    key_options,
    pop_overrides,
)
from simmim_bench.data.named import read_title
from simmim_bench.runs.options import RunOptions

SEVERAL_DATA_HELP = "Folder of the data set, or hfds:NAME of Hugging Face; with several, NAME=DIR each, for a run each."
RECIPE_HELP = (
    "Named recipe, see `simmim-bench recipes`; by default the one for the architecture or the checkpoint's "
    "pretraining recipe."
)

DATA_TITLE_OPTION = click.option(
    "--data-name",
    "data_title",
    metavar="TEXT",
    help="What tables call the data set, such as CIFAR-10, where the name of its folder says nothing.",
)


def run_options(
    recipes: Callable[[], dict[str, Any]],
    *,
    recipe_help: str = RECIPE_HELP,
    override_example: str = "epochs=10",
    seeded: bool = True,
    several_data_sets: bool = False,
    flags: Sequence[str] | None = None,
) -> Callable[[Command], Command]:
    """Add the options that every run has, passed to the command as one `options`.

    Args:
        recipes: returns the recipes by name, for the completion of `--recipe`.
        seeded: whether the run samples anything, so that it has a --seed.
        several_data_sets: whether --data may be given several times; the command is passed all of them as
            `data_sets`, and the first one in `options`.
        flags: those of `KEY_OPTIONS` that the command has; None for all.
    """
    left_out = {"data_name"} if seeded else {"data_name", "seed"}
    left_out |= set() if several_data_sets else {"data_title"}
    names = [f.name for f in dataclasses.fields(RunOptions) if f.name not in left_out]
    data: dict[str, Any] = {"type": PATH, "help": "Folder of the data set."}
    if several_data_sets:
        data = {
            "type": click.Path(),
            "multiple": True,
            "metavar": "[NAME=]DIR",
            "callback": read_data_sets,
            "help": SEVERAL_DATA_HELP,
        }
    declared = (
        click.option("--data", required=True, **data),
        *([DATA_TITLE_OPTION] if several_data_sets else []),
        click.option(
            "--recipe",
            metavar="NAME",
            shell_complete=complete_among(recipes),
            help=recipe_help,
        ),
        click.option("--out", type=PATH, help="Run directory to write; below runs/ by default."),
        click.option("--resume", is_flag=True, help="Continue the run in --out where it stopped."),
        click.option("--overwrite", is_flag=True, help="Replace the run in --out."),
        *([SEED_OPTION] if seeded else []),
        override_option(
            f"Change one setting of the recipe, such as {override_example}; may be repeated. Kept in the record."
        ),
        *key_options(flags),
        CONFIG_OPTION,
        HELP_RECIPE_OPTION,
        DEVICE_OPTION,
        DETERMINISTIC_OPTION,
        LOG_OPTION,
        JSON_OPTION,
        QUIET_OPTION,
    )

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collect(**arguments: Any) -> None:
            arguments.pop("help_recipe")
            arguments["overrides"], config = pop_overrides(arguments)
            arguments["recipe"] = arguments["recipe"] or config.recipe
            if "arch" in arguments:
                config.check_arch(arguments["arch"])
            given = {name: arguments.pop(name) for name in names}
            if several_data_sets:
                arguments["data_sets"] = given["data"]
                first = given["data"][0]
                given["data_title"] = read_title(given["data_title"], given["data"])
                given |= {"data": first.root, "data_name": first.name}
            command(options=RunOptions(**given), **arguments)

        return apply_options(declared, collect)

    return decorate
