"""The remaining time of several steps: from similar runs, from their shares in the demo, and from their progress.

Loads no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from simmim_bench.display import (
    Display,
    OverallProgress,
    TaskProgress,
    first_names,
    format_duration,
)

SHOWN_EVERY_S = 1.0  # between two updates of the display
LONG = 0.5  # ours: a task of at least this fraction of a step's expected time predicts the step's duration
OVERDUE = 0.1  # ours: a step that takes longer than expected is expected to take this fraction longer still


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The expected duration of a step before it starts.

    Attributes:
        name: the step, as the display names it; no two steps have the same.
        kind: steps of the same kind take about the same time.
        seconds: mean duration of similar runs on this device; None where there are none.
        share: duration relative to the demo's pretraining; None where it is not known.
        alone: whether no other step runs beside it.
    """

    name: str
    kind: str
    seconds: float | None = None
    share: float | None = None
    alone: bool = False


@dataclass
class _Running:
    expected: Expected
    started: float
    tasks: list[TaskProgress] = field(default_factory=list)


class Tracker:
    """The remaining time of all steps, shown as one bar.

    Args:
        clock: seconds; replaced in tests.

    Attributes:
        seats: steps that run at a time.
    """

    def __init__(
        self, overall: OverallProgress, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seats = 1
        self._overall, self._clock = overall, clock
        self._began = clock()
        self._pending: list[Expected] = []
        self._running: dict[str, _Running] = {}
        self._ended: list[tuple[Expected, float]] = []

    def expect(self, steps: Sequence[Expected]) -> None:
        """Replace the steps that have not started."""
        self._pending = list(steps)
        self.show()

    def start(self, step: Expected) -> None:
        """Begin a step."""
        self._pending = [one for one in self._pending if one.name != step.name]
        self._running[step.name] = _Running(step, self._clock())

    def follow(self, name: str, tasks: Sequence[TaskProgress]) -> None:
        """Update the progress of a running step's tasks."""
        self._running[name].tasks = list(tasks)

    def end(self, name: str, *, done: bool) -> None:
        """End a step; a completed one sets the duration of its kind, unless it was resumed."""
        one = self._running.pop(name)
        if done and not any(task.first for task in one.tasks):
            self._ended.append((one.expected, self._clock() - one.started))

    def durations(self) -> dict[str, float]:
        """Return the mean seconds of each kind of step that has been completed."""
        kinds: dict[str, list[float]] = {}
        for step, seconds in self._ended:
            kinds.setdefault(step.kind, []).append(seconds)
        return {kind: sum(found) / len(found) for kind, found in kinds.items()}

    @contextmanager
    def here(self, step: Expected, display: Display) -> Iterator[None]:
        """Count the block, which runs in this process, as a step; without any task, it was complete already."""
        last = -SHOWN_EVERY_S

        def follow(tasks: Sequence[TaskProgress]) -> None:
            nonlocal last
            self.follow(step.name, tasks)
            if self._clock() - last >= SHOWN_EVERY_S:
                last = self._clock()
                self.show()

        self.start(step)
        self.show()
        done = False
        try:
            with display.followed(follow):
                yield
            done = True
        finally:
            self.end(step.name, done=done and bool(self._running[step.name].tasks))

    def remaining_s(self) -> float | None:
        """Return the expected seconds until all steps are done; None while no duration is known.

        A step of unknown duration counts as the mean of the others.
        """
        now = [one.expected for one in self._running.values()] + self._pending
        left = [self._left(one) for one in self._running.values()]
        left += [self._expect(step) for step in self._pending]
        known = [seconds for seconds in left if seconds is not None]
        if not left:
            return 0.0
        if not known:
            return None
        mean = sum(known) / len(known)
        seconds = [mean if one is None else one for one in left]
        steps = list(zip(now, seconds, strict=True))
        alone = sum(time for step, time in steps if step.alone)
        beside = [time for step, time in steps if not step.alone]
        return alone + max(sum(beside) / self.seats, max(beside, default=0.0))

    def show(self) -> None:
        """Show the fraction of the time that has passed, the rest of it, and what runs."""
        left, passed = self.remaining_s(), self._clock() - self._began
        words, fraction = "remaining time not known yet", 0.0
        if left is not None:
            # The fraction may decrease: more is left than was expected.
            fraction = passed / (passed + left) if passed else 0.0
            words = f"{format_duration(left)} left"
        now = first_names(_in_words(one) for one in self._running.values())
        self._overall.show(fraction, words, now)

    def _left(self, one: _Running) -> float | None:
        """Return the remaining seconds of a running step."""
        elapsed = self._clock() - one.started
        expected = self._expect(one.expected, leave_out=one)
        by_rate = _rest_of_longest(one.tasks, at_least=LONG * expected if expected else 0.0)
        if by_rate is None:
            return None if expected is None else max(expected - elapsed, OVERDUE * elapsed)
        fraction, rest = by_rate
        if expected is None or elapsed >= expected:
            return rest
        # The further the task is, the more its own rate weighs.
        return (1 - fraction) * (expected - elapsed) + fraction * rest

    def _expect(self, step: Expected, leave_out: _Running | None = None) -> float | None:
        """Return the expected seconds of a whole step."""
        alike = [seconds for other, seconds in self._ended if other.kind == step.kind]
        if alike:
            return sum(alike) / len(alike)
        if step.seconds is not None:
            return step.seconds
        speed = self._seconds_per_share(leave_out)
        return None if speed is None or step.share is None else speed * step.share

    def _seconds_per_share(self, leave_out: _Running | None) -> float | None:
        """Return the seconds of a step whose share is one, from the steps that have ended, else the running ones."""
        measured = [(step.share, seconds) for step, seconds in self._ended if step.share]
        if not measured:
            for one in self._running.values():
                if one is leave_out or not one.expected.share:
                    continue
                by_rate = _rest_of_longest(one.tasks)
                if by_rate is not None and by_rate[0] > 0:
                    seconds = self._clock() - one.started + by_rate[1]
                    measured.append((one.expected.share, seconds))
        shares = sum(share for share, _ in measured)
        return sum(seconds for _, seconds in measured) / shares if shares else None


def _rest_of_longest(
    tasks: Sequence[TaskProgress], at_least: float = 0.0
) -> tuple[float, float] | None:
    """Return the completed fraction and the remaining seconds of the longest open task.

    Args:
        at_least: seconds; a shorter task does not predict the step's duration.
    """
    found: list[tuple[float, float, float]] = []
    for task in tasks:
        own = task.done - task.first
        if own > 0 and task.total > task.first:
            rest = task.elapsed_s * (task.total - task.done) / own
            found.append((task.elapsed_s + rest, task.done / task.total, rest))
    if not found or max(found)[0] < at_least:
        return None
    return max(found)[1:]


def _in_words(one: _Running) -> str:
    """Return the name of a running step and its innermost task."""
    if not one.tasks:
        return one.expected.name
    task = one.tasks[-1]
    return f"{one.expected.name} ({task.description} {task.done:,}/{task.total:,})"
