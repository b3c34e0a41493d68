"""Errors that a user can fix, each type with its exit code.

A message names what happened, the value, what is allowed, and what to do; `simmim_bench.cli.main` prints it
as one line on stderr. Any exception that is not a `BenchError` is a defect of this program and keeps its
traceback.
"""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Iterable


class BenchError(Exception):
    """Report an error that the user can fix.

    Attributes:
        printed_by_main: whether rank 0 has raised and prints the same error, for all processes of a run.
    """

    exit_code = 1
    printed_by_main = False

    def __init__(self, message: str) -> None:
        # A DataLoader re-raises a worker's error with the worker's whole traceback as its message.
        if message.startswith("Caught "):
            message = message.strip().splitlines()[-1].partition(": ")[2]
        # A library's message may hold the address of an object, which tells the user nothing.
        message = re.sub(r"<([\w.]+)[^<>]* at 0x[0-9a-fA-F]+>", r"\1", message)
        super().__init__(message)


class UsageError(BenchError):
    """Report an unknown name, an unknown override key or a value out of range."""

    exit_code = 2


class MissingFrameworkError(BenchError):
    """Report an optional library that is not installed; the message names the extra that installs it."""

    exit_code = 3


class DataError(BenchError):
    """Report a path that does not exist, or a layout or file that cannot be used."""

    exit_code = 4


class DivergedError(BenchError):
    """Report a loss or gradient that is no longer finite."""

    exit_code = 5


class DriftError(BenchError):
    """Report a recorded score that differs from the score of its stored predictions."""

    exit_code = 6


def exit_code_of(number: int) -> int:
    """Return 128 + the signal, as a shell does; SIGUSR1, a warning before a time limit, counts as SIGTERM."""
    return 128 + (signal.SIGTERM if number == signal.SIGUSR1 else number)


def exit_code_after(error: BaseException | None) -> int:
    """Return the exit code of a command that an error ends; 0 without one."""
    if isinstance(error, KeyboardInterrupt):
        return exit_code_of(signal.SIGINT)
    return 0 if error is None else getattr(error, "exit_code", 1)


class InterruptedRun(BenchError):
    """Report a run that a signal has stopped after its state was saved.

    Attributes:
        number: the signal's number.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number, self.exit_code = number, exit_code_of(number)


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Return a hint for an unknown name: the closest allowed name, or all of them when none is close."""
    names = sorted(allowed)
    close = difflib.get_close_matches(value, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}."
