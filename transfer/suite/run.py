"""Run the steps of a suite, and build the leaderboard of all records in its folder.

Completed steps are skipped and interrupted ones are resumed, so that the same command finishes a suite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from simmim_bench.display import Display
from simmim_bench.errors import BenchError
from simmim_bench.html import html_table
from simmim_bench.jobs.forecast import Forecast
from simmim_bench.jobs.options import JobOptions
from simmim_bench.jobs.runner import run_steps
from simmim_bench.jobs.running import StepResult
from simmim_bench.jobs.workers import Machine
from simmim_bench.leaderboard.board import Board
from simmim_bench.leaderboard.build import Leaderboard
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.reported import read_reported
from simmim_bench.leaderboard.write import write_leaderboard
from simmim_bench.library import python_words
from simmim_bench.results.record import Record, read_record
from transfer.suite.listing import list_steps
from transfer.suite.memory import measured_need
from transfer.suite.options import SuiteOptions
from transfer.suite.plan import SuitePlan, check_obstacles, plan_steps
from transfer.suite.rows import UnreadRow
from transfer.suite.step import SuiteStep


def result_json(result: StepResult[SuiteStep]) -> dict[str, Any]:
    """Return the plain form of a step's result."""
    step = result.step
    return {
        "ckpt": step.ckpt,
        "task": step.name,
        "data_name": step.transfer.request.options.data_name,
        "state": result.state,
        "exit_code": result.code,
        "error": result.error or None,
        "seconds": round(result.seconds, 1),
        "log": str(step.log),
        "command": step.command(),
    }


@dataclass(frozen=True)
class SuiteResult:
    """The results of a suite's steps, and its leaderboard; None where no step is done.

    Attributes:
        blocked: the rows whose checkpoints cannot be used.
    """

    results: tuple[StepResult[SuiteStep], ...]
    board: Board | None
    leaderboard: Path
    blocked: tuple[UnreadRow, ...] = ()
    blocked_code: int = 0

    @property
    def failed(self) -> list[StepResult[SuiteStep]]:
        """The failed steps, in the plan's order."""
        return [result for result in self.results if result.state == "failed"]

    @property
    def records(self) -> dict[Path, Record]:
        """The records below the suite's folder by the path of their file, earlier ones included."""
        return {} if self.board is None else dict(self.board.records)

    def check(self) -> None:
        """Raise an error if a step has failed, or a checkpoint cannot be used.

        Raises:
            BenchError: with the exit code and the message of the first; all are in `failed` and `blocked`.
        """
        found = [f"{one.step}: {one.error} (log: {one.step.log})" for one in self.failed]
        found += [f"{row.ckpt}: {row.obstacle}" for row in self.blocked]
        if found:
            first = python_words(found[0])
            error = BenchError(f"{len(found)} steps or rows of the suite failed. First: {first}")
            error.exit_code = self.exit_code
            raise error

    def _repr_html_(self) -> str:
        """Return the leaderboard and the failed steps as HTML, for a notebook."""
        rows = [(str(one.step), f"{one.error} (log: {one.step.log})") for one in self.failed]
        rows += [(row.ckpt, row.obstacle) for row in self.blocked]
        table = "" if self.board is None else Leaderboard(self.board)._repr_html_()
        return table + (html_table([("failed", ""), *rows]) if rows else "")

    @property
    def exit_code(self) -> int:
        """The exit code of the first failed step, else of the first blocked row; 0 where all steps are done."""
        return next((result.code for result in self.failed), self.blocked_code)


def plan_suite(
    options: SuiteOptions,
    job_options: JobOptions,
    *,
    download: bool = True,
    power: bool = False,
    log: Callable[[str], None] = lambda message: None,
) -> SuitePlan:
    """List the steps of a suite with their status and expected cost; write nothing but downloaded weights.

    Args:
        download: whether to download missing weights; without, the plan has rows without steps for them.
        power: whether to forecast the differences that the plan can show, from the records in its folder.

    Raises:
        UsageError: see `list_steps`.
        DataError: see `list_steps`.
    """
    device: str | None = None
    if job_options.slurm is None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    steps, unread = list_steps(options, download=download, log=log)
    side_by_side = not (job_options.workers or job_options.exclusive or job_options.slurm)
    planned = plan_steps(
        steps,
        options.out,
        device,
        power=power,
        log=log,
        processes=job_options.gpus_per_task,
        estimate_memory=side_by_side and device not in (None, "cpu"),
        overwrite=options.overwrite,
    )
    places = "" if job_options.slurm else Machine(job_options).describe()
    return SuitePlan(tuple(planned), tuple(unread), places, device, options.overwrite)


def run_suite(
    plan: SuitePlan, job_options: JobOptions, out: Path, leaderboard: Path, display: Display
) -> SuiteResult:
    """Run the steps that are left, and build the leaderboard of all records below `out`.

    Runs that are replaced are removed before the first step, all or none, so that an interrupted suite continues
    without --overwrite.

    Raises:
        UsageError: a blocked step, more devices than the machine has, or a run to replace that is in use.
        MissingFrameworkError: submitit is not installed.
        DataError: the leaderboard cannot be written; the records are.
        InterruptedRun: a signal came; the running steps were asked to save.
    """
    check_obstacles(plan)
    results = run_steps(
        [one.step for one in plan.steps],
        job_options,
        out,
        display,
        what="suite",
        forecast=forecaster(plan, job_options),
        replaced=plan.run_dirs if plan.overwrite else (),
    )
    return build_result(plan, results, out, leaderboard)


def build_result(
    plan: SuitePlan, results: Sequence[StepResult[SuiteStep]], out: Path, leaderboard: Path
) -> SuiteResult:
    """Build the leaderboard of all records below `out`, and return it with the results of a suite's steps.

    Raises:
        DataError: the leaderboard cannot be written; the records are.
    """
    board = None
    if any(result.state == "done" for result in results):
        board = find_records([out]).board()
        # With the published rows, as `leaderboard build` and `check` have them by default.
        write_leaderboard(board, leaderboard, reported=read_reported())
    blocked = tuple(row for row in plan.unread if row.error is not None)
    return SuiteResult(tuple(results), board, leaderboard, blocked, plan.exit_code)


def forecaster(plan: SuitePlan, job_options: JobOptions) -> Callable[[SuiteStep], Forecast]:
    """Return what is expected of a step: as planned, but the memory that its kind has reached in this suite."""
    planned = {id(one.step): one.forecast for one in plan.steps}
    folders: dict[str, list[Path]] = {}
    for one in plan.steps:
        folders.setdefault(one.forecast.kind, []).extend(one.step.run_dirs)
    records: dict[Path, Record] = {}

    def forecast(step: SuiteStep) -> Forecast:
        known = planned[id(step)]
        paths = [folder / "record.json" for folder in folders[known.kind]]
        for path in paths:
            if path not in records and path.is_file():
                with suppress(BenchError):  # the leaderboard reports it
                    records[path] = read_record(path)
        alike = [records[path] for path in paths if path in records]
        need = measured_need(step, alike, plan.device, job_options.gpus_per_task)
        return known if need.peak is None else replace(known, need=need)

    return forecast
