"""Whether the running code was called as a library, in a process that belongs to the caller. Loads no torch.

The command line owns its process: it handles signals, and excludes modules from the garbage collection. A notebook or a
script that calls a function of the Python interface keeps its own signal handlers and its own garbage collection.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from simmim_bench.errors import BenchError

_CALLED = ContextVar("called_as_library", default=False)
# Options of the command line without a value, which are True in Python.
FLAGS = ("resume", "overwrite", "deterministic", "exclusive", "shard", "grad-checkpointing")
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")


@contextmanager
def as_library() -> Iterator[None]:
    """Change no setting of the process in the block, as a function of the Python interface.

    Raises:
        BenchError: as the block raises it; its message names options as Python does.
    """
    token = _CALLED.set(True)
    try:
        yield
    except BenchError as error:
        error.args = (python_words(str(error)),)
        raise
    finally:
        _CALLED.reset(token)


def is_library_call() -> bool:
    """Return whether the running code was called within `as_library`."""
    return _CALLED.get()


def python_words(message: str) -> str:
    """Replace the command line's options in a message by keyword arguments: `--img-size` by `img_size`.

    Commands in backquotes stay, and so does `-o key=value`, which is the text of an override.
    """
    parts = message.split("`")
    parts[::2] = [OPTION.sub(_keyword, part) for part in parts[::2]]
    return "`".join(parts)


def _keyword(option: re.Match[str]) -> str:
    name = option[1].replace("-", "_")
    return f"{name}=True" if option[1] in FLAGS else name
