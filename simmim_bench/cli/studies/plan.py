"""The plan of a study: the status of each step, the expected cost of the rest, and power. Planning writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pretrain.cost import FinishedRun, MemoryEstimates, PretrainCost, expect_cost, read_finished
from pretrain.step import PretrainStep
from simmim_bench.cli.studies.definition import Study
from simmim_bench.cli.studies.rows import AnyStudyStep, StudySteps, list_study
from simmim_bench.cli.studies.subsets import check_subset
from simmim_bench.display import align_columns, format_duration
from simmim_bench.errors import UsageError
from simmim_bench.jobs.forecast import Forecast
from simmim_bench.jobs.options import JobOptions
from simmim_bench.jobs.workers import Machine
from simmim_bench.runs.status import RunStatus
from transfer.suite.plan import SuitePlan, plan_steps
from transfer.suite.report import plan_text as suite_text
from transfer.suite.run import forecaster


@dataclass(frozen=True)
class PlannedPretraining:
    """A pretraining with its status and expected cost."""

    step: PretrainStep
    state: RunStatus
    obstacle: str
    cost: PretrainCost

    def to_json(self) -> dict[str, Any]:
        """Return the plain form."""
        step = self.step
        return {
            "step": str(step),
            "recipe": step.named.name,
            "deviates": step.deviates,
            "data": str(step.data),
            "seed": step.seed,
            "run": str(step.out),
            "state": self.state,
            "obstacle": self.obstacle or None,
            "estimate": asdict(self.cost),
            "command": step.command(),
        }


@dataclass(frozen=True)
class StudyPlan:
    """A study's rows and steps, with their status and expected cost."""

    study: Study
    listed: StudySteps
    pretrainings: tuple[PlannedPretraining, ...]
    transfers: SuitePlan
    device: str | None
    processes: int

    def to_json(self) -> dict[str, Any]:
        """Return the plain form."""
        return {
            "pretrainings": [one.to_json() for one in self.pretrainings],
            "transfers": [{**one.to_json(), "row": one.step.row} for one in self.transfers.steps],
            "to_download": [row.ckpt for row in self.transfers.unread],
        }


def plan_study(
    study: Study,
    job_options: JobOptions,
    *,
    dry_run: bool,
    log: Callable[[str], None],
) -> StudyPlan:
    """List the steps of a study with their status and expected cost; write nothing but downloaded weights.

    Args:
        dry_run: download nothing, and forecast the differences that the plan can show.

    Raises:
        UsageError, DataError: see `list_study`.
    """
    listed = list_study(study, download=not dry_run, log=log)
    device: str | None = None
    if job_options.slurm is None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    processes = job_options.gpus_per_task
    side_by_side = not (job_options.workers or job_options.exclusive or job_options.slurm)
    estimate_memory = side_by_side and device not in (None, "cpu")
    finished = read_finished(step.out for step in listed.pretrainings)
    estimates = MemoryEstimates()
    pretrainings = []
    for step in listed.pretrainings:
        ((state, obstacle),) = step.statuses()
        cost = expect_cost(step, finished, device, processes)
        if cost.need.peak is None and estimate_memory and state != "done":
            cost = replace(cost, need=estimates.need(step))
        pretrainings.append(PlannedPretraining(step, state, obstacle, cost))
    transfers = plan_steps(
        listed.transfers,
        study.out,
        device,
        power=dry_run,
        log=log,
        processes=processes,
        estimate_memory=estimate_memory,
    )
    places = "" if job_options.slurm else Machine(job_options).describe()
    suite = SuitePlan(tuple(transfers), listed.unread, places, device)
    return StudyPlan(study, listed, tuple(pretrainings), suite, device, processes)


def check_study(plan: StudyPlan) -> None:
    """Refuse to start while a run that was started differently is in a step's run directory.

    Raises:
        UsageError: naming every blocked step; or another subset of a data set is in OUT.
    """
    for subset in plan.study.subsets:
        check_subset(subset)
    found = [f"{one.step}: {one.obstacle}" for one in plan.pretrainings if one.obstacle]
    found += [f"{one.step}: {one.obstacle}" for one in plan.transfers.steps if one.obstacle]
    if found:
        raise UsageError(
            f"{len(found)} of {len(plan.listed.steps)} steps are blocked; nothing was started. {' '.join(found)}"
        )


def study_forecaster(
    plan: StudyPlan, job_options: JobOptions
) -> Callable[[AnyStudyStep], Forecast]:
    """Return what is expected of a step: as its kind has taken in this study."""
    of_transfer = forecaster(plan.transfers, job_options)
    planned = {id(one.step): one.cost.need for one in plan.pretrainings}
    finished: dict[Path, FinishedRun] = {}

    def forecast(step: AnyStudyStep) -> Forecast:
        if not isinstance(step, PretrainStep):
            return of_transfer(step)
        for run_dir in (one.out for one in plan.listed.pretrainings):
            if run_dir not in finished:
                finished.update((run_dir, run) for run in read_finished([run_dir]))
        cost = expect_cost(step, list(finished.values()), plan.device, plan.processes)
        need = planned[id(step)] if cost.need.peak is None else cost.need
        return Forecast(kind=step.kind, seconds=cost.seconds, need=need)

    return forecast


def plan_text(plan: StudyPlan) -> str:
    """Return a plan as plain-text tables, with its cost below: the pretrainings, then the transfers."""
    rows = [("pretraining", "recipe", "seed", "state", "cost")]
    for one in plan.pretrainings:
        step, recipe = one.step, one.step.named.name + ("*" if one.step.deviates else "")
        cost = "" if one.state == "done" else str(one.cost)
        name = str(step).removeprefix("pretraining of ").partition(", seed ")[0]
        rows.append((name, recipe, str(step.seed), one.state, cost))
    left = [one for one in plan.pretrainings if one.state != "done"]
    known = [one.cost.seconds for one in left if one.cost.seconds is not None]
    total = f"{len(left)} of {len(plan.pretrainings)} pretrainings to do"
    if known:
        unknown = f", and {len(left) - len(known)} of unknown cost" * (len(left) > len(known))
        total += f": {format_duration(sum(known))} of work{unknown}"
    parts = [*align_columns(rows), "", total, ""] if plan.pretrainings else []
    return "\n".join([*parts, suite_text(plan.transfers)])
