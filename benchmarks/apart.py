"""Do a piece of work in a process of its own, as often as it is asked for.

In: a function that builds the work, and what it takes. Out: a callable that has it done there and waits.
What belongs to a process is then the alternative's own: how memory is given back, threads, a library's state.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

_built: Callable[[], Any]  # in the process that does the work


class Apart:
    """Work in a process of its own. What it raises is raised here, with its traceback there as the cause."""

    def __init__(self, build: Callable[..., Callable[[], Any]], *taken: Any, **named: Any) -> None:
        """Start the process, build the work there, and wait until that is done.

        Args:
            build: of a module's top level; gives the work. It and what it takes are pickled.

        Raises:
            BrokenProcessPool: the process ended, here or in a call.
        """
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        self._process.submit(_build, build, taken, named).result()

    def __call__(self) -> Any:
        """Have the work done once, and give what it gives."""
        return self._process.submit(_do).result()

    def close(self) -> None:
        """End the process."""
        self._process.shutdown()


def _build(
    build: Callable[..., Callable[[], Any]], taken: tuple[Any, ...], named: dict[str, Any]
) -> None:
    global _built
    _built = build(*taken, **named)


def _do() -> Any:
    return _built()
