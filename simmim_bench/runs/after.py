"""What is written beside a run's record: figures, whose failure is a warning.

The record decides the exit code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def warn_only(log: Callable[[str], object], what: str) -> Iterator[None]:
    """Log an error of the block as one line of warning and continue after it.

    Args:
        log: of the run, or of the display.
        what: what the block writes.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        log(f"warning: {what} was not written: {type(error).__name__}: {reason}")
