"""The command line, run in this process."""

from __future__ import annotations

import signal
import sys
from typing import cast

import click
from click.testing import CliRunner

from simmim_bench.cli import main as cli_module
from simmim_bench.signals import SIGNALS


def run(*arguments: object) -> tuple[int, str, str]:
    """Run the command line as a user does, in this process, and give code, stdout and stderr."""
    out, err = CliRunner(), []
    result = out.invoke(cast(click.Command, _entry), [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    err.append(result.stderr)
    return result.exit_code, result.stdout, "".join(err)


class _Entry:
    """`main`, in the shape that click's runner invokes."""

    name = "simmim-bench"

    def main(self, args: list[str], prog_name: str, **_: object) -> None:
        before, sys.argv = sys.argv, ["simmim-bench", *args]
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            cli_module.main()
        finally:
            sys.argv = before
            for number, handler in handlers.items():  # the command line leaves its own
                signal.signal(number, handler)


_entry = _Entry()


def fails(code: int, *arguments: object) -> str:
    """Run, expect an exit code, and give the one line of the error."""
    found, _, err = run(*arguments)
    assert found == code, err
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    return errors[0]
