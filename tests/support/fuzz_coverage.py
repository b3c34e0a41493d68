"""Record which lines of the modules under test a fuzzing target reaches.

Python's trace function is enough for that, and its records guide the choice of inputs while a target runs. Lines
outside functions, which run on import, are not counted.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, cast

Covered = object  # a module or a function; mypy joins their types so
# Code of a function, not of a module or class.
BY_FUNCTION = inspect.CO_OPTIMIZED | inspect.CO_NEWLOCALS


@dataclass
class Lines:
    """Lines by file.

    Attributes:
        all: lines of the functions under test.
        reached: those that were executed.
    """

    all: dict[str, set[int]] = field(default_factory=dict)
    reached: dict[str, set[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, covers: Sequence[Covered]) -> Lines:
        """Return the lines of modules and functions."""
        lines = cls()
        for item in covers:
            if isinstance(item, ModuleType):
                file = str(item.__file__)
                code = compile(Path(file).read_bytes(), file, "exec")
            else:
                code = inspect.unwrap(cast(FunctionType, item)).__code__
            found = lines.all.setdefault(code.co_filename, set())
            found |= set(_lines(code))
            lines.reached.setdefault(code.co_filename, set())
        return lines

    def count(self) -> int:
        """Return the number of lines that were executed, within the files under test."""
        return sum(map(len, self.reached.values()))

    @contextmanager
    def traced(self) -> Iterator[None]:
        """Record the lines that the block executes."""
        tracers = {file: _tracer(lines) for file, lines in self.reached.items()}
        previous = sys.gettrace()
        sys.settrace(lambda frame, event, arg: tracers.get(frame.f_code.co_filename))
        try:
            yield
        finally:
            sys.settrace(previous)

    def missed(self) -> list[str]:
        """Return one line for each file: its lines that were not executed, and their numbers."""
        found = []
        for file, lines in self.all.items():
            missed = sorted(lines - self.reached[file])
            shown = f": not {_ranges(missed)}" if missed else ""
            name = "/".join(Path(file).parts[-2:])
            found.append(f"{name} {len(lines) - len(missed)} of {len(lines)}{shown}")
        return found

    def __str__(self) -> str:
        total = sum(map(len, self.all.values()))
        reached = sum(len(lines & self.reached[file]) for file, lines in self.all.items())
        return f"{reached} of {total} lines reached"


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers, such as "3, 7-9"."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(f"{g[0]}-{g[-1]}" if len(g) > 1 else str(g[0]) for g in groups)


def _tracer(lines: set[int]) -> Callable[[FrameType, str, Any], Any]:
    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            lines.add(frame.f_lineno)
        return trace

    return trace


def _lines(code: CodeType) -> Iterator[int]:
    """Yield the lines of a function's code and of the functions in it."""
    # Comprehensions, generators and lambdas stand on lines of a function, or of a module.
    if code.co_flags & BY_FUNCTION == BY_FUNCTION and not code.co_name.startswith("<"):
        # The first line is that of `def`.
        yield from (line for _, _, line in code.co_lines() if line and line != code.co_firstlineno)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _lines(constant)
