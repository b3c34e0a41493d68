"""Run a function repeatedly in a separate process.

Alternatives that are timed in separate processes do not share the state of a process: its allocator, its threads and
the state of its libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

_function: Callable[[], Any]  # set in the separate process only


class SeparateProcess:
    """A callable that runs in a separate process.

    An error there is raised here, with its traceback as the cause.
    """

    def __init__(self, build: Callable[..., Callable[[], Any]], *args: Any, **kwargs: Any) -> None:
        """Start the process, build the function there, and wait until it is built.

        Args:
            build: returns the function to run; defined at the top level of a module. It is pickled, and so are
                its arguments `args` and `kwargs`.

        Raises:
            BrokenProcessPool: the process died, here or in a call.
        """
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        self._process.submit(_build, build, args, kwargs).result()

    def __call__(self) -> Any:
        """Run the function once and return its result."""
        return self._process.submit(_call).result()

    def close(self) -> None:
        """Stop the process."""
        self._process.shutdown()


def _build(
    build: Callable[..., Callable[[], Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    global _function
    _function = build(*args, **kwargs)


def _call() -> Any:
    return _function()
