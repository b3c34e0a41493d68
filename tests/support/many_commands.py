"""Run many commands one after another in one process, which starts once, and report how each one ended."""

from __future__ import annotations

import io
import json
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import NamedTuple

from support.commands import start_function

LIMIT_S = 200  # of all commands together


class Outcome(NamedTuple):
    """The exit code of a command, None where it ended in a traceback, and its output."""

    code: int | None
    stdout: str
    stderr: str


def run_all(commands: list[list[str]], out: Path) -> list[Outcome]:
    """Run commands in another process, and check that it has not died.

    Args:
        out: folder for the process's files.
    """
    out.mkdir()
    (out / "commands").write_text(json.dumps(commands))
    process = start_function(partial(_run_all, out), out, {})
    process.join(LIMIT_S)
    lines = (out / "outcomes").read_text().splitlines()
    last = commands[min(len(lines), len(commands) - 1)]
    assert process.exitcode == 0, (process.exitcode, last, (out / "stderr").read_text())
    return [Outcome(*json.loads(line)) for line in lines]


def _run_all(out: Path) -> None:
    from simmim_bench.__main__ import main

    with open(out / "outcomes", "w", encoding="utf-8", buffering=1) as file:
        for command in json.loads((out / "commands").read_text()):
            sys.argv = ["simmim-bench", *command]
            stdout, stderr = io.StringIO(), io.StringIO()
            code: object = None
            with redirect_stdout(stdout), redirect_stderr(stderr):
                try:
                    main()
                except SystemExit as end:
                    code = end.code
                except BaseException:  # a defect, which the test reports
                    traceback.print_exc()
            file.write(json.dumps([code, stdout.getvalue(), stderr.getvalue()]) + "\n")
