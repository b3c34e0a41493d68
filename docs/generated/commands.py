"""One page per command of the command line, from its own help."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import click

from generated.markdown import Page
from simmim_bench.cli.main import cli


@functools.cache
def command_pages() -> list[Page]:
    """Return a page per command; its subcommands are sections of it."""
    overview = "# Command line\n\n" + _help(cli, "simmim-bench", None)
    pages = [("Overview", "commands/index.md", overview)]
    root = click.Context(cli, info_name="simmim-bench")
    for name in sorted(cli.commands):
        parts = _sections(cli.commands[name], f"simmim-bench {name}", root, 1)
        pages.append((name, f"commands/{name}.md", "\n\n".join(parts)))
    return pages


def _sections(
    command: click.Command, name: str, parent: click.Context, level: int
) -> Iterator[str]:
    """Yield the help of a command and, below it, that of its subcommands."""
    yield f"{'#' * level} {name}\n\n{_help(command, name, parent)}"
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name.split()[-1], parent=parent)
        for one in command.list_commands(context):
            found = command.get_command(context, one)
            if found is not None and not found.hidden:
                yield from _sections(found, f"{name} {one}", context, level + 1)


def _help(command: click.Command, name: str, parent: click.Context | None) -> str:
    context = click.Context(
        command,
        info_name=name.split()[-1],
        parent=parent,
        terminal_width=100,
        max_content_width=100,
    )
    return f"```text\n{command.get_help(context)}\n```"
