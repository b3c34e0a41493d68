"""Import large packages without Python's garbage collector. Loads no torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Stop the garbage collector during imports, which create many objects and free few.

    The objects that exist at the end are not collected later: modules stay, and their memory remains shared with
    the processes that a data loader forks.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()
            gc.enable()
