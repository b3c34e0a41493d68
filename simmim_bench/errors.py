"""What can go wrong for a user, each kind with its exit code.

In: a message that says what was wrong, the value, what is allowed or nearest, and what to do.
Out: one line on stderr and the exit code; `cli.main` is the only place that turns one into the other.
Anything that is not a `BenchError` is a defect of this program and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Report something that the user can mend."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's error anew, with the worker's whole traceback as its text.
        if message.startswith("Caught "):
            message = message.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(message)


class UsageError(BenchError):
    """Report an unknown name, an unknown override key or a value out of its range."""

    exit_code = 2


class MissingFrameworkError(BenchError):
    """Report an optional library that is not installed; the message names the extra."""

    exit_code = 3


class DataError(BenchError):
    """Report a path that is not there, or a layout or file that cannot be used."""

    exit_code = 4


class DivergedError(BenchError):
    """Report a loss or gradient that is no longer finite."""

    exit_code = 5


class DriftError(BenchError):
    """Report a recorded score that its predictions do not give."""

    exit_code = 6


class InterruptedRun(BenchError):
    """Report a run that was asked to stop, after its state was saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Say which allowed name is meant, or list them all when none is near."""
    names = sorted(allowed)
    close = difflib.get_close_matches(value, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}."
