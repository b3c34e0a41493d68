"""Options that change a recipe: --epochs, --lr and others, each the short form of a key of -o, and --config FILE.

Nothing here loads torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from simmim_bench.api.keys import SHORT_KEYS, add_override
from simmim_bench.cli.config_file import Config, read_config
from simmim_bench.errors import UsageError
from simmim_bench.launcher import is_one_of_several
from simmim_bench.recipe import Precision

PRECISIONS: tuple[Precision, ...] = ("auto", "bf16", "fp16", "fp32")


@dataclass(frozen=True)
class KeyOption:
    """An option that is the short form of `-o KEY=VALUE`.

    Attributes:
        flag: as it is typed.
        kind: type of its value.
        metavar: how its value is named in the help.
        help: what it changes.
    """

    flag: str
    kind: click.ParamType[Any]
    metavar: str
    help: str

    @property
    def key(self) -> str:
        """The key of the recipe."""
        return SHORT_KEYS[self.flag[2:].replace("-", "_")]

    @property
    def parameter(self) -> str:
        """The name of the click parameter."""
        return f"key_{self.key}"

    def declare(self, of: str = "") -> Any:
        """Return the click option.

        Args:
            of: what has the key, in a command with several recipes.
        """
        of = f" of {of}" if of else ""
        return click.option(
            self.flag,
            self.parameter,
            type=self.kind,
            metavar=self.metavar,
            help=f"{self.help} (-o {self.key}{of}).",
        )


KEY_OPTIONS: dict[str, KeyOption] = {
    option.flag: option
    for option in (
        KeyOption("--epochs", click.IntRange(1), "N", "Passes over the training images"),
        KeyOption(
            "--batch-size",
            click.IntRange(1),
            "N",
            "Images per step, of all processes",
        ),
        KeyOption("--lr", click.STRING, "RATE", "Learning rate, which the recipe may scale"),
        KeyOption("--img-size", click.STRING, "H[,W]", "Height and width of images"),
        KeyOption("--workers", click.IntRange(0), "N", "Processes per GPU that load images"),
        KeyOption(
            "--precision",
            click.Choice(PRECISIONS),
            f"[{'|'.join(PRECISIONS)}]",
            "Precision of the computation",
        ),
        KeyOption(
            "--limit",
            click.IntRange(1),
            "N",
            "Use N training and N validation images, to try things out",
        ),
        KeyOption(
            "--val-fraction",
            click.FloatRange(1e-4, 0.5),
            "F",
            "Hold out a fraction of the training images, for data without validation images",
        ),
    )
}
SCORING_FLAGS = ("--img-size", "--workers", "--precision", "--limit")
SUITE_FLAGS = ("--precision", "--limit", "--val-fraction")
# --workers of a suite and an ablation are steps at a time.
ABLATE_FLAGS = tuple(flag for flag in KEY_OPTIONS if flag != "--workers")
DEVICE = "--device"

CONFIG_OPTION = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE.yaml",
    help="Settings of the recipe as `key: value` lines, as -o takes them, or the recipe.json of a run; options on the "
    "command line win.",
)
DEVICE_OPTION = click.option(
    DEVICE,
    metavar="cpu|cuda|cuda:N",
    callback=lambda context, _, text: None if context.resilient_parsing else choose_device(text),
    expose_value=False,
    help="Device to run on; by default the GPUs, or the CPU where there is none.",
)


def choose_device(text: str | None) -> None:
    """Hide the GPUs that a command is not to use, before torch looks for them.

    Raises:
        UsageError: the text names no device, or one that does not exist.
    """
    if text is None:
        return
    kind, colon, number = text.partition(":")
    if (kind, colon) == ("cpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise UsageError(f"{DEVICE} {text} is not a device; use cpu, cuda or cuda:N.")
    if number:
        if is_one_of_several():
            raise UsageError(
                f"{DEVICE} {text} is one GPU, but torchrun and srun give each process its own; remove it."
            )
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        known = None if visible is None else visible.split(",")
        if known is not None and int(number) >= len(known):
            raise UsageError(
                f"{DEVICE} {text} does not exist: CUDA_VISIBLE_DEVICES is {visible!r}."
            )
        os.environ["CUDA_VISIBLE_DEVICES"] = number if known is None else known[int(number)]
    import torch

    if not torch.cuda.is_available():
        raise UsageError(f"{DEVICE} {text}: torch finds no such GPU; use {DEVICE} cpu.")


def describe_instead(error: click.ClickException) -> str:
    """Return what to use instead of an option that the command does not have, where it is one of `KEY_OPTIONS`."""
    if (
        not isinstance(error, click.NoSuchOption)
        or error.option_name not in KEY_OPTIONS
        or not error.ctx
    ):
        return ""
    key, command = KEY_OPTIONS[error.option_name].key, error.ctx.command
    overrides = next((p for p in command.params if p.name == "overrides"), None)
    if overrides is None:
        return f" It is an option of pretrain and transfer, the short form of -o {key}=VALUE."
    if command.name == "evaluate":
        return " evaluate does not train, and has no such setting."
    what = str(overrides.metavar).replace("KEY", key)
    return f" Use -o {what}."


def key_options(flags: Sequence[str] | None = None, of: str = "") -> list[Any]:
    """Return the click options of some flags, or of all; see `KeyOption.declare`."""
    return [KEY_OPTIONS[flag].declare(of) for flag in flags or KEY_OPTIONS]


def apply_key_options(flags: Sequence[str], of: str) -> Callable[[Any], Any]:
    """Return a decorator that adds the options of some flags; see `key_options`."""

    def decorate(command: Any) -> Any:
        for option in reversed(key_options(flags, of)):
            command = option(command)
        return command

    return decorate


def pop_overrides(arguments: dict[str, Any]) -> tuple[tuple[str, ...], Config]:
    """Take --config, -o and the short options out of a command's arguments, and return them as `key=value` texts.

    Raises:
        UsageError: an option and -o set a key to different values.
        DataError: the file cannot be read.
    """
    path = arguments.pop("config", None)
    config = Config() if path is None else read_config(path)
    given = tuple(arguments.pop("overrides"))
    for option in KEY_OPTIONS.values():
        value = arguments.pop(option.parameter, None)
        if value is not None:
            given = add_override(given, option.key, str(value), f"{option.flag} {value}")
    keys = {text.partition("=")[0] for text in given}
    kept = (text for text in config.overrides if text.partition("=")[0] not in keys)
    return (*kept, *given), config
