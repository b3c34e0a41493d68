"""Options that commands share, their completion, and the texts that they read.

In: click's parameters. Out: one `RunOptions` a run. Nothing here loads torch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from simmim_bench.errors import UsageError
from simmim_bench.runs.options import RunOptions

if TYPE_CHECKING:
    from simmim_bench.display import Display

Command = Callable[..., None]
Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
SEED = click.IntRange(0, 2**32 - 1)


def complete_arch(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of an architecture."""
    from simmim_bench.models.archs import ARCHS

    return [CompletionItem(name) for name in ARCHS if name.startswith(incomplete)]


def complete_among(names: Callable[[], Iterable[str]]) -> Completion:
    """Give a completion by names that are asked for when it is needed."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in names() if name.startswith(incomplete)]

    return complete


def complete_ckpt(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete a CKPT: a path, `random:ARCH` or `timm:NAME`."""
    if incomplete.startswith("random:"):
        from simmim_bench.models.archs import ARCHS

        return [CompletionItem(n) for a in ARCHS if (n := f"random:{a}").startswith(incomplete)]
    if incomplete.startswith("timm:"):
        import timm

        names = timm.list_models(f"{incomplete.removeprefix('timm:')}*", pretrained=True)
        return [CompletionItem(f"timm:{name}") for name in names]
    return [CompletionItem(incomplete, type="file")]


def override_option(says: str, *, of: str = "") -> Callable[[Any], Any]:
    """Give the option that changes a recipe: -o, --override; or that of another recipe beside it.

    Args:
        of: whose recipe, such as "transfer": -t, --transfer-override.
    """
    short, name = (f"-{of[0]}", f"{of}-override") if of else ("-o", "override")
    to = f"{name.replace('-', '_')}s"
    return click.option(short, f"--{name}", to, multiple=True, metavar="KEY=VALUE", help=says)


_DATA = click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Folder of the data set."
)
_RUN_OPTIONS = (
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="Run directory to write; below runs/ by default.",
    ),
    click.option("--resume", is_flag=True, help="Go on where the run in --out stopped."),
    click.option("--overwrite", is_flag=True, help="Replace the run in --out."),
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=SEED,
        help="Seed of all that is drawn.",
    ),
    override_option(
        "Change one number of the recipe, such as epochs=10; may be repeated. Kept in the record."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result on stdout as JSON."),
    click.option("--quiet", is_flag=True, help="No log and no progress on stderr."),
)


def run_options(recipes: Callable[[], dict[str, Any]]) -> Callable[[Command], Command]:
    """Add the options that every run has, handed to the command as one `options`.

    Args:
        recipes: gives the recipes by name that `--recipe` completes.
    """
    names = [f.name for f in dataclasses.fields(RunOptions)]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collect(**arguments: Any) -> None:
            options = RunOptions(**{name: arguments.pop(name) for name in names})
            command(options=options, **arguments)

        named = click.option(
            "--recipe",
            metavar="NAME",
            shell_complete=complete_among(recipes),
            help="Named recipe; see `simmim-bench recipes`. The arch's own by default.",
        )
        for option in reversed((_DATA, named, *_RUN_OPTIONS)):
            collect = option(collect)
        return collect

    return decorate


def read_size(text: str) -> tuple[int, int]:
    """Read H or H,W in pixels."""
    sizes = text.replace("x", ",").split(",")
    if len(sizes) not in (1, 2) or not all(size.strip().isdecimal() for size in sizes):
        raise UsageError(f"--img-size {text} is not H or H,W in pixels, such as 64 or 96,128.")
    return int(sizes[0]), int(sizes[-1])


def open_display(quiet: bool) -> Display:
    """Give the log and progress of a command, or none."""
    from simmim_bench.display import Display

    return Display(quiet=quiet)
