"""A display that interrupts the run it belongs to."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from simmim_bench.display import Display, ProgressTask


class InterruptingDisplay(Display):
    """A quiet display that raises a signal, SIGTERM by default, once a task has made a number of steps."""

    def __init__(self, description: str, steps: int, number: int = signal.SIGTERM) -> None:
        super().__init__(quiet=True)
        self._signal = number
        self._description, self._left = description, steps

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[ProgressTask]:
        with super().task(description, total) as task:
            if description == self._description:
                advance = task.advance

                def count(steps: int = 1, **figures: float | str) -> None:
                    advance(steps, **figures)
                    self._left -= steps
                    if steps and self._left == 0:
                        signal.raise_signal(self._signal)

                task.advance = count  # type: ignore[method-assign]
            yield task
