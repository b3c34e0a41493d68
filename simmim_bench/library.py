"""Whether the running code was called as a library, in a process that belongs to the caller. Loads no torch.

The command line owns its process: it handles signals, and excludes modules from the garbage collection. A notebook or a
script that calls a function of the Python interface keeps its own signal handlers and its own garbage collection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_CALLED = ContextVar("called_as_library", default=False)


@contextmanager
def as_library() -> Iterator[None]:
    """Change no setting of the process in the block, as a function of the Python interface."""
    token = _CALLED.set(True)
    try:
        yield
    finally:
        _CALLED.reset(token)


def is_library_call() -> bool:
    """Return whether the running code was called within `as_library`."""
    return _CALLED.get()
