"""Options that several commands share, their tab completion, and the parsing of their values.

Nothing here loads torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from simmim_bench.api.display import open_display as open_display
from simmim_bench.api.recipes import all_recipes as all_recipes
from simmim_bench.api.recipes import pretrain_recipes as pretrain_recipes
from simmim_bench.api.recipes import scoring_recipes as scoring_recipes
from simmim_bench.api.recipes import transfer_recipes as transfer_recipes
from simmim_bench.data.named import DataSet, read_data_set
from simmim_bench.errors import UsageError
from simmim_bench.jobs.options import JobOptions, SlurmOptions
from simmim_bench.runs.loggers import LOGGERS, check_loggers
from simmim_bench.tasks import LAYOUTS, SWITCH, DataLayout, TaskOption, tasks_with

Command = Callable[..., None]
Decorator = Callable[[Command], Command]
Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
SEED = click.IntRange(0, 2**32 - 1)
PATH = click.Path(path_type=Path)


def read_data_sets(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[DataSet, ...]:
    """Parse `DIR` or `NAME=DIR` texts."""
    return tuple(map(read_data_set, texts))


def complete_arch(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of an architecture."""
    from simmim_bench.models.archs import ARCHS

    return [CompletionItem(name) for name in ARCHS if name.startswith(incomplete)]


def complete_among(names: Callable[[], Iterable[str]]) -> Completion:
    """Return a completion by names that are computed when they are needed."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in names() if name.startswith(incomplete)]

    return complete


def complete_ckpt(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete a CKPT: a path, `random:ARCH` or `timm:NAME`, or the start of `hub:` and `py:`."""
    if incomplete.startswith("random:"):
        from simmim_bench.models.archs import ARCHS

        return [CompletionItem(n) for a in ARCHS if (n := f"random:{a}").startswith(incomplete)]
    if incomplete.startswith("timm:"):
        import timm

        names = timm.list_models(f"{incomplete.removeprefix('timm:')}*", pretrained=True)
        return [CompletionItem(f"timm:{name}") for name in names]
    forms = [
        f for f in ("random:", "timm:", "hub:", "py:") if incomplete and f.startswith(incomplete)
    ]
    return [CompletionItem(incomplete, type="file"), *map(CompletionItem, forms)]


def read_numbers(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[float, ...] | None:
    """Parse numbers that are separated by commas."""
    if text is None:
        return None
    if not are_numbers(text):
        raise UsageError(
            f"{parameter.opts[0]} {text} is not a list of numbers; use one per channel, such as 0.5,0.5,0.5."
        )
    return tuple(map(float, text.split(",")))


def are_numbers(text: str) -> bool:
    """Return whether a text consists of numbers, separated by commas."""
    try:
        return bool([float(part) for part in text.split(",")])
    except ValueError:
        return False


class NumbersCommand(click.Command):
    """A command whose options of `read_numbers` take numbers with commas or spaces: `--mean 0.5 0.5 0.5`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the numbers after such an option, then parse the arguments."""
        options = [option for option in self.params if option.callback is read_numbers]
        flags = {flag for option in options for flag in option.opts}
        joined: list[str] = []
        for arg in args:
            if joined[-2:-1] and joined[-2] in flags and are_numbers(f"{joined[-1]},{arg}"):
                joined[-1] += f",{arg}"
            else:
                joined.append(arg)
        return super().parse_args(ctx, joined)


def override_option(help_text: str, *, of: str = "") -> Callable[[Any], Any]:
    """Return the option that changes a recipe: -o, --override, or that of a second recipe.

    Args:
        of: the second recipe, such as "transfer" for -t, --transfer-override.
    """
    short, name = (f"-{of[0]}", f"{of}-override") if of else ("-o", "override")
    to = f"{name.replace('-', '_')}s"
    return click.option(short, f"--{name}", to, multiple=True, metavar="KEY=VALUE", help=help_text)


JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="Print the result on stdout as JSON."
)
DETERMINISTIC_OPTION = click.option(
    "--deterministic",
    is_flag=True,
    help="Use deterministic kernels alone, which are slower: on one machine two runs are then equal.",
)
LOG_OPTION = click.option(
    "--log",
    "loggers",
    multiple=True,
    type=click.Choice(LOGGERS),
    callback=lambda _context, _option, names: check_loggers(names),
    help="Also send figures and scores to this experiment tracker; may be repeated. tensorboard/ is always written.",
)
QUIET_OPTION = click.option("--quiet", is_flag=True, help="No log and no progress on stderr.")
SEED_OPTION = click.option(
    "--seed", default=0, show_default=True, type=SEED, help="Seed of everything that is sampled."
)


