"""Claims about the documents: what they say of commands, options and tables is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from simmim_bench.cli.main import cli
from simmim_bench.diagnostics.frameworks import DETECTRON2_SOURCES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks() -> list[str]:
    return [line.strip() for line in README.splitlines() if line.startswith("    simmim-bench ")]


def test_every_command_is_in_the_readme() -> None:
    for name in cli.commands:
        assert f"simmim-bench {name}" in README or f"make {name}" in README, name


@pytest.mark.parametrize("line", blocks())
def test_every_command_line_in_the_readme_parses(line: str) -> None:
    words = line.split()[1:]
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words:
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_parser(context).parse_args(words)


def test_the_readme_the_makefile_and_doctor_install_the_same_detectron2() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pinned = re.search(r"DETECTRON2 \?= (\S+)", makefile)
    assert pinned is not None
    assert DETECTRON2_SOURCES in README
    assert DETECTRON2_SOURCES.endswith(pinned[1])


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_tables_in_the_documents_are_the_committed_ones() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], check=False
    )
    assert done.returncode == 0
