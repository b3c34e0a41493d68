"""Run the steps of a suite or an ablation, each in its own process, so that a failed step ends no other.

Completed steps are skipped and interrupted ones resumed when the same command is given again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic

from simmim_bench.display import Display, first_names, format_duration, plural
from simmim_bench.errors import InterruptedRun
from simmim_bench.files import remove
from simmim_bench.jobs.capacity import Need, Place
from simmim_bench.jobs.forecast import Forecast
from simmim_bench.jobs.options import JobOptions
from simmim_bench.jobs.progress import read_progress
from simmim_bench.jobs.remaining import SHOWN_EVERY_S, Expected, Tracker
from simmim_bench.jobs.running import AnyStep, RunningStep, StepResult
from simmim_bench.jobs.step import is_done, progress_file, runs_elsewhere
from simmim_bench.jobs.workers import Machine, Queue
from simmim_bench.runs.removal import remove_runs
from simmim_bench.training.stopping import StopRequest, stop_on_signals

POLL_S = 0.2


def run_steps(
    steps: Sequence[AnyStep],
    job_options: JobOptions,
    out: Path,
    display: Display,
    *,
    what: str,
    forecast: Callable[[AnyStep], Forecast] = lambda step: Forecast(kind="step"),
    tracker: Tracker | None = None,
    waits_for: Callable[[AnyStep], Sequence[AnyStep]] = lambda step: (),
    replaced: Sequence[Path] = (),
) -> list[StepResult[AnyStep]]:
    """Run the steps that are not done, side by side where they fit.

    Args:
        waits_for: the steps, among `steps` and before it there, that have to be done before a step starts. If one of
            them fails, the step is not run.
        forecast: what is expected of a step; asked again when a step has ended.
        tracker: of a command that shows more than these steps as one; None for a new one.
        out: the folder whose `slurm/` receives submitit's files.
        what: "suite" or "ablate", as messages name the whole.
        replaced: run directories whose runs are removed once nothing else can refuse the steps.

    Returns:
        The result of every step, in their order.

    Raises:
        UsageError: more GPUs are requested than are visible, or a run to replace is in use; nothing is removed.
        MissingFrameworkError: submitit is not installed.
        DataError: a run cannot be removed.
        InterruptedRun: a signal came; the running steps were asked to save.
    """
    backend: Machine | Queue
    if job_options.slurm is not None:
        backend = Queue(job_options, out / "slurm", len(steps))
    else:
        backend = Machine(job_options)
    remove_runs(replaced)
    results = {id(step): StepResult(step, "done") for step in steps if is_done(step)}
    pending = [step for step in steps if id(step) not in results]
    if results:
        display.log(f"{what}: skipped completed_steps={len(results)} of {len(steps)}")
    with stop_on_signals() as stop, display.overall(what) as overall:
        followed = tracker or Tracker(overall)
        scheduler = _Scheduler(pending, backend, stop, display, forecast, followed, waits_for)
        for result in scheduler.run():
            results[id(result.step)] = result
        in_order = [results[id(step)] for step in steps]
        left = [str(result.step) for result in in_order if result.state == "left"]
        if left and stop.number is not None:
            jobs = " their SLURM jobs continue;" if backend.outlives_parent else ""
            raise InterruptedRun(
                f"{what}: stopped by {signal.Signals(stop.number).name}; "
                f"{plural(len(left), 'step is', 'steps are')} left ({first_names(left)});{jobs} "
                "run the same command to continue.",
                stop.number,
            )
    return in_order


class _Scheduler(Generic[AnyStep]):
    """Start pending steps as slots become free, and follow the running ones.

    Args:
        stop: the signal that asks to stop, once it has come.
        forecast: what is expected of a step.
        tracker: shows the remaining time.
        waits_for: the steps that have to be done before a step.
    """

    def __init__(
        self,
        pending: Sequence[AnyStep],
        backend: Machine | Queue,
        stop: StopRequest,
        display: Display,
        forecast: Callable[[AnyStep], Forecast],
        tracker: Tracker,
        waits_for: Callable[[AnyStep], Sequence[AnyStep]],
    ) -> None:
        self.pending = list(pending)
        self.running: list[RunningStep[AnyStep]] = []
        self.backend, self.stop, self.display = backend, stop, display
        self._stopping = False
        self._reported: set[int] = set()  # steps whose wait for another process has been logged
        self._alone: set[int] = set()  # steps that have run out of memory beside others
        self._forecast, self._tracker = forecast, tracker
        self._needed = {id(step): {id(other) for other in waits_for(step)} for step in pending}
        self._forecasts: dict[int, Forecast] = {}
        self._shown = 0.0
        tracker.seats = min(backend.slots, max(1, len(self.pending)))
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Forecast the pending steps; where several run at a time and all are known, the longest start first.

        A step counts with the longest chain of steps that wait for it.
        """
        self._forecasts |= {id(step): self._forecast(step) for step in self.pending}
        pending = [self._forecasts[id(step)] for step in self.pending]
        for key in ("seconds", "share"):
            if self.backend.slots > 1 and all(getattr(one, key) is not None for one in pending):
                chains = {id(step): self._chain(step, key) for step in self.pending}
                self.pending.sort(key=lambda step: -chains[id(step)])
                break
        self._tracker.expect([self._expected(step) for step in self.pending])

    def _chain(self, step: AnyStep, key: str) -> float:
        """Return the duration of a pending step and of the longest chain of steps that wait for it."""
        own: float = getattr(self._forecasts[id(step)], key)
        return own + max((self._chain(other, key) for other in self._waiting(step)), default=0.0)

    def _all_waiting(self, step: AnyStep) -> set[int]:
        """Return the identities of the pending steps that wait for a step, or for one that waits for it."""
        found = {id(other) for other in self._waiting(step)}
        return found.union(*(self._all_waiting(other) for other in self._waiting(step)))

    def _waiting(self, step: AnyStep) -> list[AnyStep]:
        """Return the pending steps that wait for a step."""
        return [other for other in self.pending if id(step) in self._needed[id(other)]]

    def _expected(self, step: AnyStep) -> Expected:
        known = self._forecasts[id(step)]
        return Expected(name=str(step), kind=known.kind, seconds=known.seconds, share=known.share)

    def _need(self, step: AnyStep) -> Need:
        """Return a step's memory; unknown, so that it has its devices to itself, where it did not fit before."""
        return Need() if id(step) in self._alone else self._forecasts[id(step)].need

    def run(self) -> list[StepResult[AnyStep]]:
        """Return the result of every step once all are done or have failed, or a signal has come."""
        results: list[StepResult[AnyStep]] = []
        try:
            while self.pending or self.running:
                if self.stop.number is not None and not self._stopping:
                    results += self._stop_all()
                results += [*self._start_ready(), *self._collect_ended()]
                self._show()
                time.sleep(POLL_S)
        finally:
            for one in self.running:
                one.worker.kill()
        return results

    def _stop_all(self) -> list[StepResult[AnyStep]]:
        """Ask the running steps to save and stop, and give up the pending ones."""
        self._stopping = True
        # torchrun handles SIGTERM alone. A step that requeued the SLURM job, in which all steps run, would end them.
        for one in self.running:
            one.worker.stop(signal.SIGTERM)
        left = list(self.pending)
        self.pending.clear()
        if self.backend.outlives_parent:
            left += [one.step for one in self.running]
            self.running.clear()
        return [StepResult(step, "left") for step in left]

    def _start_ready(self) -> Iterator[StepResult[AnyStep]]:
        """Start steps while slots are free; yield those that another process has completed meanwhile."""
        while len(self.running) < self.backend.slots and (found := self._next_step()):
            step, place = found
            self.pending.remove(step)
            if is_done(step):
                yield StepResult(step, "done")
                continue
            size = step.log.stat().st_size if step.log.is_file() else 0
            self.display.log(f"{step}: started log={step.log}")
            need = self._need(step)
            others = [(one.step, one.need) for one in self.running]
            after = self._all_waiting(step)
            others += [(o, self._need(o)) for o in self.pending if id(o) not in after]
            remove(progress_file(step))  # of a process that was killed
            worker = self.backend.start(step, place, need, others)
            started = RunningStep(step, worker, time.monotonic(), size, size, need)
            for one in self.running:
                if worker.place is not None and one.worker.place is worker.place:
                    one.side_by_side = started.side_by_side = True
            self.running.append(started)
            self._tracker.start(self._expected(step))

    def _next_step(self) -> tuple[AnyStep, Place] | None:
        """Return the first pending step that fits, and where; a step that another process works on has to wait."""
        running = [one.step for one in self.running]
        unfinished = {id(step) for step in (*running, *self.pending)}
        for step in self.pending:
            if self._needed[id(step)] & unfinished:
                continue
            place = self.backend.find_place(step, running, self._need(step))
            if place is None:
                continue
            if not runs_elsewhere(step):
                return step, place
            if id(step) not in self._reported:
                self._reported.add(id(step))
                self.display.log(f"{step}: waiting for another process that works on it")
        return None

    def _collect_ended(self) -> Iterator[StepResult[AnyStep]]:
        """Copy new log lines to the display, and yield the results of steps that have ended."""
        for one in list(self.running):
            self._show_log(one)
            ended = one.worker.poll()
            if ended is None:
                continue
            self.running.remove(one)
            result = one.result(*ended, stopped=self._stopping)
            self._show_log(one)
            self._tracker.end(str(one.step), done=result.state == "done")
            remove(progress_file(one.step))
            self._look_ahead()
            reason = f": {result.error}" if result.error else ""
            duration = format_duration(result.seconds)
            self.display.log(f"{one.step}: {result.state} in {duration}{reason}")
            failed = result.state == "failed" and id(one.step) not in self._alone
            if failed and one.side_by_side and one.lacked_memory(result.code):
                self._alone.add(id(one.step))
                self.pending.insert(0, one.step)
                self._look_ahead()
                self.display.log(
                    f"{one.step}: ran out of memory beside other steps; it runs again, alone"
                )
                continue
            yield result
            if result.state == "failed":
                yield from self._drop_waiting(result.step)

    def _drop_waiting(self, failed: AnyStep) -> Iterator[StepResult[AnyStep]]:
        """Drop the steps that wait for a failed one, and yield their results."""
        for step in self._waiting(failed):
            # One that waits for two failed steps has been given up once.
            if step in self.pending:
                self.pending.remove(step)
                self.display.log(f"{step}: not run, since {failed} failed")
                yield StepResult(step, "not run", error=f"{failed} failed")
                yield from self._drop_waiting(step)

    def _show(self) -> None:
        """Show the remaining time, once a second."""
        now = time.monotonic()
        if now - self._shown < SHOWN_EVERY_S:
            return
        self._shown = now
        for one in self.running:
            self._tracker.follow(str(one.step), read_progress(progress_file(one.step)))
        self._tracker.show()

    def _show_log(self, one: RunningStep[AnyStep]) -> None:
        for line in one.new_lines():
            self.display.log(f"{one.step}: {line}")