def data_set_options(help_of: Callable[[DataLayout], str]) -> list[click.Parameter]:
    """Build an option per data layout, such as --imagenet DIR."""
    return [
        click.Option([f"--{layout.name}"], type=PATH, help=help_of(layout))
        for layout in LAYOUTS.values()
    ]


def pop_data_sets(arguments: dict[str, Any]) -> dict[str, Path]:
    """Take the values of `data_set_options` out of a command's arguments: given folders by layout."""
    folders = {name: arguments.pop(name) for name in LAYOUTS}
    return {name: folder for name, folder in folders.items() if folder is not None}


def task_option(option: TaskOption) -> click.Option:
    """Build the command-line option of a task option; its help names the tasks that take it."""
    help_text = (
        f"For {join_names(tasks_with(option.name))}: {option.help[0].lower()}{option.help[1:]}"
    )
    if option.kind == "flag":
        return click.Option([option.flag], is_flag=True, help=help_text)
    if option.kind == "switch":
        return click.Option(
            [f"{option.flag}/--no-{option.flag[2:]}"],
            default=None,
            callback=lambda _context, _option, value: SWITCH[value],
            help=help_text,
        )
    if option.kind == "count":
        return click.Option([option.flag], type=click.IntRange(1), metavar="N", help=help_text)
    if option.kind == "path":
        return click.Option([option.flag], type=PATH, help=help_text)
    return click.Option(
        [option.flag],
        type=click.Choice(option.kind),
        show_default=option.default or False,
        help=help_text,
    )


_JOB_OPTIONS = (
    click.option(
        "--workers",
        type=click.IntRange(1),
        metavar="N",
        help="Steps at a time, one per --gpus-per-task GPUs; by default as many as fit in the measured memory of each "
        "GPU, or in that of the machine with one processor each; all with --slurm.",
    ),
    click.option(
        "--exclusive",
        is_flag=True,
        help="Give every step its GPUs to itself; without a GPU, run one step at a time.",
    ),
    click.option(
        "--gpus-per-task",
        default=1,
        show_default=True,
        type=click.IntRange(1),
        metavar="K",
        help="GPUs per step, one process each; on a CPU, processes per step.",
    ),
    click.option("--slurm", is_flag=True, help="Run each step as a SLURM job, through submitit."),
    click.option("--slurm-partition", metavar="NAME", help="Partition of the jobs."),
    click.option("--slurm-account", metavar="NAME", help="Account of the jobs."),
    click.option(
        "--slurm-time",
        default="24:00:00",
        show_default=True,
        metavar="TIME",
        help="Time limit of a job, in sbatch's format; a job that needs longer saves and is requeued.",
    ),
    click.option(
        "--slurm-set",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other option of sbatch, such as qos=high or cpus_per_task=12 (default: 10 per GPU); may be repeated.",
    ),
    click.option(
        "--cluster",
        type=click.Choice(["slurm", "local"]),
        default="slurm",
        show_default=True,
        help="With --slurm: local runs the same jobs on this machine, to try them out.",
    ),
)


def job_options(command: Command) -> Command:
    """Add the options of commands that run several steps, passed to the command as one `job_options`."""

    @functools.wraps(command)
    def collect(**arguments: Any) -> None:
        slurm = SlurmOptions(
            partition=arguments.pop("slurm_partition"),
            account=arguments.pop("slurm_account"),
            time=arguments.pop("slurm_time"),
            more=arguments.pop("slurm_set"),
            cluster=arguments.pop("cluster"),
        )
        chosen = JobOptions(
            workers=arguments.pop("workers"),
            gpus_per_task=arguments.pop("gpus_per_task"),
            exclusive=arguments.pop("exclusive"),
            slurm=slurm if arguments.pop("slurm") else None,
        )
        command(job_options=chosen, **arguments)

    return apply_options(_JOB_OPTIONS, collect)


def read_size(text: str, option: str = "--img-size") -> tuple[int, int]:
    """Parse H or H,W in pixels.

    Raises:
        UsageError: the text is neither.
    """
    sizes = text.replace("x", ",").split(",")
    if len(sizes) not in (1, 2) or not all(size.strip().isdecimal() for size in sizes):
        raise UsageError(f"{option} {text} is not H or H,W in pixels, such as 64 or 96,128.")
    return int(sizes[0]), int(sizes[-1])


def join_names(names: list[str]) -> str:
    """Join names as in a sentence: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def apply_options(options: Iterable[Callable[[Command], Command]], command: Command) -> Command:
    """Add options to a command, in their order."""
    for option in reversed(tuple(options)):
        command = option(command)
    return command
