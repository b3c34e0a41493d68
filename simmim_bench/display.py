"""Progress on stderr: bars on a terminal and in a notebook, plain lines elsewhere; stdout is kept for results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

PLAIN_EVERY_S = 15.0  # seconds between plain lines of a task
AT_ONCE_S = (
    0.005  # ours: steps that a task counts within this time of its start were complete before
)
OVERALL_EVERY_S = 30.0  # seconds between plain lines of several steps' progress
NAMED = 3  # names of a list that a message shows


@dataclass(frozen=True)
class TaskProgress:
    """The progress of a task: completed and all steps, and the seconds since its start.

    Attributes:
        first: the steps that were complete when it started, such as those of an earlier process.
    """

    description: str
    done: int
    total: int
    elapsed_s: float
    first: int = 0


# Receives the open tasks from the outermost to the innermost.
Follower = Callable[[Sequence[TaskProgress]], None]


class ElapsedColumn(ProgressColumn):
    """The time since a task's start, named as such."""

    def render(self, task: Task) -> Text:
        """Return the text of the column."""
        return Text(f"{format_duration(task.elapsed or 0.0)} elapsed", style="progress.elapsed")


class RemainingColumn(ProgressColumn):
    """The remaining time of a task, named as such; empty as long as it is not known."""

    max_refresh = 0.5  # seconds

    def render(self, task: Task) -> Text:
        """Return the text of the column."""
        left = task.time_remaining
        words = "" if left is None else f"{format_duration(left)} left"
        return Text(words, style="progress.remaining")


class ProgressTask:
    """One task with a known number of steps."""

    def __init__(self, display: Display, description: str, total: int) -> None:
        self._display = display
        self._description = description
        self._total = total
        self._done = 0
        self._first: int | None = None
        self._figures = ""
        self._started = self._last_line = time.monotonic()
        self._bar: TaskID | None = None
        if display.progress is not None:
            self._bar = display.progress.add_task(description, total=total, figures="")

    def advance(self, steps: int = 1, **figures: float | str) -> None:
        """Count completed steps and show figures, such as epoch and loss, next to the count."""
        if self._first is None:
            # A resumed task counts at once what was complete; a single step may be as fast.
            at_once = time.monotonic() - self._started < AT_ONCE_S
            self._first = steps if at_once and steps > 1 else 0
        self._done += steps
        if figures:
            self._figures = " ".join(
                f"{name}={value if isinstance(value, str) else f'{value:.4g}'}"
                for name, value in figures.items()
            )
        if self._display.notify_follower():
            return
        progress = self._display.progress
        if progress is not None and self._bar is not None:
            progress.update(self._bar, completed=self._done, figures=self._figures)
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_EVERY_S:
            self._last_line = now
            rate = (self._done - self._first) / (now - self._started)
            left = (self._total - self._done) / rate if rate else 0.0
            shown = f" {self._figures}" if self._figures else ""
            self._display.log(
                f"{self._description}: {self._done:,}/{self._total:,}{shown}, {format_duration(left)} left"
            )

    def progress(self) -> TaskProgress:
        """Return the task's progress."""
        elapsed = time.monotonic() - self._started
        return TaskProgress(self._description, self._done, self._total, elapsed, self._first or 0)

    def finish(self) -> None:
        """Remove the bar."""
        progress = self._display.progress
        if progress is not None and self._bar is not None:
            progress.remove_task(self._bar)


class OverallProgress:
    """The progress of several steps as one bar, or as a plain line every half a minute.

    Args:
        progress: rich's bars; None for plain lines.
    """

    def __init__(self, display: Display, title: str, progress: Progress | None) -> None:
        self._display, self._title, self._progress = display, title, progress
        self._bar = None
        if progress is not None:
            self._bar = progress.add_task(title, total=1.0, left="", figures="")
        self._last_line = time.monotonic()

    def show(self, fraction: float, left: str, now: str) -> None:
        """Show the completed fraction, the remaining time in words, and what runs now."""
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, completed=fraction, left=left, figures=now)
        elif time.monotonic() - self._last_line >= OVERALL_EVERY_S:
            self._last_line = time.monotonic()
            shown = f"; {now}" if now else ""
            self._display.log(f"{self._title}: {fraction:.0%}, {left}{shown}")


class Display:
    """The one progress display of a command; nested tasks share it.

    Args:
        follower: receives the open tasks whenever one advances, instead of their being shown.
    """

    def __init__(self, *, quiet: bool = False, follower: Follower | None = None) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._tasks: list[ProgressTask] = []
        self._overall: OverallProgress | None = None
        self._follower = follower
        self.progress: Progress | None = None

    def log(self, text: str) -> None:
        """Print a line, above the bars where there are any."""
        self._console.print(text, markup=False, soft_wrap=True)

    def notify_follower(self) -> bool:
        """Send the progress of the open tasks to the follower; return whether there is one."""
        if self._follower is None:
            return False
        self._follower([task.progress() for task in self._tasks])
        return True

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[ProgressTask]:
        """Show a task for the duration of the block."""
        if not self._tasks and self._follower is None and self._shows_bars:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                ElapsedColumn(),
                RemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
                transient=True,
            )
            self.progress.start()
        task = ProgressTask(self, description, total)
        self._tasks.append(task)
        try:
            yield task
        finally:
            task.finish()
            self._tasks.remove(task)
            if not self._tasks and self.progress is not None:
                self.progress.stop()
                self.progress = None

    @contextmanager
    def overall(self, title: str) -> Iterator[OverallProgress]:
        """Show several steps as one for the duration of the block; a block inside another shares its bar."""
        if self._overall is not None:
            yield self._overall
            return
        progress = None
        if self._shows_bars:
            progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                TextColumn("{task.percentage:>3.0f}%"),
                ElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
                transient=True,
            )
            progress.start()
        self._overall = OverallProgress(self, title, progress)
        try:
            yield self._overall
        finally:
            self._overall = None
            if progress is not None:
                progress.stop()

    @contextmanager
    def followed(self, follower: Follower) -> Iterator[None]:
        """Call a follower with the open tasks of the block whenever they change."""
        before, self._follower = self._follower, follower
        try:
            yield
        finally:
            self._follower = before

    @property
    def _shows_bars(self) -> bool:
        if self._console.quiet:
            return False
        # rich shows bars in a notebook through ipywidgets; without, it has plain lines as a file has.
        in_notebook = self._console.is_jupyter and find_spec("ipywidgets") is not None
        return self._console.is_terminal or in_notebook


def plural(count: int, one: str, several: str | None = None) -> str:
    """Format a number of things: `1 epoch`, `1,200 steps`.

    Args:
        several: the words for several things; by default those for one with an s.
    """
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def first_names(names: Iterable[str | Path]) -> str:
    """Format the first three of several names; of a path, the last part."""
    found = [os.fsencode(n.name if isinstance(n, Path) else n) for n in names]
    shown = [name.decode("utf-8", "backslashreplace") for name in found[:NAMED]]
    return ", ".join([*shown, *(["…"] if len(found) > NAMED else [])])


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines of text, with columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def format_duration(seconds: float) -> str:
    """Format a duration in seconds: `3.4 s`, `42 s`, `5 min 07 s`, `1 h 02 min` or `3 d 04 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"
