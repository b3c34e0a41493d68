"""The commands and examples of a page of the documentation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from simmim_bench.cli.main import cli

_BLOCK = re.compile(
    r"(?P<why><!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>sh|python)\n(?P<text>.*?)^```",
    re.M | re.S,
)
# The small architecture that takes the place of a large one of the same family.
SMALL = {"vit_b": "vit_pocket", "swin_b": "swin_pocket"}
# Settings of a command that make it short, unless the page sets the key itself.
SHORT = {
    ("pretrain",): {"epochs": 1, "warmup_epochs": 0},
    ("transfer", "imagenet"): {"epochs": 1, "warmup_epochs": 0},
    ("transfer", "linear"): {"epochs": 1, "warmup_epochs": 0},
    ("transfer", "attentive"): {"epochs": 1, "warmup_epochs": 0},
    ("transfer", "coco"): {"max_iters": 1, "warmup_iters": 0, "batch_size": 1},
    ("transfer", "ade20k"): {"max_iters": 1, "warmup_iters": 0, "batch_size": 2},
}
FROZEN_MAPS = ("ade20k_knn", "ade20k_logistic")  # recipes of large images, without iterations


@dataclass(frozen=True)
class Example:
    """A command or a Python block of a page.

    Attributes:
        words: of a command, without `simmim-bench`; None for Python.
        text: as the page has it.
        not_run: the reason that the page states for not running it in the tests.
    """

    text: str
    words: list[str] | None
    not_run: str | None


def read_examples(page: Path) -> Iterator[Example]:
    """Yield the examples of a page in order."""
    for block in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["language"] == "python":
            yield Example(block["text"], None, block["reason"])
            continue
        for line in block["text"].replace("\\\n", " ").splitlines():
            words = shlex.split(line.partition(" > ")[0], comments=True)
            command = command_words(words)
            if command is not None:
                yield Example(line.strip(), command, block["reason"])


def command_words(words: list[str]) -> list[str] | None:
    """Return what follows `simmim-bench` in a shell line, also under torchrun or srun; None for another program."""
    if "simmim-bench" in words[:1]:
        return words[1:]
    if words[:1] in (["torchrun"], ["srun"], ["python"]) and "simmim_bench" in words:
        return words[words.index("simmim_bench") + 1 :]
    return None


def parse(words: list[str]) -> None:
    """Parse a command as the command line does.

    Raises:
        click.UsageError: it has no such command, option or argument.
    """
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words:
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_parser(context).parse_args(list(words))


def shortened(words: list[str]) -> list[str]:
    """Return a command with small architectures, small images and few steps."""
    words = [re.sub(r"(?<![\w/])(vit_b|swin_b)(?![\w/])", lambda m: SMALL[m[0]], w) for w in words]
    if words[:1] == ["pocket"]:  # the last value of an option counts
        words += ["--imagenet", "60", "30", "--coco", "2", "2", "--ade20k", "2", "2"]
    given = " ".join(words)
    for command, settings in SHORT.items():
        if tuple(words[: len(command)]) == command:
            short = {"img_size": "32,32"} if {*words} & {*FROZEN_MAPS} else settings
            for key, value in short.items():
                if not re.search(rf"\b{key}=|--{key.replace('_', '-')}\b", given):
                    words += ["-o", f"{key}={value}"]
    return words
