"""A suite carried out: its steps as `workers.py` does them, and the leaderboard of their records.

In: the plan, and how many steps at once, on which devices, or through SLURM. Out: runs with their records,
what became of every step, and the leaderboard of all records below the suite's folder. Started again, a
suite goes on: what is done is left alone, what was interrupted is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from simmim_bench.display import Display
from simmim_bench.jobs.options import JobOptions
from simmim_bench.jobs.runner import StepResult, run_steps
from simmim_bench.leaderboard.board import Board
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.write import write_leaderboard
from transfer.suite.options import SuiteOptions
from transfer.suite.plan import Planned, SuiteStep, check_obstacles, list_steps, look_over


def outcome_json(result: StepResult[SuiteStep]) -> dict[str, Any]:
    """Give the plain form of what became of a step."""
    step = result.step
    return {
        "ckpt": step.ckpt,
        "task": step.name,
        "state": result.state,
        "exit_code": result.code,
        "error": result.error or None,
        "seconds": round(result.seconds, 1),
        "log": str(step.log),
        "command": step.command(),
    }


@dataclass(frozen=True)
class SuiteResult:
    """What a suite came to."""

    results: tuple[StepResult[SuiteStep], ...]
    board: Board | None
    leaderboard: Path

    @property
    def failed(self) -> list[StepResult[SuiteStep]]:
        """The steps that failed, in the plan's order."""
        return [result for result in self.results if result.state == "failed"]

    @property
    def exit_code(self) -> int:
        """The first failed step's; 0 where all is done."""
        return next((result.code for result in self.failed), 0)


def plan_suite(options: SuiteOptions, job_options: JobOptions) -> list[Planned]:
    """List the steps of a suite with their states and costs; writes nothing.

    Raises:
        UsageError: see `list_steps`.
        DataError: see `list_steps`.
    """
    device: str | None = None
    if job_options.slurm is None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return look_over(list_steps(options), options.out, device)


def run_suite(
    planned: Sequence[Planned],
    job_options: JobOptions,
    out: Path,
    leaderboard: Path,
    display: Display,
) -> SuiteResult:
    """Do what is left of a plan, and derive the leaderboard of all records below its folder.

    Raises:
        UsageError: a run that was started differently is in the way, or devices that there are not.
        MissingEngineError: submitit is not installed.
        InterruptedRun: a signal came; the steps that ran were asked to save.
    """
    check_obstacles(planned)
    results = tuple(
        run_steps([one.step for one in planned], job_options, out, display, what="suite")
    )
    board = None
    if any(result.state == "done" for result in results):
        board = find_records([out]).board()
        write_leaderboard(board, leaderboard)
    return SuiteResult(results, board, leaderboard)
