"""The plan of a suite: the status of each step, the expected cost of the rest, and power. Planning writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simmim_bench.errors import UsageError
from simmim_bench.jobs.forecast import Forecast as StepForecast
from simmim_bench.jobs.forecast import demo_share
from simmim_bench.leaderboard.at_hand import read_at_hand
from simmim_bench.leaderboard.forecast import Forecast
from simmim_bench.runs.status import RunStatus
from transfer.suite.cost import Estimate, estimate_cost
from transfer.suite.memory import needs_of
from transfer.suite.power import forecast_steps, protocol_of
from transfer.suite.rows import UnreadRow
from transfer.suite.step import SuiteStep


@dataclass(frozen=True)
class PlannedStep:
    """A step with its status and expected cost.

    Attributes:
        forecast: expected duration and memory, by which the step is scheduled.
        power: for each column of its task, the difference that the plan can show; empty where it is not asked for.
    """

    step: SuiteStep
    seeds: tuple[RunStatus, ...]
    obstacle: str
    estimate: Estimate
    forecast: StepForecast
    power: tuple[Forecast, ...] = ()

    @property
    def state(self) -> str:
        """The status of the whole step, in words."""
        for state in ("blocked", "running elsewhere"):
            if state in self.seeds:
                return state
        done = self.seeds.count("done")
        if done == len(self.seeds):
            return "done"
        if done:
            return f"{done} of {len(self.seeds)} seeds done"
        return "resumable" if "resumable" in self.seeds else "to do"

    def to_json(self) -> dict[str, Any]:
        """Return the plain form."""
        step = self.step
        return {
            "ckpt": step.ckpt,
            "task": step.name,
            "data_name": step.transfer.request.options.data_name,
            "recipe": step.transfer.recipe.name,
            "deviates": step.transfer.deviates,
            "seeds": {str(seed): state for seed, state in zip(step.seeds, self.seeds, strict=True)},
            "runs": [str(run_dir) for run_dir in step.run_dirs],
            "state": self.state,
            "obstacle": self.obstacle or None,
            "estimate": asdict(self.estimate),
            "memory": asdict(self.forecast.need),
            "power": [forecast.to_json() for forecast in self.power],
            "command": step.command(),
        }


@dataclass(frozen=True)
class SuitePlan:
    """The steps of a suite, and the rows that have none because their checkpoints are not read.

    Attributes:
        places: how many steps run at a time, in words; "" for one, or under SLURM.
        device: name of the device that the steps use; None where it is not known.
        overwrite: whether the runs in the steps' run directories are removed before the first step starts.
    """

    steps: tuple[PlannedStep, ...]
    unread: tuple[UnreadRow, ...]
    places: str = ""
    device: str | None = None
    overwrite: bool = False

    @property
    def run_dirs(self) -> list[Path]:
        """The run directories of all steps."""
        return [run_dir for one in self.steps for run_dir in one.step.run_dirs]

    @property
    def exit_code(self) -> int:
        """The exit code for the first row that is blocked; 0 where none is."""
        return next((row.error.exit_code for row in self.unread if row.error is not None), 0)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the plain form: the steps, then the rows without."""
        return [one.to_json() for one in self.steps] + [row.to_json() for row in self.unread]


def plan_steps(
    steps: Sequence[SuiteStep],
    out: Path,
    device: str | None,
    *,
    power: bool,
    log: Callable[[str], None],
    processes: int = 1,
    estimate_memory: bool = False,
    overwrite: bool = False,
) -> list[PlannedStep]:
    """Add the status, the expected cost and the power to every step.

    Args:
        out: the folder whose records determine what similar runs have cost and how their scores vary.
        device: name of the device that the runs will use; None where it is not known.
        power: whether to forecast the differences that the plan can show.
        log: called with a warning for every record that cannot be used.
        processes: of a step.
        estimate_memory: whether to estimate the memory of steps without a similar run.
        overwrite: whether the runs in the steps' run directories are to be removed.
    """

    def warn(text: str) -> None:
        if power:
            log(f"suite: warning: {text}")

    at_hand = read_at_hand(out, warn)
    records = list(at_hand.records.values())
    forecasts = forecast_steps(steps, at_hand) if power else {}
    planned = []
    needs = needs_of(steps, records, device, processes=processes, estimate=estimate_memory)
    for step, need in zip(steps, needs, strict=True):
        statuses = step.statuses_to_overwrite() if overwrite else step.statuses()
        states = tuple(state for state, _ in statuses)
        left = len(states) - states.count("done")
        cost = estimate_cost(step, left, records, device)
        planned.append(
            PlannedStep(
                step=step,
                seeds=states,
                obstacle=next((why for _, why in statuses if why), ""),
                estimate=cost,
                forecast=StepForecast(
                    kind=step.kind,
                    seconds=cost.seconds,
                    share=demo_share(step.kind, left),
                    need=need,
                ),
                power=forecasts.get(protocol_of(step), ()),
            )
        )
    return planned


def check_obstacles(plan: SuitePlan) -> None:
    """Refuse to start with a step that is blocked, or without any step.

    A step is blocked by a run that was started differently in its run directory, and by a run that is to be replaced
    while another process works on it.

    Raises:
        UsageError: naming every blocked step.
        BenchError: every row is blocked.
    """
    found = [f"{one.step}: {one.obstacle}" for one in plan.steps if one.obstacle]
    if found:
        states = [s for one in plan.steps for s, _ in one.step.statuses_to_overwrite()]
        replaceable = not plan.overwrite and set(states) == {"to do"}
        raise UsageError(
            f"{len(found)} of {len(plan.steps)} steps are blocked; nothing was started. {' '.join(found)}"
            + (" Or replace the runs of all steps with --overwrite." if replaceable else "")
        )
    errors = [row.error for row in plan.unread if row.error is not None]
    if errors and not plan.steps and len(errors) == len(plan.unread):
        raise type(errors[0])(  # with its exit code
            f"all {len(errors)} rows are blocked; nothing was started. The first: {plan.unread[0].obstacle}"
        )
