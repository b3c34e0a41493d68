"""Do a piece of work in a process of its own, as often as it is asked for.

In: a function that builds the work, and what it takes. Out: a callable that has it done there and waits.
What belongs to a process is then the alternative's own: how memory is given back, threads, a library's state.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any


class Apart:
    """Work in a process of its own, which ends with this one."""

    def __init__(
        self, build: Callable[..., Callable[[], object]], *taken: Any, **named: Any
    ) -> None:
        """Start the process, build the work there, and wait until that is done.

        Args:
            build: of a module's top level; gives the work. It and what it takes are pickled.

        Raises:
            RuntimeError: building failed; its traceback is the message.
        """
        context = get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, build, taken, named), daemon=True
        )
        self._process.start()
        theirs.close()
        self._answer()

    def __call__(self) -> Any:
        """Have the work done once, and give what it gives.

        Raises:
            RuntimeError: it failed; its traceback is the message.
        """
        self._line.send(None)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._line.close()
        self._process.join()

    def _answer(self) -> Any:
        try:
            failed, value = self._line.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"its process ended with {self._process.exitcode}") from None
        if failed:
            raise RuntimeError(value)
        return value


def _serve(
    line: Connection,
    build: Callable[..., Callable[[], object]],
    taken: tuple[Any, ...],
    named: dict[str, Any],
) -> None:
    try:
        work = build(*taken, **named)
        line.send((False, None))
        while True:
            line.recv()
            line.send((False, work()))
    except EOFError:
        return
    except Exception:
        line.send((True, traceback.format_exc()))
