"""Import large packages without Python's garbage collector. Loads no torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from simmim_bench.library import is_library_call


@contextmanager
def without_collection() -> Iterator[None]:
    """Stop the garbage collector during imports, which create many objects and free few.

    On the command line, the objects that exist at the end are not collected later: modules stay, and their memory
    remains shared with the processes that a data loader forks. A caller's objects, in a library call, are left alone.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not is_library_call():
                gc.freeze()
            gc.enable()
